"""Safetensors are what the format says, byte for byte; anything else is not registered."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from service.errors import BadLocation, PickleWeights
from service.files import FileEntry, Found, dataset_digest, hash_files, open_file, read_location, tree_digest
from service.formats import check_model, check_safetensors
from service.sources import EVERYTHING
from tests.worker.engine.tiny import case, families
from worker import contract


def _found(content: bytes) -> Found:
    return Found("w.safetensors", len(content), lambda: io.BytesIO(content))


def _file(header: Any, buffer: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + buffer


def _tensor(begin: int, end: int, *, dtype: str = "F32", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int64), "c": np.zeros((), np.float16)}),
        save({"a": np.zeros(3, np.uint8)}, metadata={"format": "pt"}),
        _file({"b": _tensor(4, 8), "a": _tensor(0, 4)}, bytes(8)),  # in any order
        _file({"a": _tensor(0, 0, shape=[0])}, b""),
    ],
)
def test_real_files_pass(content: bytes) -> None:
    check_safetensors(_found(content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        _file({}, b""),
        _file({"__metadata__": {"a": "b"}}, b""),
        _file({"a": _tensor(0, 4)}, bytes(3)),  # truncated
        _file({"a": _tensor(0, 4)}, bytes(5)),  # padded: bytes that no tensor names
        _file({"a": _tensor(0, 4), "b": _tensor(8, 12)}, bytes(12)),  # a hole
        _file({"a": _tensor(0, 8), "b": _tensor(4, 12)}, bytes(12)),  # an overlap
        _file({"a": _tensor(0, 4, dtype="O")}, bytes(4)),
        _file({"a": _tensor(0, 4, shape=[2])}, bytes(4)),
        _file({"a": _tensor(0, 4, shape=[-1])}, bytes(4)),
        _file({"a": _tensor(0, 4, shape=[True])}, bytes(4)),
        _file({"a": _tensor(4, 0, shape=[1])}, bytes(4)),
        _file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        _file({"a": {**_tensor(0, 4), "more": 1}}, bytes(4)),
        _file({"a": _tensor(0, 4), "__metadata__": {"a": 1}}, bytes(4)),
        _file([1], b""),
        _file(b' {"a": 1}', b""),
        _file(b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": 1}', bytes(4)),  # a key twice
        _file(b"\xff\xfe", b""),
        _file(b"[" * 100_000, b""),
        _file({"a": _tensor(0, 4)}, bytes(4), length=2**63),
        _file({"a": _tensor(0, 4)}, bytes(4), length=10_000),
    ],
)
def test_broken_files_are_refused(content: bytes) -> None:
    with pytest.raises(BadLocation):
        check_safetensors(_found(content))


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00.", b"\x80\x05\x95" + bytes(50)])
def test_pickles_under_a_better_name_are_called_pickles(content: bytes) -> None:
    with pytest.raises(PickleWeights):
        check_safetensors(_found(content))


# -------------------------------------------------------------------------------------------------- listing and hashing

FILES = [FileEntry("b/c.json", 3, "1" * 64), FileEntry("a.json", 10, "2" * 64), FileEntry("b.json", 1, "3" * 64)]


def test_the_tree_digest_is_the_workers() -> None:
    theirs = contract.tree_digest(contract.FileEntry(**f.row()) for f in FILES)
    assert tree_digest(FILES) == tree_digest(FILES[::-1]) == theirs


def test_the_dataset_digest_holds_on_to_everything() -> None:
    base: dict[str, Any] = {"format": "npz", "class_names": ["a", "b"], "held_out_ids": ["1", "2"]}
    changes: list[dict[str, Any]] = [
        {}, {"format": "image_folder"}, {"class_names": ["b", "a"]}, {"held_out_ids": ["1"]},
    ]  # fmt: skip
    digests = [dataset_digest(FILES, **{**base, **change}) for change in changes]
    assert len(set(digests)) == 4
    assert dataset_digest(FILES[::-1], **{**base, "held_out_ids": ["2", "1"]}) == digests[0]
    assert dataset_digest(FILES[1:], **base) not in digests


def test_a_location_lists_all_and_hashes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes(b"bb")
    (tmp_path / "a.txt").write_bytes(b"")
    location = read_location(str(tmp_path), EVERYTHING)
    assert [(f.path, f.size) for f in hash_files(location)] == [("a.txt", 0), ("sub/b.txt", 2)]
    with open_file(location.url, "sub/b.txt", EVERYTHING) as stream:
        assert stream.read() == b"bb"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"before")
    location = read_location(str(tmp_path), EVERYTHING)
    (tmp_path / "a.txt").write_bytes(b"longer than before")
    with pytest.raises(BadLocation, match="changed"):
        hash_files(location)


def test_an_object_store_is_read_the_same_way(tmp_path: Path) -> None:
    import fsspec

    url = f"memory://{tmp_path.name}/folder"
    with fsspec.open(f"{url}/sub/a.txt", "wb") as stream:
        stream.write(b"abc")
    location = read_location(url, EVERYTHING)
    assert [(f.path, f.size) for f in hash_files(location)] == [("sub/a.txt", 3)]
    with open_file(location.url, "sub/a.txt", EVERYTHING) as stream:
        assert stream.read() == b"abc"


@pytest.mark.parametrize("name", ["a\nb.json", "a\\b.json", "\x1b.json"])
def test_names_that_no_manifest_can_hold_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadLocation):
        read_location(str(tmp_path), EVERYTHING)


def test_a_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    import os

    with open(os.fsencode(tmp_path) + b"/\xff.json", "wb") as stream:
        stream.write(b"x")
    with pytest.raises(BadLocation):
        read_location(str(tmp_path), EVERYTHING)


@pytest.mark.parametrize("family", families())
def test_a_folder_of_every_family_may_be_registered(tmp_path: Path, family: str) -> None:
    case(family).write(tmp_path / family)
    check_model(read_location(str(tmp_path / family), EVERYTHING))
