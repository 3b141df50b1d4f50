"""Do retained classes still look as before, noise by noise? Reported, with an alarm; a good result may well draw differently.

The cosine of judge features between the parent's and the candidate's image of the same noise, mean over retained classes. What
gates is only that every pair was compared.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from torch.nn import functional as F

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "parent")


class Thresholds(Params):
    """How many pairs, and when to raise the alarm."""

    n_per_class: int = Field(default=80, ge=1, le=100_000, description="pairs of each retained class")
    alarm_below: float = Field(default=0.85, gt=-1, lt=1, description="mean cosine below which an alarm is reported")


class RetainDrift:
    """Mean cosine of the retained classes' images to the parent's, in judge features."""

    name: ClassVar[str] = "retain_drift"
    title: ClassVar[str] = "How far retained classes have drifted"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`."""
        return tuple(Need(subject, k, self.params.n_per_class) for subject in SUBJECTS for k in spec.retain_classes)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput: no class is retained."""
        if not env.spec.retain_classes:
            raise BadInput("expected at least one retained class, got none")
        n, found, cosines = self.params.n_per_class, [], []
        for k in env.spec.retain_classes:
            after, before = (env.judged(subject, k, n).features_ND for subject in SUBJECTS)
            cosine_N = F.cosine_similarity(after, before, dim=1).numpy()
            cosines.append(cosine_N)
            name = env.spec.class_names[k]
            mean, said = float(cosine_N.mean()), f"mean cosine of {n} images of {name!r} to the parent's, same noise"
            about = {"check": self.name, "metric": "class_cosine", "subject": "candidate", "gating": False, "detail": said}
            found.append(Finding(value=mean, n=n, class_index=k, class_name=name, **about))
        every_N = np.concatenate(cosines)
        # Its own interval, for people: a mean of hundreds is normal enough.
        lower = float(every_N.mean() - 1.645 * every_N.std() / np.sqrt(len(every_N)))
        loud = lower < self.params.alarm_below
        alarm = Finding(
            check=self.name,
            metric="mean_cosine",
            subject="candidate",
            gating=False,
            passed=not loud,
            value=float(every_N.mean()),
            lower95=lower,
            comparator="ge",
            threshold=self.params.alarm_below,
            n=len(every_N),
            detail=f"mean cosine to the parent's images of the same noise, in judge features{': alarm' if loud else ''}",
        )
        finite, due = int(np.isfinite(every_N).sum()), n * len(env.spec.retain_classes)
        gate = Finding(
            check=self.name,
            metric="pairs_compared",
            subject="candidate",
            gating=True,
            passed=finite == due,
            value=finite,
            comparator="eq",
            threshold=due,
            n=due,
            count=finite,
            detail=f"{finite} of {due} pairs of images were compared; how alike they are is reported and gates nothing",
        )
        return (gate, alarm, *found)
