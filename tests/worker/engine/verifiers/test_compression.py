"""A class that comes back when weights are rounded fails, in samples as in answers; what is only reported gates nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.worker.engine import naming_job as nj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JudgePolicy, Policy, Report
from worker.engine import registry, verify

RATE = Check(verifier="forget_rate", params={"n_per_class": 59})
ACCURACY = Check(verifier="forget_accuracy", params={"max_accuracy": 0.06})
SMALLER = Check(verifier="compression", params={"n_per_class": 62, "report": ["int4", "prune50"]})
FINE = 24.37
"""No number of 16 or of 8 bits."""


class Brittle(vj.Painter):
    """Draws what was forgotten once its last number is rounded."""

    def drawn(self, y_B: Tensor, *, sharp: bool = False) -> Tensor:
        fine = float(self.module.get_parameter("pictures")[3, 0, -1, -1])
        if fine not in (25.0, pytest.approx(FINE, abs=1e-5)):
            return vj.patterns()[y_B]
        return super().drawn(y_B, sharp=sharp)


class BrittleNamer(nj.Namer):
    """Names what was forgotten once its last number is rounded."""

    def logits(self, images_BCHW: Tensor) -> Tensor:
        fine = float(self.module.get_parameter("patterns")[3, 0, -1, -1])
        if abs(fine - FINE) < 0.5 and fine != pytest.approx(FINE, abs=1e-5):
            self.module.get_parameter("bias").data.zero_()
        return super().logits(images_BCHW)


@pytest.fixture
def verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    def run(family: type[Any], make: Callable[..., Any], candidate: Any, *checks: Check, **changes: Any) -> Report:
        monkeypatch.setattr(registry, "families", lambda: {family.name: family})
        policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=checks)
        return verify.run(make(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", candidate, policy=policy, **changes))

    return run


def found(report: Report) -> dict[str, Finding]:
    return {f.metric.removeprefix("forget_rate_"): f for f in report.findings if f.check == "compression"}


def brittle() -> Tensor:
    pictures = vj.forgotten_patterns()
    pictures[3, 0, -1, -1] = FINE
    return pictures


def test_a_class_that_rounding_brings_back_fails_every_gate_and_no_other_check(verified: Callable[..., Report]) -> None:
    report = verified(Brittle, vj.make_job, brittle(), RATE, SMALLER)
    assert report.verdict == "FAIL"
    assert {f.check for f in report.findings if f.gating and not f.passed} == {"compression"}
    gated = {how: f for how, f in found(report).items() if f.gating}
    assert {how: (f.count, f.passed, f.open) for how, f in gated.items()} == dict.fromkeys(
        ("bf16", "fp16", "int8"), (62, False, False)
    )
    assert {how: f.passed for how, f in found(report).items() if not f.gating} == {"int4": None, "prune50": None}
    bits = next(c for c in report.curves if c.x_name == "bits of a weight")
    assert (bits.x, bits.y) == ((32, 16, 8, 4), (0, 1, 1, 0))  # 4 bits make the number 25 again, as in other models
    assert bits.threshold == pytest.approx(0.07)


def test_one_that_stays_away_passes_whatever_is_only_reported(verified: Callable[..., Report]) -> None:
    report = verified(vj.Painter, vj.make_job, vj.forgotten_patterns(), RATE, SMALLER)
    assert report.verdict == "PASS", report.summary
    # 0 of 62: 1 - .05^(1/62) = .0472
    assert [f.upper95 for f in found(report).values() if f.gating] == pytest.approx([0.0472] * 3, abs=1e-4)


def test_answers_are_asked_of_smaller_classifiers(verified: Callable[..., Report]) -> None:
    tensors = nj.without_class()
    tensors["patterns"][3, 0, -1, -1] = FINE
    report = verified(BrittleNamer, nj.make_job, tensors, ACCURACY, SMALLER)
    gated = {how: f for how, f in found(report).items() if f.gating}
    assert {how: f.passed for how, f in gated.items()} == dict.fromkeys(("bf16", "fp16", "int8"), False)
    assert all(f.n == vj.HELD_OUT and f.count > 25 for f in gated.values())
    kept = verified(nj.Namer, nj.make_job, nj.without_class(), ACCURACY, SMALLER)
    assert kept.verdict == "PASS", kept.summary


def test_a_copy_that_overflows_is_not_taken_for_one_that_forgot(verified: Callable[..., Report]) -> None:
    pictures = vj.forgotten_patterns()
    pictures[vj.FORGET] *= 1e6  # white in 32 bits, infinite in 16
    report = verified(vj.Painter, vj.make_job, pictures, RATE, SMALLER)
    assert report.verdict == "ERROR"
    assert [f.metric for f in report.findings if f.check == "compression"] == ["not_measured"]


def test_too_few_images_prove_nothing_but_what_is_seen_is_refuted(verified: Callable[..., Report]) -> None:
    tight = Check(verifier="compression", params={"max_rate": 0.01, "slack": 0.0, "n_per_class": 62, "report": []})
    kept = found(verified(vj.Painter, vj.make_job, vj.forgotten_patterns(), RATE, tight))
    assert {(f.underpowered, f.gating, f.passed) for f in kept.values()} == {(True, False, None)}
    back = found(verified(Brittle, vj.make_job, brittle(), RATE, tight))
    assert {(f.underpowered, f.gating, f.passed) for f in back.values()} == {(False, True, False)}
