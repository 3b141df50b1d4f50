"""Drawing images from saved models, or having them completed, shared out over the ranks.

The first rank asks, every rank draws its rows, the first rank gathers. The other ranks only `serve`: which checks run, and
in which order, is decided in one place, so no two ranks can disagree about the next collective.

Shapes: B images of one request, C channels, H height, W width; h, w cells.
"""

from __future__ import annotations

import hashlib
import hmac
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from worker.contract import MaskSpec, Sampling
from worker.engine import corruption
from worker.engine.compression import Compression, compress
from worker.engine.data import Dataset
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, EngineError, OutOfMemory, is_out_of_memory
from worker.engine.family import Family, Generator, ImageToImage, Kind, Start
from worker.engine.turning import turned
from worker.engine.ways import DRAWN, Arithmetic, Blend, Way

PATIENCE = timedelta(hours=24)
"""How long a rank waits for the first one to ask: training a judge on a large dataset takes longer than a collective."""


ERASED = 128
"""What stands under a hidden cell of an image that a model is given. A model that looks there finds nothing."""


class SamplingFailed(EngineError):
    """A saved model could not be loaded, drawn from or asked. Says why; crosses ranks, as not every error can be pickled."""


class MissingSamples(SamplingFailed):
    """A model gave fewer images than were asked for, or something that is not an image."""


def sample_seed(verification_seed: int, class_index: int, index: int) -> int:
    """The noise seed of one image, in [0, 2^63): the same for every subject, so that subjects are compared on equal noise.

    HMAC-SHA256 of the class and the index under the verification seed: knowing some seeds tells nothing of the others.
    """
    return _seed(verification_seed, f"sample/{class_index}/{index}")


def completion_seed(verification_seed: int, spec: MaskSpec, item: str) -> int:
    """The seed of an item's mask under a corruption, and of a model's noise in it, in [0, 2^63): the same for every subject.

    As `sample_seed`, of the corruption and the item's id.
    """
    return _seed(verification_seed, f"completion/{spec.kind}/{spec.ratio!r}/{spec.seed}/{item}")


def _seed(verification_seed: int, message: str) -> int:
    mac = hmac.digest(str(verification_seed).encode(), message.encode(), hashlib.sha256)
    return int.from_bytes(mac[:8], "big") >> 1


