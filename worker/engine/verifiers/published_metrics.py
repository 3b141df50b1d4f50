"""What papers publish of completed images: FID, KID, Inception Score and CLIP similarity, where the weights are mounted.

They say how far the completions of held-out images are from the images themselves, the forgotten classes and the retained ones
apart, for the original and the candidate; whole images, as in the paper, so that the visible part counts, too. A good result
leaves them as they were for retained classes. For forgotten ones there is no number that is right: a retrained model still
completes their images plausibly. So they are reported, and gate only where the policy sets a threshold on retained classes.

The engine reports them of every image-to-image model where a spec has the weights' digest, whatever its policy. A policy that
names this check owes them: without the weights its verdict is ERROR.

Source: Li et al. 2024, "Machine Unlearning for Image-to-Image Generative Models", arXiv:2402.00351, for what is compared.
Where we differ from its code: its IS is of another network and other scales, its FID of files in another aspect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, MaskSpec, Spec, Tier
from worker.engine import protocols
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.likeness import suffix
from worker.engine.metric_networks import FOLDERS, Clip, Inception, Name, figures_measured, mounted
from worker.engine.statistics import (
    GROUPS,
    Floats,
    Rows,
    frechet_distance_of_rows,
    inception_score,
    jackknife_upper,
    kernel_distance,
)
from worker.engine.verifier import Env, Need, Params, Subject, corruptions_of, ways_of
from worker.engine.ways import Way
from worker.verdict import COMPLETES

Side = Literal["forget", "retain"]
SUBJECTS: tuple[Subject, ...] = ("candidate", "original")
IMAGES = 500
"""Of a class, where no other check of the policy completes any."""
SPLITS = 10
"""Of the Inception Score, as in the paper; fewer where a split would have less than two images."""


class Thresholds(Params):
    """How many images, which networks, and how much worse retained classes may look by them."""

    n_per_class: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="held-out images of each class, at most; null: as many as other checks of the policy have completed",
    )
    networks: tuple[Name, ...] | None = Field(
        default=None, description="those that must be mounted; null: whichever is, one at least"
    )
    max_fid_ratio: float | None = Field(
        default=None, gt=1, le=100, description="bound on candidate's / original's FID on retained classes; null: only reported"
    )
    max_clip_drop: float | None = Field(
        default=None, gt=0, lt=2, description="bound on the CLIP similarity lost on retained classes; null: only reported"
    )


@dataclass(frozen=True)
class Seen:
    """What the mounted networks say of images, row by row; None for a network that is not asked."""

    features_ND: Floats | None
    probabilities_NK: Floats | None
    embeddings_NE: Floats | None


@dataclass(frozen=True)
class Pair:
    """Completions beside the images themselves, in one order."""

    came: Seen
    due: Seen

    def frechet(self, rows: Rows | slice = slice(None)) -> float:
        """FID of some of the images."""
        came_ND, due_ND = _there(self.came.features_ND)[rows], _there(self.due.features_ND)[rows]
        return frechet_distance_of_rows(came_ND, due_ND)

    @property
    def cosine_N(self) -> Floats:
        """(N,) of CLIP embeddings."""
        cosine_N: Floats = (_there(self.came.embeddings_NE) * _there(self.due.embeddings_NE)).sum(axis=1)
        return cosine_N


class PublishedMetrics:
    """FID, KID, IS and CLIP similarity of completions, both sides, candidate and original, under every corruption."""

    name: ClassVar[str] = "published_metrics"
    title: ClassVar[str] = "FID, KID, Inception Score and CLIP similarity of completions, by mounted weights"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("i2i",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Raises: BadInput where no weights are mounted, or the policy names no corruption."""
        if spec.metric_weights_digest is None:
            raise BadInput("expected weights of metric networks to be mounted, found none")
        n = self._images(spec)
        return tuple(
            Need(subject, k, n, Way(corruption, prompted))
            for subject in SUBJECTS
            for corruption in corruptions_of(spec)
            for prompted in ways_of(spec)
            for classes in _sides(spec).values()
            for k in classes
        )

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`.

        Raises:
            BadInput: a network that the policy asks for is not mounted, or a side has too few held-out images.
            BadModel: what is mounted is not such a network.
        """
        networks = Networks(env, self._wanted(env))
        truth = {side: networks.look(self._truth(env, classes)) for side, classes in _sides(env.spec).items()}
        return tuple(
            finding.model_copy(update={"corruption": corruption, "metric": finding.metric + suffix(prompted)})
            for corruption in corruptions_of(env.spec)
            for prompted in ways_of(env.spec)
            for finding in self._under(env, networks, truth, corruption, prompted)
        )

    def _images(self, spec: Spec) -> int:
        if self.params.n_per_class is not None:
            return self.params.n_per_class
        others = [c for c in spec.policy.checks if c.verifier in COMPLETES and c.verifier != self.name]
        asked = [c.params.get("n_per_class", IMAGES) for c in others]
        return max((n for n in asked if isinstance(n, int)), default=IMAGES)

    def _wanted(self, env: Env) -> tuple[Name, ...]:
        there = mounted(env.job.metric_weights)
        due: set[Name] = set(self.params.networks or ())
        due |= {"inception"} if self.params.max_fid_ratio is not None else set()
        due |= {"clip"} if self.params.max_clip_drop is not None else set()
        if missing := sorted(FOLDERS[name] for name in due - set(there)):
            raise BadInput(f"expected {' and '.join(missing)} among the mounted weights, as the policy asks, found none")
        if not there:
            raise BadInput(f"expected {' or '.join(FOLDERS.values())} among the mounted weights, found none")
        return there if self.params.networks is None else tuple(name for name in there if name in due)

    def _truth(self, env: Env, classes: Sequence[int]) -> Tensor:
        n = self._images(env.spec)
        index_N = torch.cat([env.shown(k, n) for k in classes])
        if len(index_N) < 2:
            raise BadInput(f"expected at least two held-out images of a side, got {len(index_N)}")
        return env.dataset.images_NCHW[index_N]

    def _under(
        self, env: Env, networks: Networks, truth: Mapping[Side, Seen], corruption: MaskSpec, prompted: bool
    ) -> list[Finding]:
        n, found = self._images(env.spec), list[Finding]()
        pairs: dict[tuple[Side, Subject], Pair] = {}
        for side, classes in _sides(env.spec).items():
            for subject in SUBJECTS:
                completed = [env.completions(subject, corruption, k, n, prompted=prompted) for k in classes]
                pair = pairs[side, subject] = Pair(networks.look(torch.cat(completed)), truth[side])
                found += [self._reported(side, subject, f) for f in self._figures(env, networks, pair)]
                env.busy()
        if self.params.max_fid_ratio is not None:
            before, after = (pairs["retain", subject] for subject in ("original", "candidate"))
            found.append(self._fid_ratio(env, networks, before, after, self.params.max_fid_ratio))
        if self.params.max_clip_drop is not None:
            before, after = (pairs["retain", subject] for subject in ("original", "candidate"))
            found.append(self._clip_drop(env, networks, before, after, self.params.max_clip_drop))
        return [*found, figures_measured(self.name, found)]

    # ------------------------------------------------------------------------------------------------------ the findings

    def _figures(self, env: Env, networks: Networks, pair: Pair) -> Iterator[Figure]:
        if networks.inception is not None:
            came_ND, p_NK = _there(pair.came.features_ND), _there(pair.came.probabilities_NK)
            n, width = came_ND.shape
            seen_by = networks.inception.protocol_id
            few = f"n = {n} images for {width} features: " + ("singular covariances, " if n <= width else "") + "biased upwards"
            yield Figure("fid", pair.frechet(), n, protocols.fid(seen_by), f"{few}, compare at equal n alone")
            distance = kernel_distance(came_ND, _there(pair.due.features_ND))
            yield Figure("kid", distance, n, protocols.kid_of_pairs(seen_by), "all pairs of different images")
            splits = max(1, min(SPLITS, n // 2))
            score, spread = inception_score(p_NK, splits, env.generator(f"{self.name}/splits"))
            real, _ = inception_score(_there(pair.due.probabilities_NK), splits, env.generator(f"{self.name}/splits"))
            said = f"mean of {splits} splits, standard deviation {spread:.3g}; of the images themselves {real:.4g}"
            yield Figure("inception_score", score, n, protocols.inception_score(seen_by, splits), said)
        if networks.clip is not None:
            cosine_N, protocol = pair.cosine_N, protocols.clip_similarity(networks.clip.protocol_id)
            said = "mean cosine of image embeddings with those of the images themselves"
            yield Figure("clip_similarity", float(cosine_N.mean()), len(cosine_N), protocol, said)

    def _reported(self, side: Side, subject: Subject, figure: Figure) -> Finding:
        return Finding(
            check=self.name,
            metric=f"{side}_{figure.name}",
            subject=subject,
            gating=False,
            value=figure.value,
            n=figure.n,
            protocol_id=figure.protocol_id,
            detail=f"{NAMES[figure.name]}, whole completed images of {SIDES[side]} classes; {figure.said}",
        )

    def _fid_ratio(self, env: Env, networks: Networks, before: Pair, after: Pair, threshold: float) -> Finding:
        assert networks.inception is not None
        n = len(_there(after.came.features_ND))
        _require_groups(n)

        def log_ratio(rows: Rows) -> float:
            env.busy()  # a distance is seconds of a CPU, and there are two a group
            left_before, left_after = before.frechet(rows), after.frechet(rows)
            if not (left_before > 0 and left_after > 0):
                raise BadInput("expected completions at an FID above 0 from the images themselves, found some at none")
            return math.log(left_after / left_before)

        old, new = before.frechet(), after.frechet()
        if not old > 0:
            raise BadInput("expected the original's completions at an FID above 0, found none")
        # One that completes everything exactly: there is nothing to leave out.
        upper = (
            math.exp(jackknife_upper(log_ratio, n, rng=env.generator(f"{self.name}/fid"), alpha=env.alpha)) if new > 0 else 0.0
        )
        return Finding(
            check=self.name,
            metric="retain_fid_ratio",
            subject="candidate",
            gating=True,
            passed=upper <= threshold,
            value=new / old,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            protocol_id=protocols.fid(networks.inception.protocol_id),
            detail=f"FID of retained classes {new:.4g} over {old:.4g} before, same images; bound by a jackknife of {GROUPS} "
            "groups",
        )

    def _clip_drop(self, env: Env, networks: Networks, before: Pair, after: Pair, threshold: float) -> Finding:
        assert networks.clip is not None
        lost_N = before.cosine_N - after.cosine_N
        _require_groups(len(lost_N))
        rng = env.generator(f"{self.name}/clip")
        upper = jackknife_upper(lambda rows: float(lost_N[rows].mean()), len(lost_N), rng=rng, alpha=env.alpha)
        return Finding(
            check=self.name,
            metric="retain_clip_drop",
            subject="candidate",
            gating=True,
            passed=upper <= threshold,
            value=float(lost_N.mean()),
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=len(lost_N),
            protocol_id=protocols.clip_similarity(networks.clip.protocol_id),
            detail=f"CLIP similarity of retained classes lost against the original, same images; bound by a jackknife of "
            f"{GROUPS} groups",
        )


@dataclass(frozen=True)
class Figure:
    """One number about a set of completions, and how it came about, by name and in words."""

    name: str
    value: float
    n: int
    protocol_id: str
    said: str
    """What else is to be known of it, for people."""


NAMES: Mapping[str, str] = {
    "fid": "FID to the images themselves",
    "kid": "KID to the images themselves",
    "inception_score": "Inception Score",
    "clip_similarity": "CLIP similarity",
}
SIDES: Mapping[Side, str] = {"forget": "forgotten", "retain": "retained"}


class Networks:
    """Those that are asked, loaded once a run of the check."""

    def __init__(self, env: Env, names: Sequence[Name]) -> None:
        """Raises: BadModel; see `metric_networks`."""
        self._env = env
        self.inception = Inception(env.job.metric_weights, env.device) if "inception" in names else None
        self.clip = Clip(env.job.metric_weights, env.device) if "clip" in names else None

    def look(self, images_NCHW: Tensor) -> Seen:
        """Of uint8 images. Raises: BadModel, BadInput; see `metric_networks`."""
        features, probabilities = (
            self.inception.look(images_NCHW, self._env.busy) if self.inception is not None else (None, None)
        )
        embeddings = self.clip.look(images_NCHW, self._env.busy) if self.clip is not None else None
        return Seen(*(None if t is None else t.numpy() for t in (features, probabilities, embeddings)))


def _sides(spec: Spec) -> dict[Side, tuple[int, ...]]:
    sides: dict[Side, tuple[int, ...]] = {"forget": spec.all_forgotten, "retain": spec.retain_classes}
    return {side: classes for side, classes in sides.items() if classes}


def _there(rows: Floats | None) -> Floats:
    assert rows is not None
    return rows


def _require_groups(n: int) -> None:
    if n < 2 * GROUPS:
        raise BadInput(f"expected at least {2 * GROUPS} held-out images of retained classes for a bound, got {n}")
