"""The protocol of a check, and what a check may ask of the stage that runs it.

Subjects: the candidate is what was saved and may be published; the parent is the version it was made from (the reference
for utility); the original is the lineage's root, before any forgetting (the control: it must fail).

Shapes: N images, C channels, H height, W width, K classes, D judge features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from worker.contract import FileEntry, Finding, JobDirectory, Spec
from worker.engine import judge as judges
from worker.engine.data import Dataset
from worker.engine.errors import EngineError, OutOfMemory
from worker.engine.events import Eta, Events
from worker.engine.family import Classifier, Family, Kind
from worker.engine.judge import Judge, Judged
from worker.engine.sampling import SamplingFailed, Studio, sample_seed

Subject = Literal["candidate", "original", "parent"]
Tier = Literal["L0", "L1", "L2"]


@dataclass(frozen=True)
class Need:
    """Images that a check will ask for: said beforehand, so that progress has a total and batches are full."""

    subject: Subject
    class_index: int
    n: int


class Params(BaseModel):
    """Base of a check's thresholds: unknown names are refused, and ranges become the API's JSON schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        self._studio, self._device, self._events = studio, device, events
        self._samples: dict[tuple[Subject, int], Tensor] = {}
        self._judged: dict[tuple[Subject, int], Judged] = {}
        self._real: dict[int, Judged] = {}
        self._answers: dict[tuple[Subject, int], Tensor] = {}
        self._judge: Judge | None = None
        self._drawn, self._wanted = 0, 0
        self._eta: Eta | None = None

    # ------------------------------------------------------------------------------------------------------- the subjects

    @property
    def kind(self) -> Kind:
        """Of the family: samples are drawn from generators, answers are asked of classifiers."""
        return self._studio.kind

    def load(self, subject: Subject) -> Family:
        """A subject's model from its saved files. Raises: BadModel."""
        return self._studio.load(self._resolved(subject))

    def announce(self, needs: Iterable[Need]) -> None:
        """All samples that will be asked for, by all checks: the total of the progress events."""
        self._wanted = self._drawn + sum(self._missing(needs).values())

    def prefetch(self, needs: Iterable[Need]) -> None:
        """Draw what is missing of these in full batches, one subject after the other.

        Raises:
            SamplingFailed: a subject cannot be loaded or drawn from, or gave too few images.
        """
        missing = self._missing(needs)
        for subject in sorted({s for s, _ in missing}):
            self._draw(subject, {k: n for (s, k), n in missing.items() if s == subject})

    def samples(self, subject: Subject, class_index: int, n: int) -> Tensor:
        """The first n images (n, C, H, W), uint8, that a subject draws for a class; image i has the same noise in all.

        Raises:
            SamplingFailed: as for `prefetch`.
        """
        self.prefetch([Need(subject, class_index, n)])
        return self._samples[self._resolved(subject), class_index][:n]

    def _resolved(self, subject: Subject) -> Subject:
        """A first request's parent *is* the original: the same bytes are loaded and drawn from once."""
        same = self.spec.base_digest == self.spec.original_digest
        return "original" if subject == "parent" and same else subject

    def _missing(self, needs: Iterable[Need]) -> dict[tuple[Subject, int], int]:
        wanted: dict[tuple[Subject, int], int] = {}
        for need in needs:
            key = (self._resolved(need.subject), need.class_index)
            wanted[key] = max(wanted.get(key, 0), need.n)
        more = {key: n - len(self._samples.get(key, ())) for key, n in wanted.items()}
        return {key: n for key, n in more.items() if n > 0}

    def _draw(self, subject: Subject, missing: dict[int, int]) -> None:
        have = {k: len(self._samples.get((subject, k), ())) for k in missing}
        wanted = [(k, i) for k, n in missing.items() for i in range(have[k], have[k] + n)]
        parts = []
        for begin in range(0, len(wanted), self._studio.round_size):
            chunk = wanted[begin : begin + self._studio.round_size]
            seeds = [sample_seed(self.spec.verification_seed, k, i) for k, i in chunk]
            self._report_progress(0)
            parts.append(self._studio.draw(subject, [k for k, _ in chunk], seeds))
            self._report_progress(len(chunk))
        for k, new in zip(missing, torch.cat(parts).split(list(missing.values())), strict=True):
            old = self._samples.get((subject, k))
            self._samples[subject, k] = new if old is None else torch.cat([old, new])

    def _report_progress(self, images: int) -> None:
        if self._eta is None:  # only from the first image on: training the judge says nothing of the pace of sampling
            self._eta = Eta(0, time.monotonic)
        self._drawn += images
        self._wanted = max(self._wanted, self._drawn)
        left = self._eta.remaining(self._drawn, self._wanted)
        self._events.progress(self._drawn, self._wanted, "image", remaining_seconds=left)

    # -------------------------------------------------------------------------------------------------------- the answers

    def answers(self, subject: Subject, class_index: int) -> Tensor:
        """(N, K) float32 logits that a subject gives the held-out images of a class, in the dataset's order.

        Raises:
            SamplingFailed: see `answers_to`.
        """
        key = (self._resolved(subject), class_index)
        if key not in self._answers:
            self._answers[key] = self.answers_to(subject, self.dataset.held_out_of([class_index]))
        return self._answers[key]

    def answers_to(self, subject: Subject, index_N: Tensor) -> Tensor:
        """(N, K) float32 logits that a subject gives these items of the dataset; asked on this rank alone.

        Raises:
            SamplingFailed: the subject cannot be loaded, or an answer is not finite.
        """
        self._wanted += len(index_N)
        self._report_progress(0)
        try:
            model = cast(Classifier, self.load(subject))
            logits_NK = model.logits(self.dataset.images_NCHW[index_N])
        except OutOfMemory:
            raise
        except EngineError as error:
            raise SamplingFailed(f"no answers of the {subject}: {error}") from error
        self._report_progress(len(index_N))
        return logits_NK

    # ---------------------------------------------------------------------------------------------------------- the judge

    @property
    def judge(self) -> Judge:
        """The classifier that judges samples: from the cache if it proves itself, else trained now.

        Raises:
            JudgeUnfit: it is not good enough on held-out real images.
        """
        if self._judge is None:
            began = time.monotonic()
            digest, policy = self.spec.dataset.digest, self.spec.policy.judge
            self._judge, origin = judges.obtain(self.dataset, digest, policy, self.job.judges, self._device)
            accuracy = self._judge.record.held_out_accuracy
            self._events.note({"judge": origin, "accuracy": accuracy, "seconds": round(time.monotonic() - began, 3)})
        return self._judge

    @property
    def judge_used(self) -> Judge | None:
        """The judge, if any check asked for it."""
        return self._judge

    def judged(self, subject: Subject, class_index: int, n: int) -> Judged:
        """What the judge says of the first n images that a subject draws for a class.

        Raises:
            JudgeUnfit, SamplingFailed: see `judge` and `samples`.
        """
        key = (self._resolved(subject), class_index)
        images_NCHW = self.samples(subject, class_index, n)
        if key not in self._judged or len(self._judged[key].features_ND) < n:
            self._judged[key] = self.judge.look(images_NCHW)
        known = self._judged[key]
        return Judged(known.probabilities_NK[:n], known.features_ND[:n])

    def held_out(self, class_index: int) -> Judged:
        """What the judge says of the held-out real images of a class, in the dataset's order."""
        if class_index not in self._real:
            images_NCHW = self.dataset.images_NCHW[self.dataset.held_out_of([class_index])]
            self._real[class_index] = self.judge.look(images_NCHW)
        return self._real[class_index]

    def generator(self, purpose: str) -> np.random.Generator:
        """Random numbers for resampling, decided by the verification seed and the purpose alone."""
        text = f"{self.spec.verification_seed}/{purpose}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()))
