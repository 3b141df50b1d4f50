"""CIFAR-10 as JPEG images and the public ResNet-20, from the folder that EXPUNGE_DATA names."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ARCHIVE = "cifar10-jpeg.tar.xz"
WEIGHTS = "resnet20-cifar10.safetensors"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DataMissing(Exception):
    """EXPUNGE_DATA names no folder with the CIFAR-10 archive and the public weights."""


@dataclass(frozen=True)
class Cifar:
    """uint8 (60000, 32, 32, 3), labels (60000,), ids `train/cat/0001.jpg`; the test images are held out."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        """(60000,) bool."""
        return np.char.startswith(self.ids, "test/")

    def part(self, per_class: int) -> Cifar:
        """The first `per_class` training images of every class, and a fifth as many test images."""
        keep = np.zeros(len(self.ids), dtype=bool)
        for k in range(len(CLASSES)):
            for held, count in ((False, per_class), (True, max(1, per_class // 5))):
                keep[np.flatnonzero((self.labels == k) & (self.held_out == held))[:count]] = True
        return Cifar(self.images[keep], self.labels[keep], self.ids[keep])


def folder() -> Path:
    """Raises: DataMissing."""
    path = Path(os.environ.get("EXPUNGE_DATA", ""))
    if not os.environ.get("EXPUNGE_DATA") or not all((path / name).is_file() for name in (ARCHIVE, WEIGHTS)):
        raise DataMissing(f"expected EXPUNGE_DATA to name a folder with {ARCHIVE} and {WEIGHTS}")
    return path


def load() -> Cifar:
    """Decode every image, in memory; about half a minute. Raises: DataMissing."""
    rows = []
    with tarfile.open(folder() / ARCHIVE, "r:xz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and member.name.endswith(".jpg") and parts[-3] in ("train", "test"):
                stream = archive.extractfile(member)
                assert stream is not None
                pixels = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))
                rows.append(("/".join(parts[-3:]), CLASSES.index(parts[-2]), pixels))
    rows.sort(key=lambda row: row[0])
    ids, labels, images = zip(*rows, strict=True)
    return Cifar(np.stack(images), np.array(labels, dtype=np.int64), np.array(ids))


def write_resnet20(directory: Path) -> None:
    """The public weights as a model folder of the `classifier` family. Raises: DataMissing."""
    directory.mkdir(parents=True)
    config = {"architecture": "cifar_resnet", "depth": 20, "class_count": 10, "mean": MEAN, "std": STD}
    (directory / "config.json").write_text(json.dumps({**config, "image_size": 32, "channels": 3}))
    (directory / "model.safetensors").write_bytes((folder() / WEIGHTS).read_bytes())
