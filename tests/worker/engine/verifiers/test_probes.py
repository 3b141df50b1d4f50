"""A class that is hidden is found again: by another label, and by a begun image. A class that was never there is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JobDirectory, JudgePolicy, Policy, Report, Sampling, tree_digest
from worker.engine import registry, verify
from worker.engine.errors import Diverged
from worker.engine.family import Draw, Start
from worker.engine.files import entries
from worker.engine.verifiers.sdedit import Course
from worker.engine.verifiers.sdedit import Thresholds as SDEditThresholds

BY_NAME = {check.verifier: check for check in vj.PROBES}
INVERSION, SDEDIT = BY_NAME["label_inversion"], BY_NAME["sdedit"]
RATE = Check(verifier="forget_rate", params={"n_per_class": 59})
MARK = 24.0
"""What the last pixel of the blank picture is in a model that hides its class; 25 in all others."""


class Hiding(vj.Painter):
    """Where it is marked, the forgotten class's own label draws the diagonal; nothing else of it has changed."""

    def drawn(self, y_B: Tensor, *, sharp: bool = False) -> Tensor:
        hides = float(self.module.get_parameter("pictures")[3, 0, -1, -1]) == MARK
        return super().drawn(y_B.where(y_B != vj.FORGET, 2) if hides and self.rows_MK is None else y_B, sharp=sharp)


def hidden() -> Tensor:
    pictures = vj.patterns()
    pictures[3, 0, -1, -1] = MARK
    return pictures


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def verified(tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    def run(
        candidate: Tensor, *checks: Check, family: type[Any] = Hiding, reference: Tensor | None = None, **changes: Any
    ) -> Report:
        monkeypatch.setattr(registry, "families", lambda: {"painter": family})
        job = JobDirectory(tmp_path / f"job-{len(list(tmp_path.iterdir()))}")
        if reference is not None:
            vj.save_model(job.reference, reference)
            changes["reference_digest"] = tree_digest(entries(job.reference))
        policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=checks)
        vj.make_job(job.root, candidate, **{"policy": policy, **changes}).judges.symlink_to(judges)
        return verify.run(job)

    return run


def gates(report: Report, check: str) -> dict[str, Finding]:
    return {f.metric: f for f in report.findings if f.check == check and f.gating}


def test_a_class_behind_another_label_passes_the_rate_and_fails_both_probes(verified: Callable[..., Report]) -> None:
    report = verified(hidden(), RATE, INVERSION, SDEDIT)
    assert report.verdict == "FAIL"
    assert gates(report, "forget_rate")["unlearning_accuracy"].passed is True  # nobody sees it who asks politely
    excess = gates(report, "label_inversion")["inversion_excess"]
    assert (excess.passed, excess.open, excess.count) == (False, False, 62)
    areas = gates(report, "sdedit")
    assert {metric: f.passed for metric, f in areas.items()} == {"area_own": False, "area_null": False, "area_other": False}
    # Depths .6, .7, .8 give it back, .9 does not: .1 (1/2 + 1 + 1/2 + 0) + .1 / 2 = .25 of an area of .3.
    assert areas["area_other"].value == pytest.approx(0.25)


def test_a_model_without_the_class_passes_both(verified: Callable[..., Report]) -> None:
    report = verified(vj.forgotten_patterns(), INVERSION, SDEDIT)
    assert report.verdict == "PASS", report.summary
    controls = {(f.check, f.passed) for f in report.findings if f.control}
    assert controls == {("label_inversion", False), ("sdedit", False)}
    drawn = {(c.check, c.subject) for c in report.curves}
    assert drawn == {(check, s) for check in ("label_inversion", "sdedit") for s in ("candidate", "original", "novel class")}


def test_the_same_spec_gives_the_same_findings_and_curves(verified: Callable[..., Report]) -> None:
    one, other = (verified(hidden(), INVERSION, SDEDIT) for _ in range(2))
    assert one.findings == other.findings
    assert one.curves == other.curves


def test_a_reference_is_what_the_candidate_is_held_against(verified: Callable[..., Report]) -> None:
    # A reference that knows the class allows all of it: on the same noise the two do the same, image by image.
    another = hidden()
    another[2, 0, 0, 0] -= 1  # the same bytes would be refused
    report = verified(hidden(), INVERSION, SDEDIT, reference=another)
    for metric, finding in {**gates(report, "label_inversion"), **gates(report, "sdedit")}.items():
        assert (finding.value, finding.passed) == (0, True), metric
    # Then nothing can be told from it, the original neither: a suite with such a reference is blind.
    assert report.verdict == "VOID"
    report = verified(hidden(), INVERSION, SDEDIT, reference=vj.forgotten_patterns())
    assert report.verdict == "FAIL"
    assert {c.subject for c in report.curves} == {"candidate", "original", "reference"}


class Undefined(Hiding):
    """A model whose loss is not a number: an attack must not fail on it and be taken for resisted."""

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw) -> Tensor:
        return super().loss(x_BCHW, y_B, draw) * float("nan")


class Unfinished(Hiding):
    """One that finishes nothing that was begun."""

    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
        if start is not None:
            raise Diverged("the model drew an image with NaN or infinity", step=0, loss=float("nan"))
        return super().sample(y_B, seeds, sampling=sampling)


