"""A worker reads registered files from its sources alone, and follows no link that was put in the place of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Settings
from service.sources import EVERYTHING, Sources
from service.storage import get_store
from worker.conductor.outcomes import Failed
from worker.conductor.planning import Source
from worker.conductor.workspace import bring
from worker.contract import FileEntry

ABC = FileEntry(path="a.npz", size=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # of "abc"


def _brought(tmp_path: Path, allowed: Sources) -> bytes:
    source = Source("dset_1", "0" * 64, str(tmp_path / "data"), (ABC,))
    store = get_store(Settings(data_dir=tmp_path / "own"))
    bring(source, tmp_path / "job", store, allowed, lambda: None)
    return (tmp_path / "job" / "a.npz").read_bytes()


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.npz").write_bytes(b"abc")
    return tmp_path / "data"


def test_what_lies_in_a_source_is_brought(tmp_path: Path) -> None:
    assert _brought(tmp_path, Sources(folders=(str(tmp_path),))) == b"abc"


def test_what_was_registered_before_the_sources_became_narrower_is_not(tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        _brought(tmp_path, Sources(folders=(str(tmp_path / "elsewhere"),)))
    assert failed.value.problem.code == "source_refused"
    assert "EXPUNGE_SOURCES" in failed.value.problem.message


def test_a_link_in_the_place_of_a_file_is_not_followed_though_the_bytes_are_the_same(tmp_path: Path, data: Path) -> None:
    (tmp_path / "secret.npz").write_bytes(b"abc")
    (data / "a.npz").unlink()
    (data / "a.npz").symlink_to(tmp_path / "secret.npz")
    with pytest.raises(Failed) as failed:
        _brought(tmp_path, EVERYTHING)
    assert failed.value.problem.code == "integrity"
    assert "a link in the folder leads out of it" in failed.value.problem.message
