"""The protocol of a check, and what a check may ask of the stage that runs it.

Subjects: the candidate is what was saved and may be published; the parent is the version it was made from (the reference
for utility); the original is the lineage's root, before any forgetting (the control: it must fail).

Shapes: N images, C channels, H height, W width, h, w cells of a mask, K classes, D judge features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol, Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from worker.contract import Curve, FileEntry, Finding, JobDirectory, MaskSpec, Spec, Tier
from worker.engine import corruption as masks
from worker.engine import panel, registry
from worker.engine.compression import Compression
from worker.engine.data import Dataset
from worker.engine.errors import BadInput, EngineError, OutOfMemory
from worker.engine.events import Events, Progress
from worker.engine.family import Classifier, Family, Kind
from worker.engine.features import features_of
from worker.engine.judge import Judge, Judged
from worker.engine.judge_networks import FIRST
from worker.engine.panel import Opinions, Panel
from worker.engine.region import Region
from worker.engine.samples import Need as Need
from worker.engine.samples import Samples
from worker.engine.samples import Subject as Subject
from worker.engine.sampling import SamplingFailed, Studio
from worker.engine.statistics import ALPHA
from worker.engine.ways import DRAWN, Way


class Params(BaseModel):
    """Base of a check's thresholds: unknown names are refused, and ranges become the API's JSON schema.

    A field called `n`, or `n_…`, says how many samples to take, and no other is called so: another look doubles them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def doubled(self) -> Self | None:
        """The same thresholds with twice the samples; None where none are counted here, or so many are out of range."""
        counts = {name: 2 * n for name, n in self if (name == "n" or name.startswith("n_")) and n is not None}
        if not counts:
            return None
        try:
            return self.model_validate({**self.model_dump(), **counts})
        except ValidationError:
            return None


class Verifier(Protocol):
    """One check of a policy. Files in `verifiers/` each hold one; made with its parsed `Params`."""

    name: ClassVar[str]
    """API name; the file is called the same."""
    title: ClassVar[str]
    tier: ClassVar[Tier]
    kinds: ClassVar[tuple[Kind, ...]]
    """Kinds of families that it can measure."""
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any) -> None: ...

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """The samples that `run` will ask for.

        Raises:
            BadInput: thresholds that no result could meet with so few samples.
        """
        ...

    def run(self, env: Env) -> tuple[Finding, ...]:
        """Measure. At least one finding must gate.

        Raises:
            EngineError: it could not be measured; the verdict is then ERROR, never PASS.
        """
        ...