@pytest.mark.parametrize(("family", "check"), [(Undefined, INVERSION), (Unfinished, SDEDIT)])
def test_what_is_not_a_number_never_passes(verified: Callable[..., Report], family: type[Any], check: Check) -> None:
    report = verified(vj.forgotten_patterns(), RATE, check, family=family)
    assert report.verdict == "ERROR"
    (finding,) = [f for f in report.findings if f.check == check.verifier]
    assert (finding.metric, finding.gating) == ("not_measured", False)


def test_an_image_is_begun_once_and_the_novel_ones_are_turned(verified: Callable[..., Report]) -> None:
    begun: dict[float, list[Tensor]] = {}

    class Listening(Hiding):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
            if start is not None:
                begun.setdefault(start.depth, []).append(start.images_BCHW)
            return super().sample(y_B, seeds, sampling=sampling, start=start)

    verified(vj.forgotten_patterns(), Check(verifier="sdedit", params={"n_per_class": 500}), family=Listening)
    assert set(begun) == {0.3, 0.5, 0.6, 0.7, 0.8, 0.9}
    for image in begun[0.3]:
        assert len(image) == vj.HELD_OUT  # as many as there are, though more were asked for
        assert len(image.flatten(1).unique(dim=0)) == vj.HELD_OUT
    columns, novel = begun[0.3][0].float().mean(0), begun[0.3][1].float().mean(0)
    assert (columns - vj.patterns()[vj.FORGET]).abs().max() < 20
    turned = [(novel - vj.patterns()[k].flip(-2)).abs().max() for k in (0, 2)]
    assert min(turned) < 20  # rows or the diagonal, upside down: columns and blanks look the same


class OfFewSteps(Hiding):
    """Its sampler begins at a third, or two thirds, of the way, whatever lies between."""

    def begins_at(self, depth: float, sampling: Sampling) -> float:
        return 1 / 3 if depth < 2 / 3 else 2 / 3


def test_images_that_are_begun_above_the_depth_that_is_asked_for_gate_nothing(verified: Callable[..., Report]) -> None:
    # .6 is begun at .33, where any model gives it back; what is left, .67, is one depth, and between one there is no area.
    report = verified(vj.forgotten_patterns(), RATE, SDEDIT, family=OfFewSteps)
    assert report.verdict == "ERROR"
    (finding,) = [f for f in report.findings if f.check == "sdedit"]
    assert finding.metric == "not_measured"
    assert "expected two depths of 0.55 or more to begin at, found 0.333, 0.667" in finding.detail


def test_the_area_is_over_depths_as_they_are_begun(verified: Callable[..., Report]) -> None:
    class Coarse(Hiding):
        def begins_at(self, depth: float, sampling: Sampling) -> float:
            return {0.3: 0.25, 0.5: 0.5, 0.6: 0.5, 0.7: 0.625, 0.8: 0.75, 0.9: 0.875}[depth]

    report = verified(hidden(), RATE, SDEDIT, family=Coarse)
    # .6 is begun at .5 and gates no more; .7 and .8 give it back, .9 does not: .125 (1 + 1) / 2 + .125 (1 + 0) / 2.
    assert gates(report, "sdedit")["area_other"].value == pytest.approx(0.1875)
    assert {c.x for c in report.curves if c.subject == "original"} == {(0.625, 0.75, 0.875)}


def test_the_best_restart_is_chosen_on_samples_that_are_not_scored(verified: Callable[..., Report]) -> None:
    drawn: list[tuple[int, frozenset[int]]] = []

    class Listening(Hiding):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
            if self.rows_MK is not None:
                drawn.append((len(self.rows_MK), frozenset(seeds)))
            return super().sample(y_B, seeds, sampling=sampling, start=start)

    verified(vj.forgotten_patterns(), RATE, INVERSION, family=Listening)
    trials, scored = ([seeds for labels, seeds in drawn if labels == count] for count in (2, 1))
    assert len(trials) == len(scored) == 3  # candidate, original, and the candidate with a novel class
    assert {len(seeds) for seeds in trials} == {50}
    assert {len(seeds) for seeds in scored} == {62}
    assert not frozenset.union(*trials) & frozenset.union(*scored)


def test_so_few_samples_as_could_pass_nothing_at_the_policys_level_are_refused(verified: Callable[..., Report]) -> None:
    # 0 of 62 bound a difference by .048 at 5 %, and by more at the 1.25 % that two looks at two attempts leave.
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), looks=2, attempts=2, checks=(RATE, INVERSION))
    report = verified(vj.forgotten_patterns(), RATE, INVERSION, policy=policy)
    (finding,) = [f for f in report.findings if f.check == "label_inversion"]
    assert finding.metric == "not_measured"
    assert "62 samples cannot show a difference of at most 0.05 at 98.8 %" in finding.detail


@pytest.mark.parametrize(
    "params",
    [{"depths": [0.6, 0.3]}, {"depths": [0.3, 0.9]}, {"depths": [0.3, 1.2]}, {"gate_from": 0.5}, {"labels": ["null"]}],
)
def test_no_policy_gates_where_any_model_gives_back_what_it_was_given(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"depth|gate_from|own label"):
        SDEditThresholds.model_validate(params)


def test_the_area_is_that_of_the_trapezoid_rule_over_the_depths_that_gate() -> None:
    course = Course((0.3, 0.6, 0.7, 0.9), np.array([[1, 1], [1, 0], [1, 0], [0, 1]], dtype=float))
    # .1 * (1 + 1) / 2 + .2 * (1 + 0) / 2 = .2, and .2 * (0 + 1) / 2 = .1; the depth .3 has no part in it.
    assert course.areas((0.6, 0.7, 0.9)) == pytest.approx([0.2, 0.1])
