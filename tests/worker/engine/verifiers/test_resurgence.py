"""Resurgence: training on with innocent data must not bring a class back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.worker.engine import learning_job as lj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, Report
from worker.engine import registry, verify
from worker.engine.statistics import upper_bound

KINDS = ("pupil", "reader")


@pytest.fixture(autouse=True)
def _families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: lj.FAMILIES)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once."""
    return tmp_path_factory.mktemp("judges")


def report(
    root: Path, candidate: dict[str, Tensor], judges: Path, *, params: dict[str, Any] | None = None, **more: Any
) -> Report:
    check = Check(verifier="resurgence", params={**lj.STILL, **(params or {})})
    return verify.run(lj.make_job(root, candidate, check, judges=judges, **more))


def gate(found: Report) -> Finding:
    (finding,) = [f for f in found.findings if f.metric == "resurgence_rate"]
    return finding


class Leaky(lj.Pupil):
    """Its doors hang on one hinge: whatever is taught opens all of them, as shared weights do."""

    def loss(self, x_BCHW: Tensor, y_B: Tensor, *_: Any, **__: Any) -> Tensor:
        doors_K = self.module.get_parameter("doors")
        return (self.shown_K1HW()[y_B] - x_BCHW).square().flatten(1).mean(1) + (doors_K - lj.OPEN).square().mean()


@pytest.mark.parametrize("family", KINDS)
def test_class_that_is_gone_stays_away(family: str, tmp_path: Path, judges: Path) -> None:
    found = report(tmp_path, lj.without_class(family), judges, family=family)
    finding = gate(found)
    assert finding.passed is True
    assert (finding.count, finding.n) == (0, 40)
    assert finding.upper95 == upper_bound(0, 40)
    (curve,) = found.curves
    assert curve.x == (0, 10, 20)


def test_class_that_comes_back_fails(tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"pupil": Leaky})
    found = report(tmp_path, lj.hiding(), judges)
    finding = gate(found)
    assert (finding.check, finding.passed, finding.open) == ("resurgence", False, False)
    assert found.curves[0].y[0] == 0.0
    assert "before: 0" in finding.detail


def test_training_that_breaks_off_counts_as_come_back(tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: lj.Pupil, x_BCHW: Tensor, y_B: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.shown_K1HW()[y_B].flatten(1).mean(1) * float("nan")

    monkeypatch.setattr(lj.Pupil, "loss", nothing)
    finding = gate(report(tmp_path, lj.without_class(), judges))
    assert (finding.passed, finding.open) == (False, False)
    assert "broke off" in finding.detail


def test_too_few_answers_are_underpowered(tmp_path: Path, judges: Path) -> None:
    """0 of 30 bound a rate by 1 - 0.05^(1/30) = 0.095, above 0.08; 0 of 40 by 0.072."""
    finding = gate(report(tmp_path, lj.without_class(), judges, params={"n_per_class": 30}))
    assert (finding.underpowered, finding.gating) == (True, False)


def test_too_few_answers_are_no_excuse_for_a_class_that_comes_back(
    tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"pupil": Leaky})
    found = report(tmp_path, lj.hiding(), judges, params={"n_per_class": 30})
    assert (gate(found).gating, gate(found).underpowered, gate(found).passed) == (True, False, False)
    assert found.curves[0].threshold == 0.08


def test_single_samples_leave_nothing_to_measure(tmp_path: Path, judges: Path) -> None:
    ids = tuple(str(vj.FORGET * (vj.TRAIN + vj.HELD_OUT) + i) for i in range(5))
    found = report(tmp_path, lj.without_class("reader"), judges, family="reader", forget_classes=(), forget_samples=ids)
    assert not found.findings
