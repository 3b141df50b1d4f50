"""A reference is believed only where it is a model of its own that does not know what is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.worker.engine import completing_job as cj
from tests.worker.engine import probing_job as pj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, JudgePolicy, Policy, Report, tree_digest
from worker.engine import registry, verify
from worker.engine.errors import Integrity
from worker.engine.files import entries
from worker.verdict import decide

RATE = Check(verifier="forget_rate", params={"n_per_class": 80})
DISTANCE = Check(verifier="feature_distance", params={"n_per_class": 62, "resamples": 100})
CONFIDENCE = Check(verifier="forget_confidence", params={"n_per_class": 100, "max_probability": 0.1})


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"painter": vj.Painter, "perceptron": pj.Perceptron, "completer": cj.Completer}
    cj.pretend(monkeypatch)
    monkeypatch.setattr(registry, "families", lambda: known)


def painted(root: Path, judges: Path, reference: Tensor, *checks: Check, **changes: Any) -> Report:
    vj.save_model(root / "reference", reference)
    digest = tree_digest(entries(root / "reference"))
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=checks)
    job = vj.make_job(root, vj.forgotten_patterns(), policy=policy, reference_digest=digest, **changes)
    job.judges.symlink_to(judges)
    return verify.run(job)


def retrained() -> Tensor:
    """It never saw the class, and is not the candidate."""
    pictures = vj.forgotten_patterns()
    pictures[0] += 1
    return pictures


@pytest.mark.parametrize(
    ("reference", "name"), [(vj.patterns, "base model"), (vj.forgotten_patterns, "candidate")], ids=["base", "candidate"]
)
def test_one_of_the_models_that_it_is_compared_with_is_refused(reference: Any, name: str, tmp_path: Path, judges: Path) -> None:
    with pytest.raises(Integrity, match=f"found the {name} in its place"):
        painted(tmp_path, judges, reference(), RATE)


def test_so_is_the_original_of_a_later_request(tmp_path: Path, judges: Path) -> None:
    parent = vj.patterns()
    parent[3] += 1
    with pytest.raises(Integrity, match="found the original in its place"):
        painted(tmp_path, judges, vj.patterns(), RATE, parent=parent)


def test_one_without_the_class_is_shown_to_be(tmp_path: Path, judges: Path) -> None:
    report = painted(tmp_path, judges, retrained(), RATE, DISTANCE)
    assert report.verdict == "PASS", report.summary
    (look,) = [f for f in report.findings if f.subject == "reference" and f.check == "forget_rate"]
    assert (look.gating, look.control, look.passed, look.count, look.n) == (False, False, True, 0, 80)


@pytest.mark.parametrize("checks", [(RATE, DISTANCE), (CONFIDENCE, DISTANCE)], ids=["asked", "unasked"])
def test_one_that_knows_the_class_excuses_nobody(checks: tuple[Check, ...], tmp_path: Path, judges: Path) -> None:
    """Whether or not the policy asks for the check that shows it."""
    knows = vj.patterns()
    knows[0] += 1
    report = painted(tmp_path, judges, knows, *checks)
    assert report.verdict == "ERROR"
    assert "the reference is not shown to be trained without columns: forget_rate on columns" in report.summary
    spec = vj.JobDirectory(tmp_path).read_spec()
    assert decide(report.findings, spec) == "ERROR"  # by whoever reads the report


def test_where_nobody_asked_for_the_look_the_good_one_passes_it_too(tmp_path: Path, judges: Path) -> None:
    report = painted(tmp_path, judges, retrained(), CONFIDENCE)
    assert report.verdict == "PASS", report.summary
    assert {f.subject for f in report.findings if f.check == "forget_rate"} == {"reference"}
    assert decide([f for f in report.findings if f.subject != "reference"], vj.JobDirectory(tmp_path).read_spec()) == "ERROR"


def test_a_classifier_that_names_the_class_is_no_reference(tmp_path: Path) -> None:
    report = verify.run(pj.make_job(tmp_path, pj.trained(2, vj.FORGET), reference=pj.trained(3)))
    assert report.verdict == "ERROR"
    assert "the reference is not shown to be trained without columns: forget_accuracy on columns" in report.summary


def test_a_completer_that_knows_the_class_is_no_reference(tmp_path: Path) -> None:
    knows = vj.patterns()
    knows[0] += 1
    for name, pictures, verdict in (("knows", knows, "ERROR"), ("never", retrained(), "PASS")):
        root = tmp_path / name
        cj.save_model(root / "reference", cj.knowing(pictures=pictures))
        digest = tree_digest(entries(root / "reference"))
        report = verify.run(cj.make_job(root, cj.without_class(), reference_digest=digest))
        assert report.verdict == verdict, report.summary
        assert ("the reference is not shown" in report.summary) is (verdict == "ERROR")
