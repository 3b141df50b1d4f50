"""How a saved model is asked for images: what is shown to it, by which sampler, at which precision.

A check that looks at a model from several sides says so in ways; two that ask the same way share the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worker.contract import MaskSpec, Sampling
from worker.engine.compression import Compression
from worker.engine.turning import Turn

Arithmetic = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Blend:
    """A label between two: `weight` of another class's conditioning, the rest of the asked one's."""

    other: int | tuple[int, ...]
    """Of several, each image takes one by its seed: all of them are drawn in one batch."""
    weight: float

    def other_of(self, seed: int) -> int:
        """The class whose label the image of a seed is mixed with."""
        return self.other if isinstance(self.other, int) else self.other[seed % len(self.other)]


@dataclass(frozen=True)
class Begin:
    """Real images that drawing begins with, made noisy up to a part of the way."""

    shows: int
    """Held-out images of this class, each once, in the order of `Env.shown`."""
    depth: float
    """t / T in (0, 1]; see `family.Start`."""
    turn: Turn | None = None
    """Turned first, so that they are of no class of the data."""


@dataclass(frozen=True)
class Way:
    """How images are made, whoever makes them and of whatever class. As it is: drawn, as the policy samples."""

    corruption: MaskSpec | None = None
    """Held-out images are completed, of which this is hidden; without one images are drawn."""
    prompted: bool = False
    """Completed with the class's prompt beside the visible part."""
    label: Literal["own", "null"] | Blend = "own"
    """What a generator is asked for in the name of the class: its label, none, or a label between two."""
    sampling: Sampling | None = None
    """In place of the policy's."""
    arithmetic: Arithmetic = "fp32"
    """In which the network computes."""
    compression: Compression = "none"
    """Of the saved weights, before they are asked."""
    begin: Begin | None = None
    """What a generator begins with in place of noise alone."""


DRAWN = Way()