class Studio:
    """Loads saved models by folder, draws images from them, or has them complete images of the dataset.

    Args:
        family: how the folders are loaded.
        folders: subject name -> folder; only these can be drawn from.
        dataset: of its shape every sample must be; its images are those that are completed.
    """

    def __init__(
        self,
        family: type[Family],
        folders: Mapping[str, Path],
        *,
        labels: Sequence[str],
        dataset: Dataset,
        sampling: Sampling,
        ranks: Ranks,
    ) -> None:
        self._family = family
        self._folders = dict(folders)
        self._labels = tuple(labels)
        self._dataset = dataset
        self._sampling = sampling
        self._ranks = ranks
        self._loaded: dict[tuple[str, Compression], Family] = {}
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

    def load(self, subject: str, compression: Compression = "none") -> Family:
        """The subject's model, loaded once from its saved files on this rank.

        Raises:
            BadModel: the files are not a finite model of this family.
        """
        key = (subject, compression)
        if key not in self._loaded:
            family = self.fresh(subject)
            compress(family.module, compression)
            if compression != "none":  # one at a time: a sweep would else hold as many networks as it has settings
                self._loaded = {known: f for known, f in self._loaded.items() if known[1] == "none"}
            self._loaded[key] = family
        return self._loaded[key]

    def fresh(self, subject: str) -> Family:
        """The subject's model, loaded anew. Raises: BadModel, as `load`."""
        return self._family.load(self._folders[subject], labels=self._labels, device=self._ranks.device)

    def draw(
        self,
        subject: str,
        labels: Sequence[int],
        seeds: Sequence[int],
        *,
        way: Way = DRAWN,
        begun: Sequence[int] = (),
        rows_MX: Tensor | None = None,
    ) -> Tensor:
        """First rank only: uint8 (B, C, H, W) images on the CPU, one per label and seed, in their order.

        Args:
            way: by which sampler, under which label in the class's name, at which precision.
            begun: positions in the dataset of the images that each begins with, where the way says so.
            rows_MX: labels of others, on the CPU: `labels` then says which row of these is asked for; see
                `Generator.with_labels`.

        Raises:
            MissingSamples: fewer images came, or images of another shape or dtype.
            SamplingFailed: a rank cannot load the subject, or a pixel is NaN or infinite.
            OutOfMemory: a rank's device is too small.
        """
        return self._asked("draw", len(labels), subject, way, list(labels), list(seeds), list(begun), rows_MX)

    def complete(
        self, subject: str, indices: Sequence[int], hidden_Bhw: Tensor, seeds: Sequence[int], *, way: Way = DRAWN
    ) -> Tensor:
        """First rank only: uint8 (B, C, H, W) items of the dataset on the CPU, completed by the subject where they are hidden.

        The subject is not shown what it is to complete: it is erased before.

        Args:
            indices: positions in the dataset.
            hidden_Bhw: bool over the cells of this family, equally many in each image.
            way: with or without the prompts of the classes that they show, and at which precision.

        Raises:
            MissingSamples: as `draw`; or a visible pixel is not as it was given.
            SamplingFailed, OutOfMemory: as `draw`.
        """
        images_BCHW = self._asked("complete", len(indices), subject, way, list(indices), hidden_Bhw, list(seeds))
        height = images_BCHW.shape[-2]
        covered_B1HW = corruption.pixels(hidden_Bhw, height // hidden_Bhw.shape[1]).expand_as(images_BCHW)
        if not torch.equal(images_BCHW[~covered_B1HW], self._dataset.images_NCHW[list(indices)][~covered_B1HW]):
            raise MissingSamples(f"expected visible pixels as they were given to the {subject}, found others")
        return images_BCHW

    def serve(self) -> Any:
        """Every rank but the first: draw what is asked until the first rank closes; returns its closing word."""
        while True:
            wish, *arguments = self._broadcast(())
            if wish == "closed":
                return arguments[0]
            self._gather(self._attempt(wish, *arguments))

    def close(self, word: Any = None) -> None:
        """First rank only: release the others; `word` is what their `serve` returns."""
        self._broadcast(("closed", word))

    def _asked(self, wish: str, count: int, subject: str, way: Way, *arguments: Any) -> Tensor:
        """What all ranks together make of a wish."""
        self._broadcast((wish, count, subject, way, *arguments))
        answers = self._gather(self._attempt(wish, count, subject, way, *arguments))
        for answer in answers:
            if isinstance(answer, EngineError):
                raise answer
        images_BCHW = torch.cat([answer for answer in answers if isinstance(answer, Tensor)])
        expected = (count, *self._dataset.image_shape)
        if tuple(images_BCHW.shape) != expected or images_BCHW.dtype != torch.uint8:
            raise MissingSamples(
                f"expected uint8 samples {list(expected)} of {subject}, got {images_BCHW.dtype} {list(images_BCHW.shape)}"
            )
        return images_BCHW

    def _broadcast(self, command: tuple[Any, ...]) -> tuple[Any, ...]:
        carrier = [command]
        if self._ranks.world > 1:
            dist.broadcast_object_list(carrier, src=0, group=self._group)
        return carrier[0]

    def _gather(self, answer: Tensor | EngineError) -> list[Tensor | EngineError]:
        if self._ranks.world == 1:
            return [answer]
        answers: list[Any] | None = [None] * self._ranks.world if self._ranks.first else None
        dist.gather_object(answer, answers, dst=0, group=self._group)
        return answers or []

    def _attempt(self, wish: str, count: int, subject: str, way: Way, *arguments: Any) -> Tensor | EngineError:
        """This rank's rows, or the error: it must reach the first rank, who would else wait for images for ever."""
        rows = self._ranks.rows(count)
        expected = len(range(count)[rows])
        work: Callable[..., Tensor] = {"draw": self._drawn, "complete": self._completed}[wish]
        try:
            with _computing(way.arithmetic, self._ranks.device):
                images_BCHW = work(self.load(subject, way.compression), rows, way, *arguments)
        except EngineError as error:
            return SamplingFailed(f"no samples of the {subject}: {error}")
        except Exception as error:
            if is_out_of_memory(error):
                return OutOfMemory(f"the device ran out of memory while drawing {expected} images of {subject}")
            traceback.print_exc()
            return SamplingFailed(f"no samples of the {subject}: unexpected {type(error).__name__}; the log has the details")
        if len(images_BCHW) != expected:
            return MissingSamples(f"expected {expected} samples of {subject} from a rank, got {len(images_BCHW)}")
        return images_BCHW

    def _drawn(
        self,
        family: Family,
        rows: slice,
        way: Way,
        labels: list[int],
        seeds: list[int],
        begun: list[int],
        rows_MX: Tensor | None,
    ) -> Tensor:
        model, label_B = cast(Generator, family), torch.tensor(labels[rows], dtype=torch.int64)
        if rows_MX is not None:
            model, label_B = model.with_labels(rows_MX), model.label_count + label_B
        else:
            model, label_B = asked_for(model, way.label, label_B, seeds[rows])
        sampling = way.sampling or self._sampling
        if way.begin is None:
            return model.sample(label_B, seeds[rows], sampling=sampling)
        images_BCHW = self._dataset.images_NCHW[begun[rows]]
        if way.begin.turn is not None:
            images_BCHW = turned(images_BCHW, way.begin.turn)
        return model.sample(label_B, seeds[rows], sampling=sampling, start=Start(images_BCHW, way.begin.depth))

    def _completed(
        self, family: Family, rows: slice, way: Way, indices: list[int], hidden_Bhw: Tensor, seeds: list[int]
    ) -> Tensor:
        model, index_B = cast(ImageToImage, family), torch.tensor(indices[rows], dtype=torch.int64)
        given_BCHW = self._dataset.images_NCHW[index_B]
        if not len(given_BCHW):
            return given_BCHW
        hidden_Bhw = hidden_Bhw[rows]
        erased_BCHW = given_BCHW.masked_fill(corruption.pixels(hidden_Bhw, model.cell), ERASED)
        y_B = self._dataset.labels_N[index_B] if way.prompted else None
        return model.complete(erased_BCHW, hidden_Bhw, seeds[rows], sampling=self._sampling, y_B=y_B)


def asked_for(
    model: Generator, label: Literal["own", "null"] | Blend, y_B: Tensor, seeds: Sequence[int]
) -> tuple[Generator, Tensor]:
    """The model, and the labels to ask it for in the name of these classes. Raises: BadInput: it has no null label."""
    if label == "own":
        return model, y_B
    if label == "null":
        if model.null_label is None:
            raise BadInput("expected a model with a null label, to be asked without a class; this one has none")
        return model, torch.full_like(y_B, model.null_label)
    if not len(y_B):  # a rank without a row to draw
        return model, y_B
    other_B = torch.tensor([label.other_of(seed) for seed in seeds], dtype=torch.int64)
    pairs_M2, which_B = torch.stack([y_B, other_B], dim=1).unique(dim=0, return_inverse=True)
    own_MX, other_MX = model.conditioning(pairs_M2[:, 0]), model.conditioning(pairs_M2[:, 1])
    return model.with_labels((1 - label.weight) * own_MX + label.weight * other_MX), model.label_count + which_B


def _computing(arithmetic: Arithmetic, device: torch.device) -> AbstractContextManager[object]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
