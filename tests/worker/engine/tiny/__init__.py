"""A tiny model of every family, so that conformance suites find their subjects: one file a family, named after it.

Each file has a `CASE`. A family without one fails the suites.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.engine import registry

NAMES = ("rows", "columns", "diagonal", "blank")


@dataclass(frozen=True)
class Case:
    """How to write the model folder, and the images it works on."""

    write: Callable[[Path], None]
    """Seeded: the same bytes every time."""
    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


def case(family: str) -> Case:
    found: Case = importlib.import_module(f"tests.worker.engine.tiny.{family}").CASE
    return found


def families() -> list[str]:
    return sorted(registry.families())


def striped(per_class: int = 12, *, channels: int = 1, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N,H,W] or [N,H,W,3] and labels [N]; class k has its own pattern, an image its own noise."""
    noise = np.random.default_rng(5)
    y, x = np.mgrid[:side, :side]
    patterns = (y % 2, x % 2, (x + y) % 3 == 0, np.zeros_like(x))
    labels = np.repeat(np.arange(len(NAMES)), per_class)
    shape = (len(labels), side, side) if channels == 1 else (len(labels), side, side, channels)
    clean = np.stack([200 * patterns[k] for k in labels]).reshape(*shape[:3], *([1] if channels > 1 else []))
    return (clean + noise.integers(0, 50, shape)).astype(np.uint8), labels.astype(np.int64)
