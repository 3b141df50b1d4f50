"""Registering datasets."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from fastapi.testclient import TestClient
from PIL import Image

from tests.support import DIGITS, code_of, dataset_file


def two_of_each(**arrays: Any) -> dict[str, Any]:
    """Ten items, two of each of five classes, called scan-0 to scan-9."""
    names = np.array([f"scan-{k}" for k in range(10)])
    return {"images": np.zeros((10, 8, 8), np.uint8), "labels": np.arange(10) % 5, "ids": names, **arrays}


def _post(client: TestClient, place: Path, **more: Any) -> Any:
    body = {"format": "npz", "location": str(place), "class_names": DIGITS, **more}
    return client.post("/datasets", json=body)


def test_a_dataset_is_recorded_with_its_digest_and_its_entry(client: TestClient, tmp_path: Path) -> None:
    path = dataset_file(tmp_path / "d" / "digits.npz", **two_of_each())
    made = _post(client, path, held_out_ids=["scan-3", "scan-1"])
    assert made.status_code == 201, made.text
    body = made.json()
    content = path.read_bytes()
    expected = {
        "format": "npz",
        "files": [["digits.npz", len(content), hashlib.sha256(content).hexdigest()]],
        "class_names": DIGITS,
        "held_out_ids": ["scan-1", "scan-3"],
    }
    assert body["digest"] == hashlib.sha256(rfc8785.dumps(expected)).hexdigest()
    assert (body["file_count"], body["held_out_count"], body["name"]) == (1, 2, "d")
    assert body["location"] == str(path.parent)  # always the folder
    assert made.headers["location"] == f"/datasets/{body['id']}"
    assert client.get(made.headers["location"]).json() == body
    assert client.get("/datasets").json()["data"] == [body]
    (entry,) = client.get("/audit/entries", params={"action": "dataset.*"}).json()["data"]
    assert entry["leaf"]["public"] == {
        "datasetId": body["id"], "digest": body["digest"], "format": "npz", "files": 1, "heldOut": 2,
    }  # fmt: skip


@pytest.mark.one_database
def test_the_digest_knows_who_is_held_out(client: TestClient, tmp_path: Path) -> None:
    path = dataset_file(tmp_path / "d" / "digits.npz", **two_of_each(ids=np.arange(10)))
    digests = {_post(client, path, held_out_ids=ids).json()["digest"] for ids in ([], ["1"], [0])}
    assert len(digests) == 3
    assert code_of(_post(client, path, held_out_ids=["a", "a"])) == "validation_failed"


def _object_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}] * 5, dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.one_database
@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": None},
        {"images": None},
        {"labels": np.arange(4)},
        {"labels": np.arange(5.0)},
        {"labels": np.array(["a"] * 5)},
        {"images": np.zeros((5, 8, 8), np.float32)},
        {"images": np.zeros((5, 8), np.uint8)},
        {"images": np.zeros((5, 8, 8, 2), np.uint8)},
        {"images": np.zeros((0, 8, 8), np.uint8), "labels": np.arange(0), "ids": None},
        {"ids": np.arange(4)},
        {"ids": np.array([{"a": 1}] * 5, dtype=object)},
        {"more": np.arange(3)},
    ],
)
def test_arrays_that_are_not_images_and_labels_are_refused(client: TestClient, tmp_path: Path, arrays: dict[str, Any]) -> None:
    response = _post(client, dataset_file(tmp_path / "d" / "d.npz", **arrays))
    assert (response.status_code, code_of(response)) == (422, "bad_location")


@pytest.mark.one_database
@pytest.mark.parametrize(
    "member", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00xxxxx", b"\x93NUMPY\x01\x00\xff\xff", b"\x80\x04K\x01.",
               b"\x93NUMPY\x01\x00\x04\x00(9**9**9)", _object_array()],
)  # fmt: skip
def test_members_that_are_no_plain_arrays_are_refused(client: TestClient, tmp_path: Path, member: bytes) -> None:
    path = dataset_file(tmp_path / "d" / "d.npz", labels=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", member)
    assert code_of(_post(client, path)) == "bad_location"


@pytest.mark.one_database
def test_what_is_no_npz_is_refused(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "d.npz").write_bytes(b"not a zip")
    assert code_of(_post(client, folder / "d.npz")) == "bad_location"
    assert code_of(_post(client, folder)) == "bad_location"
    dataset_file(folder / "d.npz")
    assert _post(client, folder).status_code == 201
    (folder / "extra.txt").write_text("x")
    assert code_of(_post(client, folder)) == "bad_location"


def _folder(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def test_an_image_folder_is_taken_with_and_without_a_split(client: TestClient, tmp_path: Path) -> None:
    flat = _folder(tmp_path / "flat", "cat/1.png", "dog/2.JPG")
    split = _folder(tmp_path / "split", "train/cat/1.png", "train/dog/1.png", "test/cat/2.png")
    for folder, count in ((flat, 2), (split, 3)):
        made = _post(client, folder, format="image_folder", class_names=["cat", "dog"])
        assert (made.status_code, made.json()["file_count"]) == (201, count)


@pytest.mark.one_database
@pytest.mark.parametrize(
    "paths",
    [
        ["cat/1.png"],
        ["cat/1.png", "dog/1.png", "cow/1.png"],
        ["cat/1.png", "dog/1.txt"],
        ["cat/1.png", "dog/1.png", "readme.png"],
        ["cat/1.png", "dog/deep/1.png"],
        ["train/cat/1.png", "test/dog/1.png"],
        ["cat/1.png", "dog/.1.png"],
        ["cat/1.png", "dog/1.pkl"],
    ],
)
def test_an_image_folder_that_does_not_fit_its_classes_is_refused(client: TestClient, tmp_path: Path, paths: list[str]) -> None:
    folder = _folder(tmp_path / "f", *paths)
    assert code_of(_post(client, folder, format="image_folder", class_names=["cat", "dog"])) == "bad_location"


def test_a_grey_picture_of_sixteen_bits_is_refused_before_the_first_run(client: TestClient, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "f", "train/cat/1.png", "train/dog/1.png", "test/dog/1.png")
    body = {"format": "image_folder", "class_names": ["cat", "dog"]}
    for mode, refused in (("I;16", True), ("L", False), ("RGB", False)):
        Image.new(mode, (8, 8)).save(folder / "train" / "dog" / "1.png")
        response = _post(client, folder, **body)
        if refused:
            assert code_of(response) == "bad_location"
            assert "of 16" in response.json()["detail"]
        else:
            assert response.status_code == 201, response.text


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("arrays", "held_out", "code", "said"),
    [
        ({"labels": np.arange(10)}, [], "bad_location", "labels 0 to 4"),
        ({"labels": np.arange(10) % 5 - 1}, [], "bad_location", "labels 0 to 4"),
        ({"labels": np.arange(10) % 4}, [], "bad_location", "none of class 4"),
        ({"ids": np.array(["a"] * 10)}, [], "bad_location", "9 are repeated"),
        ({}, ["scan-3", "scan-8"], "bad_location", "none of class 3"),
        ({}, ["scan-3", "jane", "3"], "validation_failed", "2 of 3 held-out ids"),
        ({"ids": None}, ["scan-3"], "validation_failed", "1 of 1 held-out ids"),
    ],
)
def test_items_that_no_worker_could_work_on_are_refused(
    client: TestClient, tmp_path: Path, arrays: dict[str, Any], held_out: list[str], code: str, said: str
) -> None:
    response = _post(client, dataset_file(tmp_path / "d" / "d.npz", **two_of_each(**arrays)), held_out_ids=held_out)
    assert (response.status_code, code_of(response)) == (422, code)
    assert said in response.text
    assert "jane" not in response.text
    assert client.get("/datasets").json()["data"] == []


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("held_out", "code"),
    [(["cat/1.png"], "bad_location"), (["cat/3.png"], "validation_failed"), (["cat/2.png"], None)],
)
def test_held_out_pictures_of_a_folder_are_there_and_leave_some(
    client: TestClient, tmp_path: Path, held_out: list[str], code: str | None
) -> None:
    folder = _folder(tmp_path / "f", "cat/1.png", "cat/2.png", "dog/1.png")
    names = [*held_out, "cat/2.png"] if code == "bad_location" else held_out
    response = _post(client, folder, format="image_folder", class_names=["cat", "dog"], held_out_ids=names)
    assert response.status_code == (422 if code else 201)
    assert code is None or code_of(response) == code
