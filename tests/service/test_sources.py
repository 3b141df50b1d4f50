"""Nothing is read that lies outside of the sources, whatever a location says and whatever is swapped meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import ValidationError

from service import sources
from service.config import Settings
from service.errors import BadLocation
from service.files import open_file, read_location
from service.sources import EVERYTHING, SourceRefused, Sources
from tests.support import dataset_file, model_folder


def _sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *named: str, **more: Any) -> Sources:
    monkeypatch.delenv("EXPUNGE_SOURCES", raising=False)
    return sources.of(Settings(data_dir=tmp_path / "own", sources=named, **more))


# -------------------------------------------------------------------------------------------------------- what is allowed


def test_the_local_user_may_name_anything_until_sources_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert _sources(monkeypatch, tmp_path) == EVERYTHING
    with pytest.raises(SourceRefused, match="EXPUNGE_SOURCES names"):
        read_location(str(folder), _sources(monkeypatch, tmp_path, str(tmp_path / "models")))


def test_with_keys_and_no_sources_only_the_data_directory_may_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = _sources(monkeypatch, tmp_path, auth="required")
    assert len(read_location(str(model_folder(tmp_path / "own" / "models" / "m")), allowed).files) == 2
    for location in (str(model_folder(tmp_path / "m")), "s3://bucket/m", "memory://m", "/etc", "/"):
        with pytest.raises(SourceRefused, match="EXPUNGE_SOURCES names no folder or bucket"):
            read_location(location, allowed)


@pytest.mark.parametrize("place", ["jobs/r/1/base", "store/sha256", "keys", "keks", "judges", "fishers", ""])
def test_what_is_the_services_own_is_no_source_though_it_lies_in_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "own" / place
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for named in ([], ["/"], [str(tmp_path)]):
        with pytest.raises(SourceRefused):
            read_location(str(folder), _sources(monkeypatch, tmp_path, *named, auth="required"))


def test_a_folder_that_only_begins_like_a_source_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    inside, beside = model_folder(tmp_path / "models" / "m"), model_folder(tmp_path / "models-of-others")
    assert read_location(inside.as_uri(), allowed).url == str(inside)
    for location in (str(beside), beside.as_uri()):
        with pytest.raises(SourceRefused):
            read_location(location, allowed)


def test_a_source_may_itself_be_a_link_of_the_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "disk" / "m")
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    location = read_location(str(tmp_path / "models" / "m"), allowed)
    assert location.url == str(folder)
    with open_file(location.url, "config.json", allowed) as stream:
        assert stream.read() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("one", ["models", "s3:///prefix", "s3://b/../c", "/models/../etc", "http://h/m", "s3://b?x", "~/m"])
def test_a_source_that_is_no_place_stops_the_process(one: str) -> None:
    with pytest.raises(ValidationError, match="sources are absolute folders"):
        Settings(sources=(one,))


# ---------------------------------------------------------------------------------------------------------------- tricks


def test_outside_of_the_sources_nobody_learns_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    told = set()
    for place in ("/etc/passwd", "/nothing/of/this/name", str(tmp_path)):
        with pytest.raises(SourceRefused) as refusal:
            read_location(place, allowed)
        told.add(refusal.value.detail)
    assert len(told) == 1


@pytest.mark.parametrize("location", ["{}/models/../secret", "file://{}/models/../secret", "file://{}/models/%2e%2e/secret"])
def test_dots_lead_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, location: str) -> None:
    model_folder(tmp_path / "models" / "m")
    model_folder(tmp_path / "secret")
    for allowed in (EVERYTHING, _sources(monkeypatch, tmp_path, str(tmp_path / "models"))):
        with pytest.raises(BadLocation, match=r"without `\.\.`"):
            read_location(location.format(tmp_path), allowed)


def test_a_link_in_a_source_that_leads_out_of_it_is_no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(model_folder(tmp_path / "secret"), target_is_directory=True)
    with pytest.raises(SourceRefused):
        read_location(str(tmp_path / "models" / "m"), allowed)
    alone = dataset_file(tmp_path / "secret" / "d.npz")
    (tmp_path / "models" / "d.npz").symlink_to(alone)
    with pytest.raises(SourceRefused):
        read_location(str(tmp_path / "models" / "d.npz"), allowed, single_suffix=".npz")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_in_a_registered_folder_that_leads_out_of_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Also where it stays within the sources: what is registered is this folder."""
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    folder, other = model_folder(tmp_path / "models" / "m"), model_folder(tmp_path / "models" / "other")
    (folder / "sub").symlink_to(other if kind == "folder" else other / "config.json")
    with pytest.raises(BadLocation, match="link"):
        read_location(str(folder), allowed)


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest", "https://host/m", "ftp://host/m", "gs://bucket/m", "github://a:b@/m", "sftp://h/m",
        "simplecache::s3://models/m", "filecache::file:///etc", "zip://x::file:///m.zip", "s3://models/m::file:///etc",
        "s3://models/m?versionId=1", "s3://models/m#x", "s3://models/../other", "s3://models//m", "s3:///m", "s3://",
        "S3://models/m", "FILE:///etc", "file://host/etc", "file:///etc?x", "s3://models/\\m", "s3://models/./m", "//host/m",
        "reference://m", "dir::file:///etc", "local:///etc", "data://text/plain,x",
    ],
)  # fmt: skip
def test_other_schemes_and_chains_of_them_are_refused_and_never_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, location: str
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file system was made")

    monkeypatch.setattr(fsspec.core, "url_to_fs", asked)
    for allowed in (_sources(monkeypatch, tmp_path, "s3://models"), EVERYTHING):
        if location == "//host/m" and allowed is EVERYTHING:
            continue  # a path of this host, and there is none
        with pytest.raises(BadLocation):
            read_location(location, allowed)
        with pytest.raises(BadLocation):
            open_file(location, "config.json", allowed)


