"""Does the class come back when the published weights are made smaller? Rounded to 16 and 8 bits it must not.

What unlearning moves is often less than what rounding moves, so that a narrower copy is nearer to the model before than to the
one that was verified. People publish such copies within days. 4 bits, and pruning, cost a model so much that what comes back
is reported and gates nothing.

Source: Zhang et al. 2024, "Catastrophic Failure of LLM Unlearning via Quantization", arXiv:2410.16454, of language models.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from worker.contract import Curve, Finding, MaskSpec, Spec, Tier
from worker.engine.compression import Compression
from worker.engine.errors import BadInput
from worker.engine.family import Kind
from worker.engine.rates import loosened
from worker.engine.region import described
from worker.engine.statistics import lower_bound, paired_difference_upper, upper_bound, wilson_interval
from worker.engine.verifier import Env, Need, Params, corruptions_of, require_classes, ways_of
from worker.engine.ways import Way

Gated = Literal["bf16", "fp16", "int8"]
Reported = Literal["int4", "prune10", "prune30", "prune50"]
AXES: dict[str, dict[Compression, float]] = {
    "bits of a weight": {"none": 32, "bf16": 16, "int8": 8, "int4": 4},
    "share of weights that is zero": {"none": 0.0, "prune10": 0.1, "prune30": 0.3, "prune50": 0.5},
}
"""What is drawn: along each, the setting that is nearest to the published weights comes first."""


class Thresholds(Params):
    """Which copies, of how many samples, and how much oftener than as published they may show the class."""

    n_per_class: int = Field(
        default=200, ge=1, le=100_000, description="samples of each forgotten class; held-out images at most, to be completed"
    )
    max_rate: float = Field(default=0.05, gt=0, lt=1, description="bound on the share that shows the class as published, 0-1")
    slack: float = Field(default=0.02, ge=0, lt=1, description="what a smaller copy's bound may lie above that, 0-1")
    gate: tuple[Gated, ...] = Field(default=("bf16", "fp16", "int8"), min_length=1, description="copies that must not show it")
    report: tuple[Reported, ...] = Field(
        default=("int4", "prune10", "prune30", "prune50"), description="copies that are measured beside them and gate nothing"
    )

    @property
    def threshold(self) -> float:
        """Of the bound."""
        return self.max_rate + self.slack


class CompressionCheck:
    """The forgotten classes in smaller copies of the candidate: drawn, named, or completed."""

    name: ClassVar[str] = "compression"
    title: ClassVar[str] = "Forgotten classes do not come back in smaller copies of the weights"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator", "classifier", "i2i")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Asked for copy by copy: a network is compressed when its turn comes. Raises: BadInput for no forgotten class."""
        require_classes(spec)
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        if env.kind == "i2i":
            return tuple(
                self._rise(env, how, k, corruption, prompted)
                for how in (*self.params.gate, *self.params.report)
                for corruption in corruptions_of(env.spec)
                for prompted in ways_of(env.spec)
                for k in env.spec.all_forgotten
            )
        shown: dict[tuple[Compression, int], Tensor] = {}
        copies: tuple[Compression, ...] = ("none", *self.params.gate, *self.params.report)
        for how in copies:
            for k in env.spec.all_forgotten:
                shown[how, k] = self._shown(env, how, k)
        for k in env.spec.all_forgotten:
            self._draw(env, k, {how: hits_N for (how, about), hits_N in shown.items() if about == k})
        return tuple(self._rate(env, how, k, hits_N) for (how, k), hits_N in shown.items() if how != "none")

    def _shown(self, env: Env, how: Compression, k: int) -> Tensor:
        """(N,) bool: which samples show the class, or which held-out images of it are named. Raises: BadInput for none."""
        if env.kind == "generator":
            return env.shows("candidate", k, self.params.n_per_class, Way(compression=how))
        hits_N = env.answers("candidate", k, how).argmax(dim=1) == k
        if not len(hits_N):
            raise BadInput(f"expected held-out images of {env.spec.class_names[k]!r}, found none")
        return hits_N

    def _threshold(self, env: Env, k: int) -> float:
        """Two judges raise more false alarms than one, of samples as published and of these."""
        most = self.params.max_rate
        if env.kind == "generator" and len(env.judges) > 1:
            most = env.forget_threshold(k, most)
        return most + self.params.slack

    def _rate(self, env: Env, how: Compression, k: int, hits_N: Tensor) -> Finding:
        hits, n, name = int(hits_N.sum()), len(hits_N), env.spec.class_names[k]
        threshold, upper = self._threshold(env, k), upper_bound(hits, n, alpha=env.alpha)
        because = loosened(env, k, self.params.threshold, threshold) if env.kind == "generator" else ""
        low, high = wilson_interval(hits, n)
        what = "samples of" if env.kind == "generator" else "held-out images of"
        role = "show it" if env.kind == "generator" else "are recognised"
        refuted = lower_bound(hits, n, alpha=env.alpha) > threshold
        # Not even nobody can reach the bound: as little is shown of a true retrain.
        powerless = upper_bound(0, n, alpha=env.alpha) > threshold and not refuted
        gating = how in self.params.gate and not powerless
        return Finding(
            check=self.name,
            metric=f"forget_rate_{how}",
            subject="candidate",
            gating=gating,
            underpowered=how in self.params.gate and powerless,
            passed=upper <= threshold if gating else None,
            open=gating and upper > threshold and not refuted,
            value=hits / n,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            count=hits,
            class_index=k,
            class_name=name,
            detail=f"{hits} of {n} {what} {name!r} {role} with weights in {_named(how)} (Wilson 95 %: {low:.1%} to {high:.1%})"
            + because,
        )

    def _draw(self, env: Env, k: int, shown: dict[Compression, Tensor]) -> None:
        for axis, places in AXES.items():
            at = [(x, shown[how]) for how, x in places.items() if how in shown]
            if len(at) < 2:
                continue
            rates = [(int(hits_N.sum()), len(hits_N)) for _, hits_N in at]
            env.curves.append(
                Curve(
                    check=self.name,
                    name=f"{axis}: {env.spec.class_names[k]}",
                    x_name=axis,
                    y_name="share that shows the class",
                    x=tuple(x for x, _ in at),
                    y=tuple(hits / n for hits, n in rates),
                    lower95=tuple(wilson_interval(hits, n)[0] for hits, n in rates),
                    upper95=tuple(wilson_interval(hits, n)[1] for hits, n in rates),
                    subject="candidate",
                    class_index=k,
                    class_name=env.spec.class_names[k],
                    threshold=self._threshold(env, k),
                )
            )

    # ----------------------------------------------------------------------------------------------------- of completions

    def _rise(self, env: Env, how: Compression, k: int, corruption: MaskSpec, prompted: bool) -> Finding:
        """By how much oftener a copy's completions show the class than the candidate's own, which others hold to a level."""
        seen = [self._completed(env, one, k, corruption, prompted) for one in (how, "none")]
        more, fewer = (int((a & ~b).sum()) for a, b in (seen, seen[::-1]))
        n, name, threshold, alpha = len(seen[0]), env.spec.class_names[k], self.params.threshold, env.alpha
        upper = paired_difference_upper(more, fewer, n, alpha=alpha)
        refuted = -paired_difference_upper(fewer, more, n, alpha=alpha) > threshold
        powerless = paired_difference_upper(0, 0, n, alpha=alpha) > threshold and not refuted
        gating = how in self.params.gate and not powerless
        return Finding(
            check=self.name,
            metric=f"forget_rate_rise_{how}{'_prompted' if prompted else ''}",
            subject="candidate",
            gating=gating,
            underpowered=how in self.params.gate and powerless,
            passed=upper <= threshold if gating else None,
            open=gating and upper > threshold and not refuted,
            value=(more - fewer) / n,
            upper95=upper,
            comparator="le",
            threshold=threshold,
            n=n,
            count=int(seen[0].sum()),
            class_index=k,
            class_name=name,
            corruption=corruption,
            detail=f"{int(seen[0].sum())} of {n} completions show {name!r} with weights in {_named(how)}, as published "
            f"{int(seen[1].sum())}, {described(corruption)}",
        )

    def _completed(self, env: Env, how: Compression, k: int, corruption: MaskSpec, prompted: bool) -> Tensor:
        n = self.params.n_per_class
        images_NCHW = env.samples("candidate", k, n, Way(corruption, prompted, compression=how))
        if not len(images_NCHW):
            raise BadInput(f"expected held-out images of {env.spec.class_names[k]!r}, found none")
        judged = env.region_judge(corruption).look(images_NCHW, env.hidden(corruption, k, n))
        return judged.predicted_N == k


def _named(how: Compression) -> str:
    return f"full, but {how.removeprefix('prune')} % of them zero" if how.startswith("prune") else how
