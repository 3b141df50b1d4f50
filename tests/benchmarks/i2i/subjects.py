"""The images of the benchmark and how they are split: four classes to forget, four to retain, two that may stand in.

Interleaved, every forgotten class has a retained one that looks like it; apart, animals are forgotten and vehicles retained
(of digits: round ones and straight ones).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.sfron import cifar
from worker.contract import RetainData
from worker.examples.digits.data import CLASS_NAMES as DIGITS
from worker.examples.digits.data import scans


@dataclass(frozen=True)
class Split:
    """Class indices of each part."""

    name: str
    forget: tuple[int, ...]
    retain: tuple[int, ...]
    proxy: tuple[int, ...]

    @property
    def real(self) -> RetainData:
        """Real retained images; the proxy classes are set aside, so that both ways of retaining are tested on the same."""
        return RetainData(classes=self.retain, proxy_classes=self.proxy)

    @property
    def stand_in(self) -> RetainData:
        """No retained image at all."""
        return RetainData(real=0, proxy_classes=self.proxy)


def _split(name: str, among: Sequence[str], forget: str, retain: str) -> Split:
    chosen = [tuple(among.index(k) for k in names.split()) for names in (forget, retain)]
    rest = tuple(k for k in range(len(among)) if k not in chosen[0] + chosen[1])
    return Split(name, *chosen, proxy=rest)


INTERLEAVED, APART = "interleaved", "apart"
CIFAR_SPLITS: Mapping[str, Split] = {
    INTERLEAVED: _split(INTERLEAVED, cifar.CLASSES, "automobile cat deer ship", "truck dog horse airplane"),
    APART: _split(APART, cifar.CLASSES, "cat deer dog horse", "airplane automobile ship truck"),
}
DIGIT_SPLITS: Mapping[str, Split] = {
    INTERLEAVED: _split(INTERLEAVED, DIGITS, "1 3 4 6", "7 8 9 0"),
    APART: _split(APART, DIGITS, "0 6 8 9", "1 2 4 7"),
}


@dataclass(frozen=True)
class Images:
    """uint8 (N, H, W, C) or (N, H, W), labels (N,), unique ids (N,), and which of them nothing trains on."""

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    held_out: np.ndarray
    class_names: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        for array in (self.images, self.labels, self.ids, self.held_out):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def held_out_ids(self) -> tuple[str, ...]:
        """Ids of what nothing trains on."""
        return tuple(self.ids[self.held_out].tolist())

    def part(self, train: int | None, held_out: int | None = None) -> Images:
        """The first so many images of every class; None: all of them."""
        keep = np.zeros(len(self.ids), dtype=bool)
        for k in range(len(self.class_names)):
            for held, count in ((False, train), (True, held_out)):
                keep[np.flatnonzero((self.labels == k) & (self.held_out == held))[:count]] = True
        return self._only(keep)

    def training(self, without: Sequence[int] = ()) -> Images:
        """What a model is trained on that never sees some classes."""
        return self._only(~self.held_out & ~np.isin(self.labels, without))

    def _only(self, keep: np.ndarray) -> Images:
        parts = {name: getattr(self, name)[keep] for name in ("images", "labels", "ids", "held_out")}
        return replace(self, **parts)

    @property
    def images_NCHW(self) -> Tensor:
        """uint8."""
        images_NHWC = torch.from_numpy(self.images if self.images.ndim == 4 else self.images[..., None])
        return images_NHWC.permute(0, 3, 1, 2).contiguous()


def cifar_images() -> Images:
    """CIFAR-10; its test images are held out. Raises: cifar.DataMissing."""
    data = cifar.load()
    return Images(data.images, data.labels, data.ids, data.held_out, cifar.CLASSES)


def digit_images(share: float = 0.4) -> Images:
    """The 1,797 scans of 8x8 pixels; of every class the same share is held out, more than elsewhere, for its bounds' sake."""
    images, labels, ids = scans()
    order = np.random.default_rng(0).permutation(len(ids))
    held_out = np.zeros(len(ids), dtype=bool)
    for k in range(len(DIGITS)):
        of_class = order[labels[order] == k]
        held_out[of_class[: round(share * len(of_class))]] = True
    return Images(images, labels, ids, held_out, DIGITS)


def random_images(side: int, channels: int, train: int, held_out: int) -> Images:
    """Noise around a colour of the class: for runs that are to show that they run."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(10), train + held_out)
    middle = rng.integers(64, 192, (10, 1, 1, channels))
    images = np.clip(middle[labels] + rng.normal(0, 24, (len(labels), side, side, channels)), 0, 255).astype(np.uint8)
    ids = np.array([f"item-{i:05d}" for i in range(len(labels))])
    return Images(images, labels, ids, np.arange(len(labels)) >= 10 * train, cifar.CLASSES)