# ------------------------------------------------------------------------------------------------ between look and opening


def test_sources_that_became_narrower_hold_for_what_was_registered_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "m")
    location = read_location(str(folder), EVERYTHING)
    with pytest.raises(SourceRefused):
        open_file(location.url, "config.json", _sources(monkeypatch, tmp_path, str(tmp_path / "models")))


@pytest.mark.parametrize("swapped", ["file", "folder", "parent"])
def test_what_is_swapped_for_a_link_after_it_was_listed_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, swapped: str
) -> None:
    allowed = _sources(monkeypatch, tmp_path, str(tmp_path / "models"))
    folder = model_folder(tmp_path / "models" / "a" / "m")
    (folder / "sub").mkdir()
    (folder / "sub" / "x.json").write_text("{}")
    location = read_location(str(folder), allowed)
    (found,) = [f for f in location.files if f.path == "sub/x.json"]
    secret = tmp_path / "secret" / "m" / "sub"
    secret.mkdir(parents=True)
    (secret / "x.json").write_text("secret")
    place, instead = {
        "file": (folder / "sub" / "x.json", secret / "x.json"),
        "folder": (folder / "sub", secret),
        "parent": (folder.parent, secret.parents[1]),
    }[swapped]
    place.rename(tmp_path / "moved")
    place.symlink_to(instead)
    with pytest.raises(BadLocation):
        found.open()
    with pytest.raises(BadLocation):
        open_file(location.url, "sub/x.json", allowed)


@pytest.mark.parametrize("swapped", ["sub", "sub/x.json"])
def test_what_is_swapped_for_a_link_after_it_was_judged_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, swapped: str
) -> None:
    """The moment between: the path is resolved, and a link is there when it is opened."""
    folder, secret = tmp_path / "models" / "m", tmp_path / "secret"
    for place, text in ((folder, "{}"), (secret, "secret")):
        (place / "sub").mkdir(parents=True)
        (place / "sub" / "x.json").write_text(text)
    resolve = os.path.realpath

    def resolved(path: Any, **more: Any) -> str:
        found = resolve(path, **more)
        if str(path).endswith("x.json"):
            (folder / swapped).rename(tmp_path / "moved")
            (folder / swapped).symlink_to(secret / swapped)
        return str(found)

    monkeypatch.setattr(os.path, "realpath", resolved)
    with pytest.raises(BadLocation, match="a link came"):
        open_file(str(folder), "sub/x.json", EVERYTHING)


def test_a_pipe_that_came_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(BadLocation, match="regular files only"):
        open_file(str(folder), "config.json", EVERYTHING)


def test_a_folder_on_the_way_need_not_be_readable(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        return  # root may read everything
    folder = model_folder(tmp_path / "closed" / "m")
    folder.parent.chmod(0o711)
    with open_file(str(folder), "config.json", Sources(folders=(str(tmp_path),))) as stream:
        assert stream.read()


# ---------------------------------------------------------------------------------------------------------------- buckets


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket in memory, with `models/m` and, beside it, what only begins like it."""
    bucket, kept = tmp_path.name, fsspec.filesystem("memory")
    for key in ("models/m/config.json", "models-of-others/m/config.json", "models/n/x::file.json"):
        kept.pipe_file(f"/{bucket}/{key}", b"{}")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (kept, "/" + url.removeprefix("s3://")))
    return bucket


def test_a_bucket_is_read_below_the_prefix_that_is_named_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: str
) -> None:
    allowed = _sources(monkeypatch, tmp_path, f"s3://{models}/models/")
    location = read_location(f"s3://{models}/models/m", allowed)
    assert (location.url, [f.path for f in location.files]) == (f"s3://{models}/models/m", ["config.json"])
    with open_file(location.url, "config.json", allowed) as stream:
        assert stream.read() == b"{}"
    for elsewhere in (f"s3://{models}", f"s3://{models}/models-of-others/m", "s3://another/models/m"):
        with pytest.raises(SourceRefused):
            read_location(elsewhere, allowed)
        with pytest.raises(SourceRefused):
            open_file(elsewhere, "config.json", allowed)


def test_an_object_whose_name_looks_like_a_chain_is_opened_by_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: str
) -> None:
    allowed = _sources(monkeypatch, tmp_path, f"s3://{models}")
    location = read_location(f"s3://{models}/models/n", allowed)
    assert [f.path for f in location.files] == ["x::file.json"]
    with open_file(location.url, "x::file.json", allowed) as stream:
        assert stream.read() == b"{}"


def test_the_store_is_no_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed = _sources(monkeypatch, tmp_path, "s3://expunge", store_url="s3://expunge/store")
    for location in ("s3://expunge/store/sha256", "s3://expunge/store", "s3://expunge"):
        with pytest.raises(SourceRefused):
            read_location(location, allowed)
    allowed.require_bucket("s3", "expunge/models")
