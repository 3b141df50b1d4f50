"""What the checks have saved models draw or complete: each image once, in full batches, kept for whoever asks next.

Shapes: N images, C channels, H height, W width, h, w cells of a mask, M labels, X their width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from worker.contract import MaskSpec, Spec
from worker.engine import corruption as masks
from worker.engine.data import Dataset
from worker.engine.errors import EngineError, OutOfMemory
from worker.engine.events import Progress
from worker.engine.family import ImageToImage
from worker.engine.region import Region
from worker.engine.sampling import SamplingFailed, Studio, completion_seed, sample_seed
from worker.engine.streams import generator
from worker.engine.ways import DRAWN, Way

Subject = Literal["candidate", "original", "parent", "reference"]


@dataclass(frozen=True)
class Need:
    """Images that a check will ask for: said beforehand, so that progress has a total and batches are full."""

    subject: Subject
    class_index: int
    n: int
    way: Way = DRAWN
    """Of completions, the class's first n in `Env.shown` are completed, or as many as there are; so of images to begin with."""

    @property
    def taken_from(self) -> int | None:
        """The class whose held-out images a sample is made of; None: of noise alone."""
        if self.way.begin is not None:
            return self.way.begin.shows
        return None if self.way.corruption is None else self.class_index


Key = tuple[Subject, int, Way]
"""Whose images of which class, made how."""


class Samples:
    """Images of saved models by subject, class and way. Image i of a class has the same noise whoever makes it."""

    def __init__(self, spec: Spec, dataset: Dataset, studio: Studio, progress: Progress) -> None:
        self._spec, self._dataset, self._studio, self._progress = spec, dataset, studio, progress
        self._kept: dict[Key, Tensor] = {}

    def resolved(self, subject: Subject) -> Subject:
        """A first request's parent *is* the original: the same bytes are loaded and drawn from once."""
        same = self._spec.base_digest == self._spec.original_digest
        return "original" if subject == "parent" and same else subject

    def missing(self, needs: Iterable[Need]) -> dict[Key, int]:
        """How many images of these are still to be made."""
        wanted: dict[Key, int] = {}
        for need in needs:
            key = (self.resolved(need.subject), need.class_index, need.way)
            there_are = need.n if need.taken_from is None else len(self.shown(need.taken_from, need.n))
            wanted[key] = max(wanted.get(key, 0), there_are)
        more = {key: n - len(self._kept.get(key, ())) for key, n in wanted.items()}
        return {key: n for key, n in more.items() if n > 0}

    def prefetch(self, needs: Iterable[Need]) -> None:
        """Make what is missing of these in full batches, one subject after the other.

        Raises:
            SamplingFailed: a subject cannot be loaded or asked, or gave too few images.
        """
        missing = self.missing(needs)
        for subject, way in sorted(dict.fromkeys((s, way) for s, _, way in missing), key=lambda group: group[0]):
            self._make(subject, way, {k: n for (s, k, w), n in missing.items() if (s, w) == (subject, way)})

    def of(self, need: Need) -> Tensor:
        """(n, C, H, W) uint8: what is needed, out of what is there already and the rest. Raises: as `prefetch`."""
        self.prefetch([need])
        return self._kept[self.resolved(need.subject), need.class_index, need.way][: need.n]

    def under(self, subject: Subject, rows_MX: Tensor, class_index: int, n: int) -> Tensor:
        """(M, n, C, H, W) uint8: the first n images drawn under each of M labels that are not the model's own.

        Image i has the same noise under all, that of the class's own samples. Nothing is kept. Raises: as `prefetch`.
        """
        wanted = [(m, i) for m in range(len(rows_MX)) for i in range(n)]
        rows_MX, parts = rows_MX.detach().cpu(), []
        self._progress.expect(len(wanted))
        for begin in range(0, len(wanted), self._studio.round_size):
            chunk = wanted[begin : begin + self._studio.round_size]
            self._progress.advance(0)
            seeds = [sample_seed(self._spec.verification_seed, class_index, i) for _, i in chunk]
            parts.append(self._studio.draw(self.resolved(subject), [m for m, _ in chunk], seeds, rows_MX=rows_MX))
            self._progress.advance(len(chunk))
        return torch.cat(parts).unflatten(0, (len(rows_MX), n))

    # -------------------------------------------------------------------------------------------- the images to complete

    def shown(self, class_index: int, n: int | None = None) -> Tensor:
        """Positions (int64) of the first n held-out images of a class, in an order that follows from the verification seed.

        All that there are, where they are fewer.
        """
        held_N = self._dataset.held_out_of([class_index])
        source = generator(self._spec.verification_seed, "held-out", class_index)
        return held_N[torch.randperm(len(held_N), generator=source)][:n]

    def hidden(self, corruption: MaskSpec, indices: list[int]) -> Tensor:
        """bool (N, h, w): what is hidden of these items of the dataset. Raises: SamplingFailed; see `Env.hidden`."""
        region = self.region(corruption)
        try:
            grid = masks.grid_of(self._dataset.image_shape[1:], region.cell)
            return masks.masks(corruption, grid, self._mask_seeds(corruption, indices))
        except EngineError as error:
            raise SamplingFailed(f"no image can be hidden as the policy says: {error}") from error

    def region(self, corruption: MaskSpec) -> Region:
        """What a corruption hides of an image, in the cells of this lineage's models. Raises: SamplingFailed."""
        try:
            cell = cast(ImageToImage, self._studio.load("original")).cell
        except OutOfMemory:
            raise
        except EngineError as error:
            raise SamplingFailed(f"no completions of the original: {error}") from error
        return Region(corruption, cell)

    # --------------------------------------------------------------------------------------------------------- the making

    def _make(self, subject: Subject, way: Way, missing: dict[int, int]) -> None:
        have = {k: len(self._kept.get((subject, k, way), ())) for k in missing}
        wanted = [(k, i) for k, n in missing.items() for i in range(have[k], have[k] + n)]
        parts = []
        for begin in range(0, len(wanted), self._studio.round_size):
            chunk = wanted[begin : begin + self._studio.round_size]
            self._progress.advance(0)
            parts.append(self._draw(subject, chunk, way) if way.corruption is None else self._complete(subject, chunk, way))
            self._progress.advance(len(chunk))
        for k, new in zip(missing, torch.cat(parts).split(list(missing.values())), strict=True):
            old = self._kept.get((subject, k, way))
            self._kept[subject, k, way] = new if old is None else torch.cat([old, new])

    def _draw(self, subject: Subject, chunk: list[tuple[int, int]], way: Way) -> Tensor:
        seeds = [sample_seed(self._spec.verification_seed, k, i) for k, i in chunk]
        begun = [] if way.begin is None else self.shown(way.begin.shows)[[i for _, i in chunk]].tolist()
        return self._studio.draw(subject, [k for k, _ in chunk], seeds, way=way, begun=begun)

    def _complete(self, subject: Subject, chunk: list[tuple[int, int]], way: Way) -> Tensor:
        corruption = way.corruption
        assert corruption is not None
        shown = {k: self.shown(k).tolist() for k, _ in chunk}
        indices = [shown[k][i] for k, i in chunk]
        hidden_Nhw = self.hidden(corruption, indices)
        return self._studio.complete(subject, indices, hidden_Nhw, self._mask_seeds(corruption, indices), way=way)

    def _mask_seeds(self, corruption: MaskSpec, indices: list[int]) -> list[int]:
        return [completion_seed(self._spec.verification_seed, corruption, self._dataset.ids[i]) for i in indices]
