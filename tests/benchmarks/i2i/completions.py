"""What a saved model completes, scored by what the gate is made of: the verifiers' seeds, masks, region judge and likeness.

Shape suffixes: N images of one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.i2i.subjects import Split
from tests.benchmarks.sfron.jobs import Subject, make_job
from worker.contract import Check, JobDirectory, JudgePolicy, MaskSpec, Policy, Sampling
from worker.engine import registry
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.events import Events
from worker.engine.likeness import Likeness, likeness
from worker.engine.sampling import Studio
from worker.engine.statistics import lower_bound, wilson_interval
from worker.engine.verifier import Env, Need
from worker.engine.verifiers.forget_completion import Thresholds as Forget
from worker.engine.ways import Way

MIN_POWER = Forget.model_fields["min_power"].default

Seen = Mapping[MaskSpec, Mapping[int, Likeness]]
"""By corruption and class."""


class Gallery:
    """Looks at models' completions of the held-out images of one split: every model's of the same images, masks and noise.

    Args:
        subject: the model that the masks' cells are taken from, and all the images; the judge is trained on them.
        shown: held-out images of a class, at most.
    """

    def __init__(
        self,
        root: Path,
        subject: Subject,
        split: Split,
        corruptions: Sequence[MaskSpec],
        judge: JudgePolicy,
        ranks: Ranks,
        *,
        steps: int,
        shown: int,
        seed: int,
    ) -> None:
        sampling = Sampling(steps=steps, guidance_scale=1.0, corruptions=tuple(corruptions))
        policy = Policy(name="benchmark", sampling=sampling, judge=judge, checks=(Check(verifier="forget_completion"),))
        wish = {"forget_classes": split.forget, "retain": split.real}
        self._job: JobDirectory = make_job(root, subject, "encoder_l2", {}, seed=seed, policy=policy, **wish)
        self._spec = self._job.read_spec()
        self._dataset = load_dataset(self._job, self._spec)
        self._split, self._shown, self._ranks = split, shown, ranks
        self.judge_accuracy: dict[MaskSpec, float] = {}
        """On hidden parts of held-out real images."""

    def look(self, folder: Path) -> Seen:
        """A saved model's completions beside the truth.

        Raises:
            SamplingFailed, JudgeUnfit: see `Env.completions` and `Env.region_judge`.
        """
        studio = Studio(
            registry.families()[self._spec.family],
            {"candidate": folder, "original": self._job.original},
            labels=self._spec.labels,
            dataset=self._dataset,
            sampling=self._spec.policy.sampling,
            ranks=self._ranks,
        )
        env = Env(
            job=self._job,
            spec=self._spec,
            dataset=self._dataset,
            studio=studio,
            device=self._ranks.device,
            candidate_files=(),
            promised_files=(),
            events=Events(self._job.events, "verifying", speaks=True),
        )
        classes, corruptions = (*self._split.forget, *self._split.retain), self._spec.policy.sampling.corruptions
        env.prefetch([Need("candidate", k, self._shown, Way(c)) for c in corruptions for k in classes])
        seen = {c: {k: likeness(env, "candidate", c, k, self._shown, prompted=False) for k in classes} for c in corruptions}
        self.judge_accuracy = {c: env.region_judge(c).record.held_out_accuracy for c in corruptions}
        return seen


@dataclass(frozen=True)
class Side:
    """Scores of some classes' images, each class with the same weight; hits and n are counted over all."""

    hits: int
    n: int
    distance: float
    """In judge features, from the truth."""
    cosine: float
    psnr: float
    ssim: float

    @property
    def accuracy(self) -> float:
        """How often the judge sees the class in what was completed."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, Wilson's at 95 %."""
        return wilson_interval(self.hits, self.n)


def side(seen: Mapping[int, Likeness], classes: Sequence[int]) -> Side:
    """Of one model under one corruption."""
    some = [seen[k] for k in classes]

    def mean(name: str) -> float:
        return float(torch.stack([getattr(one, name).mean() for one in some]).mean())

    hits, n = sum(int(one.right_N.sum()) for one in some), sum(len(one.right_N) for one in some)
    return Side(hits, n, *(mean(f"{name}_N") for name in ("distance", "cosine", "psnr", "ssim")))


def underpowered(original: Side, never_seen: Side) -> bool:
    """Is the original, at its lower bound, so near to a model that never saw the classes that nothing would be shown?"""
    return lower_bound(original.hits, original.n) <= never_seen.accuracy + MIN_POWER
