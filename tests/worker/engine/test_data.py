"""Datasets: both formats read alike, nothing held out is trained on, and every defect has a sentence."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.contract import Check, DatasetSpec, JobDirectory, Policy, Spec, tree_digest
from worker.engine.data import Dataset, load_dataset
from worker.engine.errors import BadInput
from worker.engine.files import entries

NAMES = ("cat", "dog")
IMAGES = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
LABELS = np.array([0, 1, 0, 1])


def read(root: Path, fmt: str, held_out: tuple[str, ...] = ()) -> Dataset:
    job = JobDirectory(root)
    spec = Spec(
        request_id="r",
        family="ddpm",
        method="sfron",
        seed=0,
        verification_seed=0,
        class_names=NAMES,
        forget_classes=(0,),
        base_digest="0" * 64,
        original_digest="0" * 64,
        dataset=DatasetSpec.model_validate({"format": fmt, "digest": tree_digest(entries(job.data)), "held_out_ids": held_out}),
        policy=Policy(name="p", checks=(Check(verifier="integrity"),)),
    )
    return load_dataset(job, spec)


def npz(root: Path, **changes: np.ndarray) -> Path:
    data = root / "data"
    data.mkdir()
    np.savez(data / "d.npz", **({"images": IMAGES, "labels": LABELS} | changes))
    return root


def picture(path: Path, value: int = 7, size: tuple[int, int] = (3, 2), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


def test_grey_arrays_get_one_channel_and_ids_by_position(tmp_path: Path) -> None:
    data = read(npz(tmp_path), "npz", held_out=("2",))
    assert data.images_NCHW.shape == (4, 1, 2, 3)
    assert data.image_shape == (1, 2, 3)
    assert np.array_equal(data.images_NCHW[:, 0].numpy(), IMAGES)
    assert data.ids == ("0", "1", "2", "3")
    assert data.train_of([0]).tolist() == [0]
    assert data.held_out_of([0, 1]).tolist() == [2]
    assert data.train_of([1, 0, 1]).tolist() == [0, 1, 3]


def test_colour_arrays_become_channels_first(tmp_path: Path) -> None:
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[..., 1] = 9
    data = read(npz(tmp_path, images=images, ids=np.array(["a", "b", "c", "d"])), "npz")
    assert data.images_NCHW[0, :, 0, 0].tolist() == [0, 9, 0]
    assert data.ids == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": np.array([0, 1, 0, 2])}, "unknown label"),
        ({"labels": np.array([0, 1, 0, -1])}, "unknown label"),
        ({"labels": np.array([0, 1, 0])}, "expected integer labels"),
        ({"labels": np.array([0.0, 1.0, 0.0, 1.0])}, "expected integer labels"),
        ({"images": IMAGES.astype(np.float32)}, "expected images uint8"),
        ({"images": IMAGES[0]}, "expected images uint8"),
        ({"images": np.zeros((4, 2, 2, 2), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((0, 2, 2), np.uint8)}, "expected images uint8"),
        ({"ids": np.array(["b", "anna", "anna", "c"])}, "unique item ids, found 1 repeated, the first at position 1$"),
        ({"ids": np.array(["a", "b"])}, "expected ids"),
        ({"labels": np.array([0, 0, 0, 0])}, "none for dog"),
        ({"labels": np.array([0, 1, 0, {}], dtype=object)}, "plain arrays"),
    ],
)
def test_a_defect_of_an_npz_is_named(tmp_path: Path, changes: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read(npz(tmp_path, **changes), "npz")


def test_held_out_items_must_exist_and_leave_every_class_a_training_image(tmp_path: Path) -> None:
    npz(tmp_path)
    with pytest.raises(BadInput, match=r"found 2 that are not in the dataset, the first at position 1 of held_out_ids$"):
        read(tmp_path, "npz", held_out=("0", "anna", "9"))
    with pytest.raises(BadInput, match="none for cat"):
        read(tmp_path, "npz", held_out=("0", "2"))


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(BadInput, match="not an npz"):
        read(tmp_path, "npz")
    (tmp_path / "data" / "d.npz").unlink()
    with pytest.raises(BadInput, match="exactly one"):
        read(tmp_path, "npz")


def test_a_folder_of_classes_is_read_with_paths_as_ids(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "dog" / "b.png", 1)
    picture(tmp_path / "data" / "cat" / "a.png", 2)
    picture(tmp_path / "data" / "cat" / "z.png", 3)
    data = read(tmp_path, "image_folder", held_out=("cat/z.png",))
    assert data.ids == ("cat/a.png", "cat/z.png", "dog/b.png")
    assert data.labels_N.tolist() == [0, 0, 1]
    assert data.images_NCHW[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert data.image_shape == (1, 2, 3)  # PIL's (width 3, height 2)
    assert data.held_out_N.tolist() == [False, True, False]


def test_the_test_folder_is_held_out(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/a.png", "test/dog/a.png"):
        picture(tmp_path / "data" / name)
    data = read(tmp_path, "image_folder")
    assert data.ids == ("train/cat/a.png", "train/dog/a.png", "test/dog/a.png")
    assert data.held_out_N.tolist() == [False, False, True]


def test_one_colour_image_makes_the_dataset_colour(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "cat" / "a.png", 5)
    picture(tmp_path / "data" / "dog" / "a.png", 6, mode="RGB")
    data = read(tmp_path, "image_folder")
    assert data.images_NCHW[:, :, 0, 0].tolist() == [[5, 5, 5], [6, 0, 255]]


@pytest.mark.parametrize(
    ("name", "size", "content", "sentence"),
    [
        ("horse/a.png", (3, 2), None, "unknown label"),
        (
            "dog/deep/anna.png",
            (3, 2),
            None,
            r"expected <class>/<image file>, found file 2 of data/, by path, 2 folders deep, of type '\.png'",
        ),
        (
            "dog/anna.txt",
            (3, 2),
            b"hello",
            r"expected <class>/<image file>, found file 2 of data/, by path, 1 folders deep, of type '\.txt'",
        ),
        ("dog/anna.png", (3, 3), None, "to be 3x2, the one at position 2 is 3x3"),
        ("dog/anna.png", (3, 2), b"\x89PNG torn", "the image at position 2 is not a readable image"),
    ],
)
def test_a_defect_of_a_folder_is_named(
    tmp_path: Path, name: str, size: tuple[int, int], content: bytes | None, sentence: str
) -> None:
    picture(tmp_path / "data" / "cat" / "a.png")
    picture(tmp_path / "data" / "dog" / "a.png")
    if content is None:
        picture(tmp_path / "data" / name, size=size)
    else:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(BadInput, match=sentence) as caught:
        read(tmp_path, "image_folder")
    said = "".join(traceback.format_exception(caught.value))
    assert "anna" not in said  # a path is an id, and an id may name a person


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "cat" / "a.png")
    (tmp_path / "data" / "dog").mkdir()
    Image.fromarray(np.full((2, 3), 60_000, np.uint16)).save(tmp_path / "data" / "dog" / "a.png")
    with pytest.raises(BadInput, match="8-bit"):
        read(tmp_path, "image_folder")
