"""The scans, as the service sees them. Imports no torch, so that laying out the example takes a second.

Source: `sklearn.datasets.load_digits`, 1,797 scans of 8x8 pixels with values 0-16 (UCI Optical Recognition of
Handwritten Digits, test part).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CLASS_NAMES = tuple(str(digit) for digit in range(10))
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0


def scans() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """All scans: images uint8 (1797, 8, 8) in [0, 255], labels int64 (1797,), ids (1797,) `scan-0000`…"""
    digits = load_digits()
    images_NHW = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    ids_N = np.array([f"scan-{i:04d}" for i in range(len(images_NHW))])
    return images_NHW, digits.target.astype(np.int64), ids_N


def held_out_indices() -> NDArray[np.int64]:
    """The 360 scans (a fixed, class-balanced 20 %) that nothing ever trains on, in index order."""
    labels_N = scans()[1]
    _, held_out = train_test_split(
        np.arange(len(labels_N)), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels_N
    )
    return np.sort(held_out).astype(np.int64)
