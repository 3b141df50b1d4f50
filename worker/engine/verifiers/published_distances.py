"""What papers publish of drawn images: FID, KID and PRDC of the retained classes, where the weights are mounted.

Samples of the retained classes against as many held-out images of each as the class with the fewest has, in the features of the
Inception network that the operator mounts; of the candidate, and of its parent from the same noise. They are reported: what
gates utility are the judge's own distance and coverage (`feature_distance`, `retain_coverage`), which need no download. A
policy may bound the candidate's FID over the parent's.

The engine reports them of every generator where a spec has the weights' digest, whatever its policy. A policy that names this
check owes them: without the weights its verdict is ERROR.

Shapes: N held-out images, M samples, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine import manifolds, protocols, set_distances
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.metric_networks import FOLDERS, Inception, figures_measured, mounted
from worker.engine.statistics import GROUPS, Floats, Rows, frechet_distance_of_rows, jackknife_upper
from worker.engine.verifier import Env, Need, Params, Subject

SUBJECTS: tuple[Subject, ...] = ("candidate", "parent")
SAMPLES = 100
"""Of a class, where no other check of the policy draws retained classes."""
DRAWING_RETAINED = frozenset({"retain_accuracy", "feature_distance", "retain_coverage", "retain_drift"})
"""Checks whose samples of retained classes, candidate's and parent's, these figures may look at, too."""


class Thresholds(Params):
    """How many samples, and how much farther from real images they may be."""

    n_per_class: int | None = Field(
        default=None,
        ge=2,
        le=100_000,
        description="samples of each retained class and subject; null: as many as other checks of the policy draw",
    )
    nearest: int = Field(default=manifolds.NEAREST, ge=1, le=50, description="neighbours that make the ball of an image")
    max_fid_ratio: float | None = Field(
        default=None, gt=1, le=100, description="bound on candidate's / parent's FID; null: only reported"
    )


@dataclass(frozen=True)
class Figure:
    """One number about a set of samples, and how it came about, by name and in words."""

    name: str
    value: float
    protocol_id: str
    said: str


class PublishedDistances:
    """FID, KID, precision, recall, density and coverage of retained samples, candidate and parent."""

    name: ClassVar[str] = "published_distances"
    title: ClassVar[str] = "FID, KID and PRDC of retained samples, by mounted weights"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Raises: BadInput where no weights are mounted."""
        if spec.metric_weights_digest is None:
            raise BadInput("expected weights of metric networks to be mounted, found none")
        n = self._samples(spec)
        return tuple(Need(subject, k, n) for subject in SUBJECTS for k in spec.retain_classes)

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`.

        Raises:
            BadInput: the Inception network is not mounted, or there are too few images of a side.
            BadModel: what is mounted is not such a network.
        """
        if "inception" not in mounted(env.job.metric_weights):
            raise BadInput(f"expected {FOLDERS['inception']} among the mounted weights, found none")
        network = Inception(env.job.metric_weights, env.device)
        real_ND = network.features(self._real(env), env.busy).numpy()
        drawn = {subject: network.features(self._drawn(env, subject), env.busy).numpy() for subject in SUBJECTS}
        self._require_enough(real_ND, drawn["candidate"])
        found = [
            self._reported(subject, figure, len(drawn_MD))
            for subject, drawn_MD in drawn.items()
            for figure in self._figures(env, network, real_ND, drawn_MD)
        ]
        if self.params.max_fid_ratio is None:
            return (*found, figures_measured(self.name, found))
        return (*found, self._fid_ratio(env, network, real_ND, drawn, self.params.max_fid_ratio))

    # ------------------------------------------------------------------------------------------------------- the two sides

    def _samples(self, spec: Spec) -> int:
        if self.params.n_per_class is not None:
            return self.params.n_per_class
        asked = [c.params.get("n_per_class", SAMPLES) for c in spec.policy.checks if c.verifier in DRAWING_RETAINED]
        return max((n for n in asked if isinstance(n, int)), default=SAMPLES)

    def _real(self, env: Env) -> Tensor:
        """uint8, as many of each retained class: else the mixture of classes would differ from that of the samples."""
        fewest = min(len(env.dataset.held_out_of([k])) for k in env.spec.retain_classes)
        index_N = torch.cat([env.shown(k, fewest) for k in env.spec.retain_classes])
        return env.dataset.images_NCHW[index_N]

    def _drawn(self, env: Env, subject: Subject) -> Tensor:
        n = self._samples(env.spec)
        return torch.cat([env.samples(subject, k, n) for k in env.spec.retain_classes])

    def _require_enough(self, real_ND: Floats, drawn_MD: Floats) -> None:
        least = self.params.nearest + 2
        if min(len(real_ND), len(drawn_MD)) < least:
            sides = f"{len(real_ND)} held-out images and {len(drawn_MD)} samples"
            raise BadInput(f"expected at least {least} images of retained classes of a side, got {sides}")

    # ------------------------------------------------------------------------------------------------------ the findings

    def _figures(self, env: Env, network: Inception, real_ND: Floats, drawn_MD: Floats) -> Iterator[Figure]:
        seen_by, width, nearest = network.protocol_id, real_ND.shape[1], self.params.nearest
        beside = f"to {len(real_ND)} held-out images"
        few = "singular covariances, " if min(len(real_ND), len(drawn_MD)) <= width else ""
        said = f"FID {beside}; {width} features: {few}biased upwards, compare at equal numbers alone"
        yield Figure("fid", set_distances.fid(real_ND, drawn_MD), protocols.fid(seen_by), said)
        env.busy()
        seed = int(env.generator(f"{self.name}/subsets").integers(2**32))
        mean, spread = set_distances.kid(real_ND, drawn_MD, seed)
        size = set_distances.subset_size(real_ND, drawn_MD)
        how = protocols.kid_of_subsets(seen_by, set_distances.SUBSETS, size)
        yield Figure("kid", mean, how, f"KID {beside}; standard deviation over subsets {spread:.3g}")
        env.busy()
        found = manifolds.figures(manifolds.thinned(real_ND), manifolds.thinned(drawn_MD), nearest)
        for measure in manifolds.MEASURES:
            yield Figure(measure, found[measure], protocols.prdc(nearest, seen_by), f"{measure} beside {beside[3:]}")

    def _reported(self, subject: Subject, figure: Figure, n: int) -> Finding:
        return Finding(
            check=self.name,
            metric=f"retain_{figure.name}",
            subject=subject,
            gating=False,
            value=figure.value,
            n=n,
            protocol_id=figure.protocol_id,
            detail=f"{figure.said}, samples of retained classes",
        )

    def _fid_ratio(
        self, env: Env, network: Inception, real_ND: Floats, drawn: dict[Subject, Floats], threshold: float
    ) -> Finding:
        """Candidate's over parent's. What is left out is left out of samples, of both subjects alike, and of real images."""
        n, m = len(real_ND), len(drawn["candidate"])
        if n + m < 2 * GROUPS:
            raise BadInput(f"expected at least {2 * GROUPS} images for a bound, got {n + m}")

        def log_ratio(rows: Rows) -> float:
            env.busy()  # a distance is seconds of a CPU, and there are two a group
            some_ND, which_M = real_ND[rows[rows < n]], rows[rows >= n] - n
            after, before = (frechet_distance_of_rows(some_ND, drawn[subject][which_M]) for subject in SUBJECTS)
            if not (after > 0 and before > 0):
                raise BadInput("expected samples at an FID above 0 from real images, found some at none")
            return math.log(after / before)

        point = math.exp(log_ratio(np.arange(n + m)))
        upper = math.exp(jackknife_upper(log_ratio, n + m, rng=env.generator(f"{self.name}/fid"), alpha=env.alpha))
        return Finding(
            check=self.name,
            metric="retain_fid_ratio",
            subject="candidate",
            gating=True,
            passed=upper <= threshold,
            open=point <= threshold < upper,
            value=point,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=m,
            protocol_id=protocols.fid(network.protocol_id),
            detail=f"FID of retained classes over the parent's, same noise; bound by a jackknife of {GROUPS} groups",
        )
