"""Can forgotten classes still be had by asking for something else? For no class, for another one, for one between two.

A model whose label was cut off from what it knows still draws the class where no label is given, or a mixture is. Three sides:
the null label; the labels of all other classes; labels between the class's own and another's. Each is counted by the judge and
held against what the judge sees in real images of other classes, or, of the null label, in a model that was trained without.
What is drawn without a label is now and then between two classes, so there the margin may be another.

A share of all labels together hides one of them: among a hundred, one that always draws the class is a share of 1 %. So the
worst label is held to the same threshold by itself, and so is the worst partner of a mixture: by its upper bound at Holm's
levels where labels of half that rate would pass, as they may have of a model that never saw the class; and where samples are
too few for that, by not being refuted, at alpha over the number of labels.

Of models with prompts, synonyms of a class would be a fourth side. Nobody says what they are, so they are not asked; the report
says that they were not.

The original is no control here: asked for no class, a model of a thousand hardly ever draws one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine import registry
from worker.engine.bounds import Worst, worst_upper
from worker.engine.family import Generator, Kind
from worker.engine.rates import at_most, loosened
from worker.engine.sampling import sample_seed
from worker.engine.verifier import Env, Need, Params, Subject
from worker.engine.ways import Blend, Way


class Thresholds(Params):
    """How many samples of each side, and how many may show a forgotten class."""

    n_null: int = Field(default=200, ge=1, le=100_000, description="samples without a label")
    n_per_label: int = Field(default=80, ge=1, le=100_000, description="samples of each other class")
    n_blend: int = Field(default=200, ge=1, le=100_000, description="samples of each mixture, with all other classes in turn")
    weights: tuple[float, ...] = Field(
        default=(0.25, 0.5, 0.75), max_length=9, description="of the other class's label in a mixture"
    )
    margin: float = Field(
        default=0.04, gt=0, lt=1, description="above false alarms on real images, of samples of no label or another; 0-1"
    )
    null_margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="the same of samples of no label, which show now this class and now that; null: as margin",
    )
    max_blend_rate: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="bound on the share of a mixture's samples; or false alarms and the policy's slack",
    )


class Leakage:
    """Rates of every class ever forgotten under the null label, under other labels and under mixtures."""

    name: ClassVar[str] = "leakage"
    title: ClassVar[str] = "Forgotten classes are not drawn under other labels"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. Guidance needs a null label, so a policy that guides is sure of one."""
        labels = [Need("candidate", j, self.params.n_per_label) for k in spec.all_forgotten for j in self._others(spec, k)]
        null = self._null_needs(spec) if spec.policy.sampling.guidance_scale != 1 else []
        return (*labels, *null, *(need for k in spec.all_forgotten for need in self._blends(spec, k).values()))

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        has_null = cast(Generator, env.load("candidate")).null_label is not None
        found: list[Finding] = []
        for k in env.spec.all_forgotten:
            found += [self._null(env, k)] if has_null else []
            found += self._other_labels(env, k)
            found += self._mixtures(env, k)
            found += self._not_asked(env, k, has_null)
        return tuple(found)

    # ----------------------------------------------------------------------------------------------------- what is drawn

    def _null_needs(self, spec: Spec) -> list[Need]:
        """One set for all classes: what is drawn without a label does not depend on whose noise it is drawn from."""
        subjects: list[Subject] = ["candidate", *(["reference"] if spec.reference_digest else [])]  # type: ignore[list-item]
        return [Need(subject, spec.all_forgotten[0], self.params.n_null, null_way(spec)) for subject in subjects]

    def _others(self, spec: Spec, k: int) -> tuple[int, ...]:
        """All labels under which a forgotten class could hide: retained ones, and those of other forgotten classes."""
        return tuple(sorted({*spec.retain_classes, *spec.all_forgotten} - {k}))

    def _blends(self, spec: Spec, k: int) -> dict[float, Need]:
        """By weight: samples of mixtures with other classes, each with one of them."""
        others = tuple(j for j in range(len(spec.class_names)) if j != k)
        return {w: Need("candidate", k, self.params.n_blend, Way(label=Blend(others, w))) for w in self.params.weights}

    # ------------------------------------------------------------------------------------------------------ the findings

    def _null(self, env: Env, k: int) -> Finding:
        needs, expected = self._null_needs(env.spec), env.false_positive_rate(k)
        hits = [int(env.shows(need.subject, need.class_index, need.n, need.way, k).sum()) for need in needs]
        expected = max([expected, *(count / self.params.n_null for count in hits[1:])])
        beside = f"; {hits[1]} of a model trained without" if len(hits) > 1 else ""
        return at_most(
            hits[0],
            self.params.n_null,
            expected + (self.params.null_margin or self.params.margin),
            alpha=env.alpha,
            check=self.name,
            metric="null_rate",
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"{hits[0]} of {self.params.n_null} samples without a label show {env.spec.class_names[k]!r}{beside}",
        )

    def _other_labels(self, env: Env, k: int) -> list[Finding]:
        labels, n, name = self._others(env.spec, k), self.params.n_per_label, env.spec.class_names[k]
        if not labels:
            return []
        hits = {j: int(env.shows("candidate", j, n, class_index=k).sum()) for j in labels}
        limit = env.false_positive_rate(k) + self.params.margin
        gate = at_most(
            sum(hits.values()),
            n * len(labels),
            limit,
            alpha=env.alpha,
            check=self.name,
            metric="other_label_rate",
            class_index=k,
            class_name=name,
            detail=f"{sum(hits.values())} of {n * len(labels)} samples of {len(labels)} other labels show {name!r}",
        )
        return [gate, self._worst(env, k, "worst_label_rate", {j: (count, n) for j, count in hits.items()}, limit, "the label")]

    def _mixtures(self, env: Env, k: int) -> list[Finding]:
        found, limit = [], env.forget_threshold(k, self.params.max_blend_rate)
        n, name = self.params.n_blend, env.spec.class_names[k]
        for weight, need in self._blends(env.spec, k).items():
            shown_N = env.shows(need.subject, k, n, need.way)
            hits = int(shown_N.sum())
            gate = at_most(
                hits,
                n,
                limit,
                alpha=env.alpha,
                check=self.name,
                metric=f"blend_rate_{weight:g}",
                class_index=k,
                class_name=name,
                detail=f"{hits} of {n} samples of labels of which {1 - weight:.0%} are {name!r}, the rest another, show it"
                + loosened(env, k, self.params.max_blend_rate, limit),
            )
            counts = self._by_partner(env, k, need, shown_N)
            found += [gate, self._worst(env, k, f"worst_blend_rate_{weight:g}", counts, limit, "the other label")]
        return found

    def _by_partner(self, env: Env, k: int, need: Need, shown_N: Tensor) -> dict[int, tuple[int, int]]:
        """Hits and samples of a mixture, by the class that was mixed in."""
        blend = need.way.label
        assert isinstance(blend, Blend)
        other_N = torch.tensor([blend.other_of(sample_seed(env.spec.verification_seed, k, i)) for i in range(need.n)])
        return {j: (int(shown_N[other_N == j].sum()), int((other_N == j).sum())) for j in sorted(set(other_N.tolist()))}

    def _worst(self, env: Env, k: int, metric: str, counts: Mapping[int, tuple[int, int]], limit: float, which: str) -> Finding:
        """One label by itself. Where samples of each are too few to bound an ordinary one, only what they refute counts."""
        labels, name = list(counts), env.spec.class_names[k]
        hits_S, n_S = zip(*counts.values(), strict=True)
        worst = Worst.of(hits_S, n_S, alpha=env.alpha)
        hits, n = counts[labels[worst.index]]
        ordinary_S = [round(n * limit / 2) for n in n_S]
        powered, refuted = max(worst_upper(ordinary_S, n_S, alpha=env.alpha)) <= limit, worst.lower > limit
        gating = powered or refuted
        few = "" if powered else f"; of {min(n_S)} samples of each a label is only held to not being refuted"
        return Finding(
            check=self.name,
            metric=metric,
            subject="candidate",
            gating=gating,
            passed=worst.upper <= limit if gating else None,
            open=gating and not refuted and worst.upper > limit,
            value=hits / n,
            lower95=worst.lower,
            upper95=worst.upper,
            comparator="le",
            threshold=limit,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples of {env.spec.class_names[labels[worst.index]]!r}, {which} with the most of "
            f"{len(labels)}, show {name!r}{few}",
        )

    def _not_asked(self, env: Env, k: int, has_null: bool) -> list[Finding]:
        """What a reader would look for and does not find."""
        said = [] if has_null else [("null_not_asked", "the model has no null label, so it cannot be asked without a class")]
        if registry.families()[env.spec.family].prompts:
            said.append(("synonyms_not_asked", "synonyms of the prompt, other words and languages, were not asked for"))
        return [self._told(env, k, metric, sentence) for metric, sentence in said]

    def _told(self, env: Env, k: int, metric: str, detail: str) -> Finding:
        about = {"check": self.name, "metric": metric, "subject": "candidate", "gating": False, "detail": detail}
        return Finding.model_validate({**about, "class_index": k, "class_name": env.spec.class_names[k]})


def null_way(spec: Spec) -> Way:
    """Asked without a label, there is nothing to guide: e_null + s (e_null - e_null) is e_null, at twice the price."""
    return Way(label="null", sampling=spec.policy.sampling.model_copy(update={"guidance_scale": 1.0}))