class Env:
    """What the checks share on the first rank: saved models, samples, the judge, answers. Nothing is drawn or asked twice."""

    def __init__(
        self,
        *,
        job: JobDirectory,
        spec: Spec,
        dataset: Dataset,
        studio: Studio,
        device: torch.device,
        candidate_files: tuple[FileEntry, ...],
        promised_files: tuple[FileEntry, ...],
        events: Events,
    ) -> None:
        self.job, self.spec, self.dataset = job, spec, dataset
        self.candidate_files = candidate_files
        """What lies in `out/`."""
        self.promised_files = promised_files
        """What the manifest says lies there."""
        self._studio, self._device = studio, device
        self._progress = Progress(events, "image")
        self._samples = Samples(spec, dataset, studio, self._progress)
        self._judged: dict[tuple[Subject, int, Way], Opinions] = {}
        self._answers: dict[tuple[Subject, int, Compression], Tensor] = {}
        self._features: dict[tuple[Subject, str], Tensor] = {}
        self._panel = Panel(dataset, spec.dataset.digest, spec.policy.judge, job.judges, device, events)
        self.alpha = level(spec)
        """Level of every one-sided test of this look."""
        self.curves: list[Curve] = []
        """What checks leave for people to look at, beside their findings."""

    # ------------------------------------------------------------------------------------------------------- the subjects

    @property
    def kind(self) -> Kind:
        """Of the family: samples are drawn from generators, answers are asked of classifiers."""
        return self._studio.kind

    @property
    def device(self) -> torch.device:
        """Of this rank, for networks that a check brings itself."""
        return self._device

    def busy(self) -> None:
        """A sign of life from a check that works long without drawing: who watches takes silence for a hang."""
        self._progress.advance(0)

    def load(self, subject: Subject, compression: Compression = "none") -> Family:
        """A subject's model from its saved files, shared with everyone who asks. Raises: BadModel."""
        return self._studio.load(self._samples.resolved(subject), compression)

    def fresh(self, subject: Subject) -> Family:
        """The same, of one's own: an attack trains it. Raises: BadModel."""
        return self._studio.fresh(self._samples.resolved(subject))

    @property
    def reference(self) -> Subject | None:
        """The model that was trained without what is to be forgotten, where the job has one."""
        return None if self.spec.reference_digest is None else "reference"

    def announce(self, needs: Iterable[Need]) -> None:
        """All samples that will be asked for, by all checks: the total of the progress events."""
        self._progress.foresee(sum(self._samples.missing(needs).values()))

    def prefetch(self, needs: Iterable[Need]) -> None:
        """Draw what is missing of these in full batches, one subject after the other.

        Raises:
            SamplingFailed: a subject cannot be loaded or drawn from, or gave too few images.
        """
        self._samples.prefetch(needs)

    def samples(self, subject: Subject, class_index: int, n: int, way: Way = DRAWN) -> Tensor:
        """The first n images (n, C, H, W), uint8, that a subject draws for a class; image i has the same noise in all.

        Raises:
            SamplingFailed: as for `prefetch`.
        """
        return self._samples.of(Need(subject, class_index, n, way))

    def samples_under(self, subject: Subject, rows_MX: Tensor, class_index: int, n: int) -> Tensor:
        """(M, n, C, H, W) uint8: the first n images that a generator draws under each of M labels that are not its own.

        Image i has the same noise under all, that of the class's own samples. Nothing is kept.

        Raises:
            SamplingFailed: as for `prefetch`.
        """
        return self._samples.under(subject, rows_MX, class_index, n)

    # -------------------------------------------------------------------------------------------------------- the answers

    def answers(self, subject: Subject, class_index: int, compression: Compression = "none") -> Tensor:
        """(N, K) float32 logits that a subject gives the held-out images of a class, in the dataset's order.

        Raises:
            SamplingFailed: see `answers_to`.
        """
        key = (self._samples.resolved(subject), class_index, compression)
        if key not in self._answers:
            self._answers[key] = self.answers_to(subject, self.dataset.held_out_of([class_index]), compression)
        return self._answers[key]

    def answers_to(self, subject: Subject, index_N: Tensor, compression: Compression = "none") -> Tensor:
        """(N, K) float32 logits that a subject gives these items of the dataset; asked on this rank alone.

        Raises:
            SamplingFailed: the subject cannot be loaded, or an answer is not finite.
        """
        self._progress.expect(len(index_N))
        self._progress.advance(0)
        try:
            model = cast(Classifier, self.load(subject, compression))
            logits_NK = model.logits(self.dataset.images_NCHW[index_N])
        except OutOfMemory:
            raise
        except EngineError as error:
            raise SamplingFailed(f"no answers of the {subject}: {error}") from error
        self._progress.advance(len(index_N))
        return logits_NK

    def features(self, subject: Subject, images_NCHW: Tensor) -> Tensor:
        """(N, D) float32 what a subject knows of uint8 images before it answers; see `features.features_of`. Asked once.

        Raises:
            SamplingFailed: the subject cannot be loaded, has no such features, or one is not finite.
        """
        key = (self._samples.resolved(subject), hashlib.sha256(images_NCHW.contiguous().numpy()).hexdigest())
        if key not in self._features:
            self._progress.expect(len(images_NCHW))
            self._progress.advance(0)
            try:
                self._features[key] = features_of(self.load(subject), images_NCHW, self.spec.verification_seed)
            except OutOfMemory:
                raise
            except EngineError as error:
                raise SamplingFailed(f"no features of the {subject}: {error}") from error
            self._progress.advance(len(images_NCHW))
        return self._features[key]

    # ---------------------------------------------------------------------------------------------------- the completions

    def shown(self, class_index: int, n: int | None = None) -> Tensor:
        """Positions (int64) of the first n held-out images of a class, in an order that follows from the verification seed.

        All that there are, where they are fewer.
        """
        return self._samples.shown(class_index, n)

    def hidden(self, corruption: MaskSpec, class_index: int, n: int) -> Tensor:
        """bool (N, h, w): what is hidden of those images; the same whoever completes them.

        Raises:
            SamplingFailed: nothing, or everything, or the original says of how many pixels a cell is and cannot be loaded.
        """
        return self._samples.hidden(corruption, self.shown(class_index, n).tolist())

    def covered(self, corruption: MaskSpec, class_index: int, n: int) -> Tensor:
        """bool (N, 1, H, W): the same, pixel by pixel."""
        return masks.pixels(self.hidden(corruption, class_index, n), self.region(corruption).cell)

    def completions(
        self, subject: Subject, corruption: MaskSpec, class_index: int, n: int, *, prompted: bool = False
    ) -> Tensor:
        """(N, C, H, W) uint8: the images of `shown`, completed by a subject.

        Raises:
            SamplingFailed: as for `prefetch`.
        """
        return self._samples.of(Need(subject, class_index, n, Way(corruption, prompted)))

    def region(self, corruption: MaskSpec) -> Region:
        """What a corruption hides of an image, in the cells of this lineage's models. Raises: SamplingFailed."""
        return self._samples.region(corruption)

    # ---------------------------------------------------------------------------------------------------------- the judges

    @property
    def judge(self) -> Judge:
        """The first judge, in whose features is measured: from the cache if it proves itself, else trained now.

        Raises:
            JudgeUnfit: it is not good enough on held-out real images.
        """
        return self._panel.of(FIRST)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Every judge of whole images that the policy asks for, the first one first. Raises: JudgeUnfit, for any of them."""
        return self._panel.all

    def region_judge(self, corruption: MaskSpec) -> Judge:
        """The one that judges what a corruption hides, and sees nothing else.

        Raises:
            JudgeUnfit: it is not good enough on what is hidden of held-out real images.
            SamplingFailed: see `region`.
        """
        return self._panel.of(FIRST, self.region(corruption))

    @property
    def judges_used(self) -> tuple[Judge, ...]:
        """Those that a check asked for."""
        return self._panel.used

    def judged(self, subject: Subject, class_index: int, n: int, way: Way = DRAWN) -> Judged:
        """What the first judge says of the first n images that a subject draws for a class.

        Raises:
            JudgeUnfit, SamplingFailed: see `judges` and `samples`.
        """
        return self._opinions(subject, class_index, n, way)[0]

    def shows(self, subject: Subject, asked: int, n: int, way: Way = DRAWN, class_index: int | None = None) -> Tensor:
        """bool (n,): which of the first n images that a subject draws for the class `asked` show a class to any judge.

        Args:
            class_index: the class that is looked for; None: the one that was asked for.

        Raises:
            JudgeUnfit, SamplingFailed: as `judged`.
        """
        return panel.shows(self._opinions(subject, asked, n, way), asked if class_index is None else class_index)

    def recognised(self, subject: Subject, class_index: int, n: int, way: Way = DRAWN) -> Tensor:
        """bool (n,): which of those images every judge takes for the class that was asked for. Raises: as `judged`."""
        return panel.recognised(self._opinions(subject, class_index, n, way), class_index)

    def shows_in(self, images_NCHW: Tensor, class_index: int) -> Tensor:
        """bool (N,): which of these uint8 images, made by a check, show a class to any judge. Raises: JudgeUnfit."""
        return panel.shows(self._panel.look(images_NCHW), class_index)

    def false_positive_rate(self, class_index: int) -> float:
        """FPR_J: the share of held-out real images of all other classes that show a class to any judge. Raises: JudgeUnfit."""
        return self._panel.false_positive_rate(class_index)

    def forget_threshold(self, class_index: int, floor: float) -> float:
        """tau_f: the rate up to which a class counts as forgotten, never below what the judges see where it is not.

            max(floor, FPR_J + slack)

        Raises: JudgeUnfit.
        """
        return max(floor, self.false_positive_rate(class_index) + self.slack)

    @property
    def slack(self) -> float:
        """What the policy allows samples above the judges' false alarms on real images: they are harder to judge."""
        return self._panel.slack

    def _opinions(self, subject: Subject, class_index: int, n: int, way: Way) -> Opinions:
        key = (self._samples.resolved(subject), class_index, way)
        images_NCHW = self.samples(subject, class_index, n, way)
        if key not in self._judged or len(self._judged[key][0].features_ND) < len(images_NCHW):
            self._judged[key] = self._panel.look(images_NCHW)
        return tuple(Judged(known.probabilities_NK[:n], known.features_ND[:n]) for known in self._judged[key])

    def held_out(self, class_index: int) -> Judged:
        """What the first judge says of the held-out real images of a class, in the dataset's order. Raises: JudgeUnfit."""
        return self._panel.held_out(class_index)[0]

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers for resampling, decided by the verification seed and the purpose alone."""
        text = f"{self.spec.verification_seed}/{purpose}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()))


def level(spec: Spec) -> float:
    """Of every one-sided test of one look: looks at one result, and attempts at one request, share the error budget."""
    return ALPHA / spec.policy.tries


def require_classes(spec: Spec) -> None:
    """Raises: BadInput where no class was ever forgotten."""
    if not spec.all_forgotten:
        raise BadInput("expected a forgotten class, found none: this check says nothing of single samples")


def corruptions_of(spec: Spec) -> tuple[MaskSpec, ...]:
    """What the policy hides of images that are to be completed. Raises: BadInput where it names nothing."""
    corruptions = spec.policy.sampling.corruptions
    if not corruptions:
        raise BadInput("expected the policy to name a corruption under which images are completed, found none in its sampling")
    return corruptions


def ways_of(spec: Spec) -> tuple[bool, ...]:
    """Is the class's prompt shown beside the visible part? Without it, and where the family has prompts, with it, too."""
    return (False, True) if registry.families()[spec.family].prompts else (False,)
