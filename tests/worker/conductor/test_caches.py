"""What one run computed is there for the next, within limits, and no cache ever ends an attempt."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.worker.conductor import house as h
from worker.conductor import caches, pipeline
from worker.conductor.caches import Cache


def folder(path: Path, size: int = 10, *, at: float | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(b"x" * size)
    if at is not None:
        os.utime(path, (at, at))
    return path


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


@pytest.mark.one_database
@pytest.mark.usefixtures("database")
def test_fisher_information_is_kept_and_brought_to_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_FAKE_KEEP", str(tmp_path))
    house, room = h.furnish(tmp_path), h.make_room()
    assert pipeline.run(h.ask(house, 1, fisher_bytes=1000, verify="fail"), room) == "failed"
    (kept,) = room.settings.fishers_dir.iterdir()
    assert (kept / "fisher.safetensors").stat().st_size == 1000
    assert pipeline.run(h.ask(house, 2, fisher_bytes=1000), room) == "succeeded"
    assert kept.name in json.loads((tmp_path / "fishers.json").read_text())
    assert names(room.settings.fishers_dir) == []  # the weights that both are of were replaced


@pytest.mark.one_database
@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("steer", [{"fisher_link": True}, {}])
def test_what_must_not_be_kept_is_not_and_the_run_succeeds(tmp_path: Path, steer: dict[str, bool]) -> None:
    """A link, which the next run would follow; anything at all, when the cache is switched off."""
    house, room = h.furnish(tmp_path), h.make_room(fisher_cache_mb=1 if steer else 0)
    assert pipeline.run(h.ask(house, 1, fisher_bytes=10, **steer), room) == "succeeded"
    assert names(room.settings.fishers_dir) == []


def test_files_are_linked_and_not_copied(tmp_path: Path) -> None:
    made = folder(tmp_path / "job" / "a")
    cache = Cache(tmp_path / "cache", 9, 1000)
    cache.keep(tmp_path / "job")
    cache.bring(tmp_path / "next")
    inodes = {(place / "weights.safetensors").stat().st_ino for place in (made, tmp_path / "cache/a", tmp_path / "next/a")}
    assert len(inodes) == 1


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    folder(tmp_path / "job" / "a", 7)
    cache = Cache(tmp_path / "cache", 9, 1000)
    cache.keep(tmp_path / "job")
    cache.bring(tmp_path / "next")
    assert (tmp_path / "next" / "a" / "weights.safetensors").read_bytes() == b"x" * 7


def test_the_newest_within_the_bytes_are_kept_and_the_older_ones_go(tmp_path: Path) -> None:
    """Room for 25 bytes: the new one (10) and the younger of the two old ones (10) fit, the oldest (10) does not."""
    folder(tmp_path / "cache" / "oldest", at=1.0)
    folder(tmp_path / "cache" / "older", at=2.0)
    folder(tmp_path / "job" / "new")
    Cache(tmp_path / "cache", 9, 25).keep(tmp_path / "job")
    assert names(tmp_path / "cache") == ["new", "older"]


def test_the_newest_within_the_number_are_kept_and_brought(tmp_path: Path) -> None:
    for k in range(4):
        folder(tmp_path / "cache" / str(k), at=float(k))
    Cache(tmp_path / "cache", 2, 1000).bring(tmp_path / "next")
    assert names(tmp_path / "next") == ["2", "3"]
    (tmp_path / "job").mkdir()
    Cache(tmp_path / "cache", 2, 1000).keep(tmp_path / "job")
    assert names(tmp_path / "cache") == ["2", "3"]


def test_one_larger_than_the_cache_is_not_kept_and_drives_nothing_out(tmp_path: Path) -> None:
    folder(tmp_path / "cache" / "small", at=1.0)
    folder(tmp_path / "job" / "large", 100)
    Cache(tmp_path / "cache", 9, 50).keep(tmp_path / "job")
    assert names(tmp_path / "cache") == ["small"]


def test_what_the_engine_found_damaged_and_made_again_takes_its_place(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 9, 1000)
    folder(tmp_path / "cache" / "sound", 3)
    folder(tmp_path / "cache" / "damaged", 3)
    cache.bring(tmp_path / "job")
    before = {name: (tmp_path / "cache" / name).stat().st_ino for name in ("sound", "damaged")}
    again = tmp_path / "job" / "damaged" / "again"
    again.write_bytes(b"y" * 5)
    again.replace(tmp_path / "job" / "damaged" / "weights.safetensors")  # by rename, as the engine writes
    assert caches.size_of(tmp_path / "cache" / "damaged") == 3  # not written through the link
    cache.keep(tmp_path / "job")
    assert caches.size_of(tmp_path / "cache" / "damaged") == 5
    assert (tmp_path / "cache" / "sound").stat().st_ino == before["sound"]  # left as it was


def test_what_is_being_written_is_left_alone_until_its_writer_must_be_dead(tmp_path: Path) -> None:
    folder(tmp_path / "cache" / ".a.1", at=1.0)
    folder(tmp_path / "cache" / ".b.2")
    folder(tmp_path / "job" / ".c.3")
    cache = Cache(tmp_path / "cache", 9, 1000)
    cache.keep(tmp_path / "job")
    cache.bring(tmp_path / "next")
    assert (names(tmp_path / "cache"), names(tmp_path / "next")) == ([".b.2"], [])


def test_a_folder_that_vanishes_while_it_is_brought_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "cache" / "a")
    folder(tmp_path / "cache" / "b")

    def vanishing(source: str, target: str) -> None:
        if "/a/" in source:
            raise FileNotFoundError(source)
        Path(target).write_bytes(b"b")

    monkeypatch.setattr(caches, "_link_or_copy", vanishing)
    Cache(tmp_path / "cache", 9, 1000).bring(tmp_path / "next")
    assert names(tmp_path / "next") == ["b"]
