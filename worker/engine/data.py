"""The registered images: what is forgotten, what is retained, and what nothing may train on.

Shape suffixes: N items of the dataset, C channels (1 grey, 3 colour), H, W pixels.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from worker.contract import DatasetSpec, JobDirectory, Spec
from worker.engine.errors import BadInput
from worker.engine.files import require_digest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True)
class Dataset:
    """All items of a registered dataset, in memory.

    `images_NCHW` uint8 [0, 255]; `labels_N` int64 index into `class_names`; `ids` unique, one an item; `held_out_N`
    bool, True for items that only verification may look at.
    """

    images_NCHW: Tensor
    labels_N: Tensor
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    held_out_N: Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every item."""
        c, h, w = self.images_NCHW.shape[1:]
        return c, h, w

    def train_of(self, classes: Iterable[int]) -> Tensor:
        """Indices (int64, ascending) of the training items of these classes."""
        return self._of(classes, ~self.held_out_N)

    def positions_of(self, ids: Iterable[str]) -> Tensor:
        """Indices (int64, ascending) of training items by id. Raises: BadInput for an id that is none."""
        wanted = set(ids)
        found = [i for i, name in enumerate(self.ids) if name in wanted and not bool(self.held_out_N[i])]
        if len(found) != len(wanted):
            raise BadInput(f"expected ids of training items, {len(wanted) - len(found)} of {len(wanted)} are none")
        return torch.tensor(found, dtype=torch.int64)

    def held_out_of(self, classes: Iterable[int]) -> Tensor:
        """Indices (int64, ascending) of the held-out items of these classes."""
        return self._of(classes, self.held_out_N)

    @property
    def held_out_counts(self) -> tuple[int, ...]:
        """How many held-out items each class has, in index order."""
        return tuple(torch.bincount(self.labels_N[self.held_out_N], minlength=len(self.class_names)).tolist())

    def _of(self, classes: Iterable[int], among_N: Tensor) -> Tensor:
        wanted = torch.tensor(sorted(set(classes)), dtype=torch.int64)
        return torch.nonzero(among_N & torch.isin(self.labels_N, wanted)).squeeze(1)


def load_dataset(job: JobDirectory, spec: Spec) -> Dataset:
    """Read `data/` as `spec.dataset` says, after proving that it is the registered data.

    Formats:
        npz: one file with `images` uint8 [N,H,W] or [N,H,W,C], `labels` int [N], optional `ids` [N].
        image_folder: `<class>/<file>`, or `train/<class>/<file>` and `test/<class>/<file>` (test/ is held out).

    Raises:
        Integrity: the files are not the registered ones.
        BadInput: wrong shapes or dtypes, unknown label, repeated id, a held-out id that is not there, images of
            several sizes, or a class without a training image.
    """
    return _load(job.data, spec.dataset, spec.class_names, "the dataset")


def load_proxy(job: JobDirectory, spec: Spec, beside: Dataset) -> Dataset | None:
    """Read `proxy/`, the dataset whose images stand in for retained ones; None where the spec names none.

    Raises:
        Integrity, BadInput: as `load_dataset`; or its images have another shape than those that they stand in for.
    """
    if spec.retain is None or spec.retain.proxy_dataset is None:
        return None
    proxy = _load(job.proxy, spec.retain.proxy_dataset, spec.retain.proxy_class_names, "the proxy dataset")
    if proxy.image_shape != beside.image_shape:
        raise BadInput(f"expected proxy images of shape {beside.image_shape}, as the dataset's, found {proxy.image_shape}")
    return proxy


def fingerprints(images_NCHW: Tensor) -> list[bytes]:
    """What tells images that differ in a pixel, whatever file they came from."""
    return [hashlib.sha256(image_CHW.numpy().tobytes()).digest() for image_CHW in images_NCHW]


def _load(directory: Path, described: DatasetSpec, class_names: tuple[str, ...], what: str) -> Dataset:
    require_digest(directory, described.digest, what)
    read = {"npz": _read_npz, "image_folder": _read_image_folder}[described.format]
    images_NCHW, labels_N, ids, held_out_N = read(directory, class_names)
    held_out_N = held_out_N | _marked(ids, described.held_out_ids)
    dataset = Dataset(torch.from_numpy(images_NCHW), torch.from_numpy(labels_N), ids, class_names, torch.from_numpy(held_out_N))
    _require_training_images(dataset)
    return dataset


Read = tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...], NDArray[np.bool_]]


def _marked(ids: Sequence[str], held_out_ids: Sequence[str]) -> NDArray[np.bool_]:
    """True where an item's id is held out; ids must be unique and every held-out id must exist."""
    # Counted and placed, never quoted: an id may name a person, and these sentences end up in answers and records.
    repeated = {name for name, count in Counter(ids).items() if count > 1}
    if repeated:
        first = next(i for i, name in enumerate(ids) if name in repeated)
        raise BadInput(f"expected unique item ids, found {len(repeated)} repeated, the first at position {first}")
    known = set(ids)
    missing = [i for i, name in enumerate(held_out_ids) if name not in known]
    if missing:
        raise BadInput(
            f"expected held-out ids of the dataset, found {len(missing)} that are not in the dataset, the first at position "
            f"{missing[0]} of held_out_ids"
        )
    held_out = set(held_out_ids)
    return np.fromiter((name in held_out for name in ids), dtype=np.bool_, count=len(ids))


