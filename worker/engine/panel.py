"""The judges that verification asks: one, or two of different architectures where the policy says so.

Where there are two, an image shows a class if either says so, and is recognised as its class if both do: each time the word
that is worse for the candidate counts.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from worker.contract import JudgePolicy, MaskSpec
from worker.engine import judge as judges
from worker.engine.data import Dataset
from worker.engine.events import Events
from worker.engine.judge import Judge, Judged
from worker.engine.judge_networks import FIRST, SECOND, Seat
from worker.engine.region import Region

SLACK = 0.03
"""Above the judges' false alarms on real images, where a policy names none: samples are harder to judge."""

Opinions = tuple[Judged, ...]
"""What each judge says of the same images."""


class Panel:
    """Every judge is made when it is first asked, from the cache if it proves itself, and then kept."""

    def __init__(
        self, dataset: Dataset, dataset_digest: str, policy: JudgePolicy, folder: Path, device: torch.device, events: Events
    ) -> None:
        self._dataset, self._digest, self._policy = dataset, dataset_digest, policy
        self._folder, self._device, self._events = folder, device, events
        self._judges: dict[tuple[Seat, MaskSpec | None], Judge] = {}
        self._real: dict[int, Opinions] = {}

    def of(self, seat: Seat, region: Region | None = None) -> Judge:
        """The judge of a seat, of whole images or of what a corruption hides. Raises: JudgeUnfit."""
        key = (seat, None if region is None else region.corruption)
        if key not in self._judges:
            began = time.monotonic()
            judge, origin = judges.obtain(self._dataset, self._digest, self._policy, self._folder, self._device, region, seat)
            self._judges[key] = judge
            seconds = round(time.monotonic() - began, 3)
            note: dict[str, JsonValue] = {
                "judge": origin,
                "name": judge.record.name,
                "accuracy": judge.record.held_out_accuracy,
                "seconds": seconds,
            }
            self._events.note(note if region is None else {**note, "region": region.name})
        return self._judges[key]

    @property
    def all(self) -> tuple[Judge, ...]:
        """Those of whole images that the policy asks for, the first one first. Raises: JudgeUnfit."""
        return tuple(self.of(seat) for seat in (FIRST, SECOND)[: self._policy.judges])

    @property
    def used(self) -> tuple[Judge, ...]:
        """Those that were asked."""
        return tuple(self._judges.values())

    def look(self, images_NCHW: Tensor) -> Opinions:
        """What each judge says of uint8 images. Raises: JudgeUnfit."""
        return tuple(judge.look(images_NCHW) for judge in self.all)

    def held_out(self, class_index: int) -> Opinions:
        """The same of the held-out real images of a class, in the dataset's order. Raises: JudgeUnfit."""
        if class_index not in self._real:
            self._real[class_index] = self.look(self._dataset.images_NCHW[self._dataset.held_out_of([class_index])])
        return self._real[class_index]

    @property
    def slack(self) -> float:
        """Above their false alarms on real images, how often samples may show a class that is not there."""
        return SLACK if self._policy.slack is None else self._policy.slack

    def false_positive_rate(self, class_index: int) -> float:
        """Share of the held-out real images of all other classes that show the class, 0-1. Raises: JudgeUnfit."""
        others = [k for k in range(len(self._dataset.class_names)) if k != class_index]
        shown_N = torch.cat([shows(self.held_out(k), class_index) for k in others])
        return float(shown_N.double().mean())


def shows(opinions: Opinions, class_index: int) -> Tensor:
    """bool (N,): does any judge take the image for the class before all others?"""
    return torch.stack([judged.predicted_N == class_index for judged in opinions]).any(dim=0)


def recognised(opinions: Opinions, class_index: int) -> Tensor:
    """bool (N,): does every judge?"""
    return torch.stack([judged.predicted_N == class_index for judged in opinions]).all(dim=0)
