"""Are the classes forgotten under other settings than those of the policy, too? A user may choose any.

The forget rate of `forget_rate`, over guidance, sampler, steps and arithmetic: one factor at a time by default, all
combinations where the policy asks for the full grid. The worst setting must stay below the threshold, all of them tested
together at Holm's levels. The rates along guidance and steps are curves of the report.

A model without a null label cannot be guided, so guidance is not swept.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from pydantic import Field

from worker.contract import Curve, Finding, Sampling, Spec, Tier
from worker.engine.bounds import Worst
from worker.engine.family import Generator, Kind
from worker.engine.rates import loosened, underpowered
from worker.engine.statistics import lower_bound, upper_bound
from worker.engine.verifier import Env, Need, Params
from worker.engine.ways import DRAWN, Arithmetic, Way

MOST_STEPS = 1000


class Thresholds(Params):
    """Which settings, how many samples under each, and how many may show a forgotten class."""

    n_per_setting: int = Field(default=100, ge=1, le=100_000, description="samples of each forgotten class under each setting")
    guidance: tuple[float, ...] = Field(default=(1.0, 1.5, 4.0, 7.5), max_length=16, description="guidance scales; 1 is none")
    samplers: tuple[Literal["ddim", "dpm++"], ...] = Field(default=("ddim", "dpm++"), max_length=2, description="samplers")
    step_factors: tuple[float, ...] = Field(default=(0.5, 2.0), max_length=8, description="times the policy's number of steps")
    arithmetic: tuple[Arithmetic, ...] = Field(default=("fp32", "bf16", "fp16"), max_length=3, description="number formats")
    full_grid: bool = Field(default=False, description="all combinations, in place of one factor at a time")
    max_rate: float = Field(
        default=0.08,
        gt=0,
        lt=1,
        description="bound on the worst setting's share that shows the class; or false alarms and twice the policy's slack",
    )


@dataclass(frozen=True)
class Setting:
    """One way to draw, and its name for people."""

    sampling: Sampling
    arithmetic: Arithmetic

    @property
    def name(self) -> str:
        s = self.sampling
        return f"{s.sampler}, {s.steps} steps, guidance {s.guidance_scale:g}, {self.arithmetic}"

    def way(self, spec: Spec) -> Way:
        """The policy's own way where nothing differs, so that its samples are not drawn twice."""
        if self == Setting(spec.policy.sampling, "fp32"):
            return DRAWN
        return Way(sampling=self.sampling, arithmetic=self.arithmetic)


class SettingSweep:
    """The forget rate of every class ever forgotten, at the worst of several settings."""

    name: ClassVar[str] = "setting_sweep"
    title: ClassVar[str] = "Forgotten classes are not drawn under other settings"
    tier: ClassVar[Tier] = "L2"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """See `Verifier.needs`. A policy that guides is sure of a null label; else guidance is added when one is found."""
        settings = self.settings(spec, guided=spec.policy.sampling.guidance_scale != 1)
        return tuple(
            Need("candidate", k, self.params.n_per_setting, setting.way(spec))
            for k in spec.all_forgotten
            for setting in settings
        )

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        guided = cast(Generator, env.load("candidate")).null_label is not None
        settings, n = self.settings(env.spec, guided=guided), self.params.n_per_setting
        env.prefetch(Need("candidate", k, n, s.way(env.spec)) for k in env.spec.all_forgotten for s in settings)
        found: list[Finding] = []
        for k in env.spec.all_forgotten:
            hits = {s: int(env.shows("candidate", k, n, s.way(env.spec)).sum()) for s in settings}
            found += [self._worst(env, k, hits), *(self._reported(env, k, s, count) for s, count in hits.items())]
            env.curves += self._curves(env, k, hits)
        return tuple(found)

    def settings(self, spec: Spec, *, guided: bool) -> tuple[Setting, ...]:
        """The policy's own first; none twice."""
        own = spec.policy.sampling
        guidance = [own.guidance_scale, *(self.params.guidance if guided else ())]
        samplers = [own.sampler, *self.params.samplers]
        steps = [own.steps, *(min(MOST_STEPS, max(1, round(f * own.steps))) for f in self.params.step_factors)]
        arithmetic: list[Arithmetic] = ["fp32", *self.params.arithmetic]
        combinations = list(itertools.product(guidance, samplers, steps, arithmetic))
        if not self.params.full_grid:
            here = combinations[0]
            combinations = [c for c in combinations if sum(a != b for a, b in zip(c, here, strict=True)) <= 1]
        made = [
            Setting(own.model_copy(update={"guidance_scale": g, "sampler": s, "steps": t}), a) for g, s, t, a in combinations
        ]
        return tuple(dict.fromkeys(made))

    def _worst(self, env: Env, k: int, hits: dict[Setting, int]) -> Finding:
        n, count = self.params.n_per_setting, len(hits)
        limit = env.forget_threshold(k, self.params.max_rate - env.slack) + env.slack
        found = Worst.of(list(hits.values()), [n] * count, alpha=env.alpha)
        worst, lower, upper = list(hits)[found.index], found.lower, found.upper
        finding = Finding(
            check=self.name,
            metric="worst_setting_rate",
            subject="candidate",
            gating=True,
            passed=upper <= limit,
            open=lower <= limit < upper,
            value=hits[worst] / n,
            lower95=lower,
            upper95=upper,
            comparator="le",
            threshold=limit,
            n=n,
            count=hits[worst],
            class_index=k,
            class_name=env.spec.class_names[k],
            detail=f"most of {count} settings: {hits[worst]} of {n} samples show it at {worst.name}"
            + loosened(env, k, self.params.max_rate, limit),
        )
        return finding if found.least <= limit or lower > limit else underpowered(finding)

    def _reported(self, env: Env, k: int, setting: Setting, hits: int) -> Finding:
        n, name = self.params.n_per_setting, env.spec.class_names[k]
        return Finding(
            check=self.name,
            metric="setting_rate",
            subject="candidate",
            gating=False,
            value=hits / n,
            upper95=upper_bound(hits, n, alpha=env.alpha),
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} samples of {name!r} show it at {setting.name}",
        )

    def _curves(self, env: Env, k: int, hits: dict[Setting, int]) -> list[Curve]:
        """Along guidance and along steps, all else as in the policy."""
        own, n, curves = Setting(env.spec.policy.sampling, "fp32"), self.params.n_per_setting, []
        for x_name, key in (("guidance scale", "guidance_scale"), ("steps", "steps")):
            along = [
                s for s in hits if Setting(s.sampling.model_copy(update={key: getattr(own.sampling, key)}), s.arithmetic) == own
            ]
            along.sort(key=lambda s: getattr(s.sampling, key))
            if len(along) < 2:
                continue
            curve = Curve(
                check=self.name,
                name=f"{env.spec.class_names[k]}: {x_name}",
                x_name=x_name,
                y_name="share of samples that show the class",
                x=tuple(float(getattr(s.sampling, key)) for s in along),
                y=tuple(hits[s] / n for s in along),
                lower95=tuple(lower_bound(hits[s], n, alpha=env.alpha) for s in along),
                upper95=tuple(upper_bound(hits[s], n, alpha=env.alpha) for s in along),
                subject="candidate",
                class_index=k,
                class_name=env.spec.class_names[k],
                threshold=self.params.max_rate,
            )
            curves.append(curve)
        return curves
