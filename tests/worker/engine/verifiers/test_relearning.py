"""Relearning tells what is hidden from what is gone, by the time that it takes to come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine import learning_job as lj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, Report
from worker.engine import registry, verify
from worker.engine.verifiers.relearning import Thresholds

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
    pace = lj.SLOW if more.get("family", "pupil") == "pupil" else lj.GENTLE
    check = Check(verifier="relearning", params={**pace, **(params or {})})
    return verify.run(lj.make_job(root, candidate, check, judges=judges, **more))


def gate(found: Report) -> Finding:
    (finding,) = [f for f in found.findings if f.metric == "relearning_time_ratio"]
    return finding


@pytest.mark.parametrize("family", KINDS)
def test_hidden_class_is_back_at_once_and_fails(family: str, tmp_path: Path, judges: Path) -> None:
    finding = gate(report(tmp_path, lj.hiding(), judges, family=family))
    assert (finding.check, finding.gating, finding.passed, finding.open) == ("relearning", True, False, False)
    assert finding.value is not None
    assert finding.value < 0.4


@pytest.mark.parametrize("family", KINDS)
def test_class_never_seen_is_as_hard_to_teach_as_a_novel_one(family: str, tmp_path: Path, judges: Path) -> None:
    found = report(tmp_path, lj.without_class(family), judges, family=family)
    finding = gate(found)
    assert finding.passed is True
    assert finding.lower95 is not None
    assert finding.lower95 >= 0.5
    assert {"candidate", "novel class", "original"} == {c.subject for c in found.curves}


@pytest.mark.parametrize(("candidate", "passed"), [(lj.without_class, True), (lj.hiding, False)])
def test_several_settings_are_held_together(candidate: Any, passed: bool, tmp_path: Path, judges: Path) -> None:
    params = {"images": [5, 20], "rates": [0.5, 1.0]}
    finding = gate(report(tmp_path, candidate(), judges, params=params))
    assert (finding.passed, finding.open) == (passed, False)
    assert "worst of 4 settings that tell, of 4" in finding.detail
    assert finding.value is not None
    assert finding.value <= 1


@pytest.mark.parametrize("family", KINDS)
def test_unchanged_original_fails_without_an_update(family: str, tmp_path: Path, judges: Path) -> None:
    finding = gate(report(tmp_path, lj.knowing(), judges, family=family))
    assert (finding.passed, finding.open, finding.value, finding.lower95) == (False, False, 0.0, 0.0)


@pytest.mark.parametrize(("candidate", "passed"), [(lj.without_class, True), (lj.hiding, False)])
def test_reference_is_the_control_where_there_is_one(candidate: Any, passed: bool, tmp_path: Path, judges: Path) -> None:
    another = {name: tensor + 1e-4 for name, tensor in lj.without_class().items()}
    found = report(tmp_path, candidate(), judges, reference=another)
    assert gate(found).passed is passed
    assert {c.subject for c in found.curves} == {"candidate", "reference", "original"}


def test_same_seeds_give_the_same_findings(tmp_path: Path, judges: Path) -> None:
    one, two = (report(tmp_path / name, lj.without_class(), judges) for name in ("one", "two"))
    assert one.findings == two.findings
    assert one.curves == two.curves


def test_model_that_cannot_be_trained_never_passes(tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: lj.Pupil, x_BCHW: Tensor, y_B: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.shown_K1HW()[y_B].flatten(1).mean(1) * float("nan")

    monkeypatch.setattr(lj.Pupil, "loss", nothing)
    found = report(tmp_path, lj.without_class(), judges)
    (finding,) = [f for f in found.findings if f.gating or f.metric == "not_measured"]
    assert finding.metric == "not_measured"
    assert "broke off" in finding.detail
    assert found.verdict == "ERROR"


def of_five_images(root: Path, candidate: dict[str, Tensor], judges: Path) -> Finding:
    """Five images are held out of the class."""
    check = Check(verifier="relearning", params=lj.GENTLE)
    job = lj.make_job(root, candidate, check, family="reader", judges=judges)
    spec = job.read_spec()
    per_class = vj.TRAIN + vj.HELD_OUT
    forgotten = {i for i in spec.dataset.held_out_ids if int(i) // per_class == vj.FORGET}
    kept = {i for i in forgotten if int(i) % per_class < vj.TRAIN + 5}
    held_out = tuple(i for i in spec.dataset.held_out_ids if i not in forgotten - kept)
    few = spec.dataset.model_copy(update={"held_out_ids": held_out})
    job.spec.write_text(spec.model_copy(update={"dataset": few}).model_dump_json())
    vj.write_manifest(job)
    return gate(verify.run(job))


def test_too_few_answers_are_underpowered(tmp_path: Path, judges: Path) -> None:
    finding = of_five_images(tmp_path, lj.without_class("reader"), judges)
    assert (finding.underpowered, finding.gating) == (True, False)


def test_few_answers_are_no_excuse_for_a_class_that_is_known_untaught(tmp_path: Path, judges: Path) -> None:
    # 5 of 5: at least .05^(1/5) = .549 know it, more than the half that counts as learned.
    finding = of_five_images(tmp_path, lj.knowing(), judges)
    assert (finding.gating, finding.underpowered, finding.passed, finding.open) == (True, False, False, False)
    assert (finding.value, finding.n) == (0.0, 5)


def test_attack_that_teaches_nobody_is_underpowered(tmp_path: Path, judges: Path) -> None:
    finding = gate(report(tmp_path, lj.without_class(), judges, params={"learning_rate": 1e-6}))
    assert (finding.underpowered, finding.gating) == (True, False)


def test_unreasonable_thresholds_are_refused() -> None:
    for params in ({"images": ()}, {"images": (0,)}, {"rates": (0.0,)}, {"min_ratio": 0}, {"novel_min_ratio": 0}):
        with pytest.raises(ValueError):
            Thresholds.model_validate(params)


def test_rate_after_fifty_updates_is_reported(tmp_path: Path, judges: Path) -> None:
    found = report(tmp_path, lj.hiding(), judges)
    (rate,) = [f for f in found.findings if f.metric == "relearned_rate"]
    assert not rate.gating
    assert rate.value == 1.0
    assert "after 50 updates" in rate.detail
    assert torch.tensor([c.x[-1] for c in found.curves if c.subject == "candidate"]).min() >= 50
