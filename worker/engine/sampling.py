"""Drawing images from saved models, shared out over the ranks.

The first rank asks, every rank draws its rows, the first rank gathers. The other ranks only `serve`: which checks run, and
in which order, is decided in one place, so no two ranks can disagree about the next collective.

Shapes: B images of one request, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import hmac
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from worker.contract import Sampling
from worker.engine.distributed import Ranks
from worker.engine.errors import EngineError, OutOfMemory, is_out_of_memory
from worker.engine.family import Family, Generator, Kind

PATIENCE = timedelta(hours=24)
"""How long a rank waits for the first one to ask: training a judge on a large dataset takes longer than a collective."""


class SamplingFailed(EngineError):
    """A saved model could not be loaded, drawn from or asked. Says why; crosses ranks, as not every error can be pickled."""


class MissingSamples(SamplingFailed):
    """A model gave fewer images than were asked for, or something that is not an image."""


def sample_seed(verification_seed: int, class_index: int, index: int) -> int:
    """The noise seed of one image, in [0, 2^63): the same for every subject, so that subjects are compared on equal noise.

    HMAC-SHA256 of the class and the index under the verification seed: knowing some seeds tells nothing of the others.
    """
    message = f"sample/{class_index}/{index}".encode()
    mac = hmac.digest(str(verification_seed).encode(), message, hashlib.sha256)
    return int.from_bytes(mac[:8], "big") >> 1


class Studio:
    """Loads saved models by folder and draws images from them.

    Args:
        family: how the folders are loaded.
        folders: subject name -> folder; only these can be drawn from.
        image_shape: (C, H, W) that every sample must have.
    """

    def __init__(
        self,
        family: type[Family],
        folders: Mapping[str, Path],
        *,
        labels: Sequence[str],
        image_shape: tuple[int, int, int],
        sampling: Sampling,
        ranks: Ranks,
    ) -> None:
        self._family = family
        self._folders = dict(folders)
        self._labels = tuple(labels)
        self._image_shape = image_shape
        self._sampling = sampling
        self._ranks = ranks
        self._loaded: dict[str, Family] = {}
        # Commands and uint8 images travel over gloo even between GPUs: nccl would need them on the device.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if ranks.world > 1 else None

    @property
    def round_size(self) -> int:
        """Images that all ranks together draw in one network batch each."""
        return self._sampling.batch_size * self._ranks.world

    @property
    def kind(self) -> Kind:
        """Of the models: what may be asked of them."""
        return self._family.kind

    def load(self, subject: str) -> Family:
        """The subject's model, loaded once from its saved files on this rank.

        Raises:
            BadModel: the files are not a finite model of this family.
        """
        if subject not in self._loaded:
            folder = self._folders[subject]
            self._loaded[subject] = self._family.load(folder, labels=self._labels, device=self._ranks.device)
        return self._loaded[subject]

    def draw(self, subject: str, labels: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """First rank only: uint8 (B, C, H, W) images on the CPU, one per label and seed, in their order.

        Raises:
            MissingSamples: fewer images came, or images of another shape or dtype.
            SamplingFailed: a rank cannot load the subject, or a pixel is NaN or infinite.
            OutOfMemory: a rank's device is too small.
        """
        command = (subject, list(labels), list(seeds))
        self._broadcast(command)
        answers = self._gather(self._attempt(*command))
        for answer in answers:
            if isinstance(answer, EngineError):
                raise answer
        images_BCHW = torch.cat([answer for answer in answers if isinstance(answer, Tensor)])
        expected = (len(labels), *self._image_shape)
        if tuple(images_BCHW.shape) != expected or images_BCHW.dtype != torch.uint8:
            raise MissingSamples(
                f"expected uint8 samples {list(expected)} of {subject}, got {images_BCHW.dtype} {list(images_BCHW.shape)}"
            )
        return images_BCHW

    def serve(self) -> Any:
        """Every rank but the first: draw what is asked until the first rank closes; returns its closing word."""
        while True:
            command = self._broadcast(None)
            if "closed" in command:
                return command["closed"]
            self._gather(self._attempt(*command["draw"]))

    def close(self, word: Any = None) -> None:
        """First rank only: release the others; `word` is what their `serve` returns."""
        if self._ranks.world > 1:
            dist.broadcast_object_list([{"closed": word}], src=0, group=self._group)

    def _broadcast(self, command: tuple[str, list[int], list[int]] | None) -> Any:
        carrier = [{"draw": command}]
        if self._ranks.world > 1:
            dist.broadcast_object_list(carrier, src=0, group=self._group)
        return carrier[0]

    def _gather(self, answer: Tensor | EngineError) -> list[Tensor | EngineError]:
        if self._ranks.world == 1:
            return [answer]
        answers: list[Any] | None = [None] * self._ranks.world if self._ranks.first else None
        dist.gather_object(answer, answers, dst=0, group=self._group)
        return answers or []

    def _attempt(self, subject: str, labels: list[int], seeds: list[int]) -> Tensor | EngineError:
        """This rank's rows, or the error: it must reach the first rank, who would else wait for images for ever."""
        rows = self._ranks.rows(len(labels))
        try:
            label_B = torch.tensor(labels[rows], dtype=torch.int64)
            images_BCHW = cast(Generator, self.load(subject)).sample(label_B, seeds[rows], sampling=self._sampling)
        except EngineError as error:
            return SamplingFailed(f"no samples of the {subject}: {error}")
        except Exception as error:
            if is_out_of_memory(error):
                return OutOfMemory(f"the device ran out of memory while drawing {len(labels[rows])} images of {subject}")
            traceback.print_exc()
            return SamplingFailed(f"no samples of the {subject}: unexpected {type(error).__name__}; the log has the details")
        if len(images_BCHW) != len(label_B):
            return MissingSamples(f"expected {len(label_B)} samples of {subject} from a rank, got {len(images_BCHW)}")
        return images_BCHW
