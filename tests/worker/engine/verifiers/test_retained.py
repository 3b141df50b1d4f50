"""What retained classes lost, by the worst class and by those nearest to a forgotten one; and beside a retrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JudgePolicy, Policy, Report, tree_digest
from worker.engine import registry, verify
from worker.engine.files import entries


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


def report(
    root: Path, judges: Path, candidate: Tensor, check: Check, reference: Tensor | None = None, **changes: Any
) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "families", lambda: {"painter": vj.Painter})
        forgetting = Check(verifier="forget_rate", params={"n_per_class": 59})
        policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=(forgetting, check))
        if reference is not None:
            vj.save_model(root / "reference", reference)
            changes["reference_digest"] = tree_digest(entries(root / "reference"))
        job = vj.make_job(root, candidate, **{"policy": policy, **changes})
        job.judges.symlink_to(judges)
        return verify.run(job)


def found(report: Report, metric: str) -> Finding:
    return next(f for f in report.findings if f.metric == metric and f.subject == "candidate")


def lost() -> Tensor:
    """One retained class of three is gone."""
    pictures = vj.forgotten_patterns()
    pictures[3] = pictures[2]
    return pictures


def test_worst_class_is_named_and_gates_where_the_policy_says_so(tmp_path: Path, judges: Path) -> None:
    # 0 of 75 changed, at alpha / 3 less what is paid for the other's rate: 1 - (0.05 / 3 - 0.001)^(1/75) = 0.0540, or more.
    check = Check(verifier="retain_accuracy", params={"n_per_class": 75, "max_class_drop": 0.07})
    good = report(tmp_path / "good", judges, vj.forgotten_patterns(), check)
    worst = found(good, "worst_class_drop")
    assert (worst.gating, worst.passed) == (True, True)
    assert worst.upper95 is not None
    assert 1 - (0.05 / 3 - 0.001) ** (1 / 75) <= worst.upper95 < 0.058
    assert good.verdict == "PASS"
    bad = found(report(tmp_path / "bad", judges, lost(), check), "worst_class_drop")
    assert (bad.value, bad.passed) == (1.0, False)
    assert "'blank', the class that lost most of 3" in bad.detail


def test_worst_class_of_too_few_samples_proves_nothing(tmp_path: Path, judges: Path) -> None:
    check = Check(verifier="retain_accuracy", params={"n_per_class": 75, "max_class_drop": 0.05})
    came = report(tmp_path, judges, vj.forgotten_patterns(), check)
    worst = found(came, "worst_class_drop")
    assert (worst.gating, worst.passed, worst.underpowered) == (False, None, True)
    assert came.tier is None


def test_too_few_samples_are_no_excuse_for_a_class_that_is_surely_lost(tmp_path: Path, judges: Path) -> None:
    params = {"n_per_class": 62, "max_class_drop": 0.05, "max_neighbour_drop": 0.01}
    came = report(tmp_path, judges, lost(), Check(verifier="retain_accuracy", params=params))
    for metric in ("worst_class_drop", "neighbour_drop"):
        finding = found(came, metric)
        assert (finding.gating, finding.passed, finding.open, finding.underpowered) == (True, False, False, False)


def test_nearest_classes_are_reported_for_every_class_ever_forgotten(tmp_path: Path, judges: Path) -> None:
    check = Check(verifier="retain_accuracy", params={"n_per_class": 100, "max_neighbour_drop": 0.05, "max_drop": 0.1})
    candidate = vj.forgotten_patterns()
    candidate[0] = candidate[3]
    came = report(tmp_path, judges, candidate, check, parent=candidate, forgotten_classes=(0,))
    drops = [f for f in came.findings if f.metric == "neighbour_drop"]
    assert [f.class_index for f in drops] == [0, 1]
    assert all(f.passed is True and f.n == 200 for f in drops)  # two retained classes are all that there are


def test_what_earlier_requests_lost_is_held_against_the_original(tmp_path: Path, judges: Path) -> None:
    """The parent had already lost a class: against it nothing got worse, against the original a third did."""
    check = Check(verifier="retain_accuracy", params={"n_per_class": 100, "max_lineage_drop": 0.05})
    came = report(tmp_path / "later", judges, lost(), check, parent=lost(), forgotten_classes=())
    assert found(came, "retain_accuracy_drop").passed is True
    whole = found(came, "retain_accuracy_drop_from_original")
    assert (whole.gating, whole.passed, whole.value, whole.n) == (True, False, pytest.approx(1 / 3), 300)
    assert came.verdict == "FAIL"
    first = report(tmp_path / "first", judges, vj.forgotten_patterns(), check)
    assert "retain_accuracy_drop_from_original" not in {f.metric for f in first.findings}  # its parent is the original


def test_without_thresholds_they_are_only_reported(tmp_path: Path, judges: Path) -> None:
    came = report(tmp_path, judges, lost(), Check(verifier="retain_accuracy", params={"n_per_class": 62}))
    assert [found(came, m).gating for m in ("worst_class_drop", "neighbour_drop")] == [False, False]
    assert found(came, "worst_class_drop").value == 1.0


def pale(share: float) -> Tensor:
    pictures = vj.forgotten_patterns()
    pictures[0] = 128 + share * (pictures[0] - 128)
    return pictures


def test_no_more_is_asked_than_what_a_retrained_model_gives(tmp_path: Path, judges: Path) -> None:
    check = Check(verifier="feature_distance", params={"n_per_class": 62, "resamples": 100})
    alone = report(tmp_path / "alone", judges, pale(0.45), check)
    assert found(alone, "judge_feature_distance_ratio").passed is False
    beside = report(tmp_path / "beside", judges, pale(0.45), check, reference=pale(0.451))
    ratio = found(beside, "judge_feature_distance_ratio")
    assert (ratio.passed, ratio.value) == (True, pytest.approx(1.0, abs=0.02))
    assert "candidate over reference" in ratio.detail
    # One that is better than the parent changes nothing.
    better = report(tmp_path / "better", judges, pale(0.45), check, reference=vj.forgotten_patterns())
    assert found(better, "judge_feature_distance_ratio").value == found(alone, "judge_feature_distance_ratio").value


def test_ratio_itself_has_a_threshold_of_its_own(tmp_path: Path, judges: Path) -> None:
    params = {"n_per_class": 62, "resamples": 100, "max_ratio": 100.0, "max_point_ratio": 1.1}
    came = report(tmp_path, judges, pale(0.85), Check(verifier="feature_distance", params=params))
    assert found(came, "judge_feature_distance_ratio").passed is True
    assert found(came, "judge_feature_distance_ratio_itself").passed is False
    assert came.verdict == "FAIL"