def _require_training_images(dataset: Dataset) -> None:
    counts = torch.bincount(dataset.labels_N[~dataset.held_out_N], minlength=len(dataset.class_names))
    empty = [dataset.class_names[k] for k in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        raise BadInput(f"expected a training image for every class, found none for {', '.join(empty)}")


# -------------------------------------------------------------------------------------------------------------------- npz


def _read_npz(directory: Path, class_names: Sequence[str]) -> Read:
    found = sorted(directory.rglob("*.npz"))
    if len(found) != 1:
        raise BadInput(f"expected exactly one .npz file in the dataset, found {len(found)}")
    images, labels, ids = _npz_arrays(found[0])
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise BadInput(f"expected images uint8 [N,H,W] or [N,H,W,C], found {images.dtype} {list(images.shape)}")
    images_NHWC = images[..., None] if images.ndim == 3 else images
    if images_NHWC.shape[3] not in (1, 3):
        raise BadInput(f"expected images with 1 or 3 channels, found {images_NHWC.shape[3]}")
    n = len(images)
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise BadInput(f"expected integer labels [{n}], found {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise BadInput(f"unknown label: expected 0 to {len(class_names) - 1}, found {labels.min()} to {labels.max()}")
    if ids is not None and (ids.dtype.kind not in "Uiu" or ids.shape != (n,)):
        raise BadInput(f"expected ids as strings or integers [{n}], found {ids.dtype} {list(ids.shape)}")
    names = tuple(map(str, range(n) if ids is None else ids.tolist()))
    images_NCHW = np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))
    return images_NCHW, labels.astype(np.int64), names, np.zeros(n, dtype=np.bool_)


def _npz_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """The arrays named images, labels and ids; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"images", "labels"} - set(arrays.files)
            if missing:
                raise BadInput(f"expected arrays images and labels in {path.name}, missing {sorted(missing)}")
            return arrays["images"], arrays["labels"], arrays["ids"] if "ids" in arrays.files else None
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BadInput(f"{path.name} is not an npz file of plain arrays") from error


# ----------------------------------------------------------------------------------------------------------- image folder


def _read_image_folder(directory: Path, class_names: Sequence[str]) -> Read:
    split = {p.name for p in directory.iterdir() if p.is_dir()} <= {"train", "test"} - set(class_names)
    roots = [(directory / "train", False), (directory / "test", True)] if split else [(directory, False)]
    rows = [(p, k, held) for root, held in roots if root.is_dir() for p, k in _labelled_files(root, class_names)]
    if not rows:
        raise BadInput("expected <class>/<image> or train/<class>/<image> in the dataset, found no image")
    images_NCHW = _decode([p for p, _, _ in rows])
    labels_N = np.array([k for _, k, _ in rows], dtype=np.int64)
    ids = tuple(p.relative_to(directory).as_posix() for p, _, _ in rows)
    return images_NCHW, labels_N, ids, np.array([held for _, _, held in rows], dtype=np.bool_)


def _labelled_files(root: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    index_of = {name: k for k, name in enumerate(class_names)}
    rows = []
    paths = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    for i, path in enumerate(paths):
        *folders, _ = path.relative_to(root).parts
        if len(folders) != 1 or path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadInput(
                f"expected <class>/<image file>, found file {i} of {root.name}/, by path, {len(folders)} folders deep, of type "
                f"{path.suffix.lower()!r}"
            )
        if folders[0] not in index_of:
            raise BadInput(f"unknown label: the folder {folders[0]!r} is not one of the {len(class_names)} classes")
        rows.append((path, index_of[folders[0]]))
    return rows


def _decode(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """(N, C, H, W): grey when every file is grey, else RGB. Sizes must agree: scaling is the owner's decision."""
    pictures = [_open(path, i) for i, path in enumerate(paths)]
    mode = "L" if all(p.mode in ("L", "1") for p in pictures) else "RGB"
    first = pictures[0].size
    for i, picture in enumerate(pictures):
        if picture.size != first:
            found = f"{picture.size[0]}x{picture.size[1]}"
            raise BadInput(f"expected every image to be {first[0]}x{first[1]}, the one at position {i} is {found}")
    stack = np.stack([np.asarray(p.convert(mode), dtype=np.uint8) for p in pictures])
    stack_NHWC = stack[..., None] if mode == "L" else stack
    return np.ascontiguousarray(stack_NHWC.transpose(0, 3, 1, 2))


def _open(path: Path, i: int) -> Image.Image:
    """Image i of the dataset. Its path is its id, and no more quoted than any other id."""
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode.startswith(("I", "F")):  # conversion would clip, not scale
                raise BadInput(f"expected 8-bit images, the one at position {i} has mode {picture.mode}")
            return picture.copy()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        reason = type(error).__name__
        raise BadInput(f"the image at position {i} is not a readable image: {reason}") from None  # Pillow's words hold the path
