"""The store: what has a name in it is whole."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.storage import Corrupt, Missing, Store

CONTENT = b"some bytes" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store((tmp_path / "a store").as_uri() if request.param == "file" else f"memory://{tmp_path}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


def _damage(store: Store, content: bytes) -> None:
    with store._files.open(store._key(DIGEST), "wb") as stream:
        stream.write(content)


def _names(store: Store) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in store._files.find(store._root))


def test_what_is_put_is_there_under_its_digest(store: Store, source: Path) -> None:
    assert not store.exists(DIGEST)
    entry = store.put(source)
    assert (entry.path, entry.size, entry.sha256) == ("source.bin", len(CONTENT), DIGEST)
    assert store.exists(DIGEST)
    assert store.size(DIGEST) == len(CONTENT)
    with store.open(DIGEST) as stream:
        stream.seek(5)
        assert stream.read() == CONTENT[5:]
    assert _names(store) == [DIGEST]  # nothing temporary is left


def test_putting_twice_and_at_once_ends_in_one_object(store: Store, source: Path) -> None:
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert {entry.sha256 for entry in pool.map(lambda _: store.put(source), range(16))} == {DIGEST}
    assert _names(store) == [DIGEST]


def test_putting_again_heals_an_object_that_has_rotted(store: Store, source: Path) -> None:
    store.put(source)
    _damage(store, b"rot")
    store.put(source)
    with store.open(DIGEST) as stream:
        assert stream.read() == CONTENT


def test_a_write_that_does_not_read_back_gets_no_name(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.storage.shutil.copyfileobj", lambda source, target, _length: target.write(b"half"))
    with pytest.raises(Corrupt):
        store.put(source)
    assert not store.exists(DIGEST)
    assert _names(store) == []


def test_what_is_not_there_is_missing(store: Store, tmp_path: Path) -> None:
    for missing in (DIGEST, "../../etc/passwd", "A" * 64, ""):
        with pytest.raises(Missing):
            store.open(missing)
        with pytest.raises(Missing):
            store.size(missing)
    assert store.exists(DIGEST) is False
