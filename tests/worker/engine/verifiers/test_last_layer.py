"""Classifiers that were really trained: retrained ones pass, and each fake fails the check that is made for it, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.engine import probing_job as pj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, Policy, Report
from worker.engine import registry, verify
from worker.engine.probing import Whitening

F = vj.FORGET
TAKING = {"linear_probe", "head_restore"}


@pytest.fixture(autouse=True)
def perceptrons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"perceptron": pj.Perceptron})
    torch.set_num_threads(1)


def failed(report: Report) -> set[str]:
    return {f.check for f in report.findings if f.gating and f.passed is not True}


def gate(report: Report, check: str, metric: str) -> Finding:
    (found,) = [f for f in report.findings if (f.check, f.metric, f.gating) == (check, metric, True)]
    return found


def only(name: str, **params: object) -> Policy:
    return Policy(name="p", checks=(Check(verifier=name, params=params),))


def test_a_retrained_classifier_passes_and_reaches_l2(tmp_path: Path) -> None:
    report = verify.run(pj.make_job(tmp_path, pj.trained(2, F)))
    assert (report.verdict, report.tier) == ("PASS", "L2"), report.summary
    assert {c.subject for c in report.curves} == {"candidate", "novel class", "original"}


def test_a_retrained_classifier_passes_beside_a_reference_of_another_seed(tmp_path: Path) -> None:
    report = verify.run(pj.make_job(tmp_path, pj.trained(2, F), reference=pj.trained(3, F)))
    assert report.verdict == "PASS", report.summary
    assert gate(report, "linear_probe", "recall_above_reference").value is not None
    assert gate(report, "reference_membership", "told_from_reference_auc").passed is True


@pytest.mark.parametrize("reference", [False, True])
def test_an_edit_of_the_last_layer_fails_the_probes_and_no_first_look(reference: bool, tmp_path: Path) -> None:
    candidate = pj.with_head_edited(pj.trained(1), F)
    report = verify.run(pj.make_job(tmp_path, candidate, reference=pj.trained(3, F) if reference else None))
    assert report.verdict == "FAIL"
    told = {"reference_membership"} if reference else set()
    # It was trained on the class: 21 of 1,000 members stand out, bound .0303 where .03 is allowed. No first look sees anything.
    assert failed(report) - {"class_membership"} == TAKING | told


def test_the_unchanged_original_fails(tmp_path: Path) -> None:
    report = verify.run(pj.make_job(tmp_path, pj.trained(1), reference=pj.trained(3, F)))
    assert report.verdict == "FAIL"
    assert failed(report) >= TAKING | {"forget_accuracy", "reference_distance", "reference_membership"}


def test_a_classifier_that_lost_everything_fails_utility(tmp_path: Path) -> None:
    report = verify.run(pj.make_job(tmp_path, pj.destroyed()))
    assert report.verdict == "FAIL"
    assert failed(report) == {"retain_test_accuracy", "retain_calibration"}


def test_one_retained_class_that_is_lost_is_named(tmp_path: Path) -> None:
    candidate = pj.with_head_edited(pj.trained(2, F), F, 2)
    report = verify.run(pj.make_job(tmp_path, candidate, policy=only("retain_calibration", max_drop=0.5, max_ece_rise=0.9)))
    assert [f.metric for f in report.findings if f.gating and not f.passed] == ["worst_class_drop"]
    assert gate(report, "retain_calibration", "worst_class_drop").class_index == 2


def test_probabilities_that_lost_their_meaning_fail(tmp_path: Path) -> None:
    sure = {n: t * 30 if n.startswith("head") else t for n, t in pj.trained(2, F).items()}
    report = verify.run(pj.make_job(tmp_path, sure, policy=only("retain_calibration")))
    assert [f.metric for f in report.findings if f.gating and not f.passed] == ["calibration_error_rise"]


@pytest.mark.parametrize(("scale", "direction"), [(30.0, "better"), (-30.0, "worse")])
def test_training_images_that_stand_out_fail_in_either_direction(
    scale: float, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels, held_out = pj.data()
    members = {image.numpy().tobytes() for image in images[(labels == F) & ~held_out][::2]}

    class Remembering(pj.Perceptron):
        def logits(self, images_BCHW: Tensor) -> Tensor:
            logits_BK = super().logits(images_BCHW)
            logits_BK[[i for i, image in enumerate(images_BCHW) if image.numpy().tobytes() in members], F] += scale
            return logits_BK

    monkeypatch.setattr(registry, "families", lambda: {"perceptron": Remembering})
    report = verify.run(pj.make_job(tmp_path, pj.trained(2, F), policy=only("class_membership")))
    assert gate(report, "class_membership", "membership_auc").passed is False
    (loss,) = [f for f in report.findings if f.metric == "loss_auc"]
    assert (loss.value > 0.6) is (direction == "better")  # type: ignore[operator]
    assert (loss.value < 0.4) is (direction == "worse")  # type: ignore[operator]


def test_without_a_reference_its_checks_gate_nothing_and_say_so(tmp_path: Path) -> None:
    policy = Policy(name="p", checks=(*pj.CHECKS[:2], *pj.BY_REFERENCE))
    report = verify.run(pj.make_job(tmp_path, pj.trained(2, F), policy=policy))
    said = [f for f in report.findings if f.check.startswith("reference_")]
    assert report.verdict == "PASS"
    assert [(f.gating, f.underpowered, f.passed) for f in said] == [(False, True, None)] * 2
    assert "underpowered, so that they show nothing: reference_distance, reference_membership" in report.summary


def test_too_few_images_are_underpowered_but_what_is_refuted_is_refuted(tmp_path: Path) -> None:
    _, labels, held_out = pj.data()
    number = torch.arange(len(labels)) % pj.PER_CLASS
    few = tuple(map(str, torch.nonzero(held_out & (number < 30)).flatten().tolist()))
    spec = pj.make_job(tmp_path / "data", pj.trained(2, F)).read_spec()
    changes = {"dataset": spec.dataset.model_copy(update={"held_out_ids": few})}
    policy = Policy(name="p", checks=(Check(verifier="linear_probe"), Check(verifier="retain_calibration")))
    good = verify.run(pj.make_job(tmp_path / "good", pj.trained(2, F), policy=policy, **changes))
    said = {f.metric: f for f in good.findings if f.underpowered}
    assert {"recall_above_novel_class", "worst_class_drop"} <= set(said)
    lost = pj.with_head_edited(pj.trained(2, F), F, 2)
    bad = verify.run(pj.make_job(tmp_path / "bad", lost, policy=policy, **changes))
    assert gate(bad, "retain_calibration", "worst_class_drop").passed is False


def test_a_small_class_does_not_hide_what_a_large_one_has_lost(tmp_path: Path) -> None:
    # Of class 0 four images are held out, which bound nothing; class 2 is lost.
    _, labels, held_out = pj.data()
    number = torch.arange(len(labels)) % pj.PER_CLASS
    few = tuple(map(str, torch.nonzero(held_out & ((number < 4) | (labels != 0))).flatten().tolist()))
    spec = pj.make_job(tmp_path / "data", pj.trained(2, F)).read_spec()
    changes = {"dataset": spec.dataset.model_copy(update={"held_out_ids": few})}
    policy = only("retain_calibration", max_drop=0.9, max_ece_rise=0.9)
    good = verify.run(pj.make_job(tmp_path / "good", pj.trained(2, F), policy=policy, **changes))
    held, weak = (f for f in good.findings if f.metric == "worst_class_drop")
    assert (held.gating, held.passed, weak.underpowered, weak.gating, weak.class_index) == (True, True, True, False, 0)
    assert good.tier is None
    # Half of class 2 and no more: the bound of the four images is wider still.
    half = {name: tensor.clone() for name, tensor in pj.trained(2, F).items()}
    half["head.bias"][2] -= 2.0
    bad = verify.run(pj.make_job(tmp_path / "bad", half, policy=policy, **changes))
    found = gate(bad, "retain_calibration", "worst_class_drop")
    assert (found.passed, found.class_index) == (False, 2), found


def test_few_members_that_are_found_beyond_luck_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, held_out = pj.data()
    members = {image.numpy().tobytes() for image in images[(labels == F) & ~held_out][::2]}

    class Remembering(pj.Perceptron):
        def logits(self, images_BCHW: Tensor) -> Tensor:
            logits_BK = super().logits(images_BCHW)
            logits_BK[[i for i, image in enumerate(images_BCHW) if image.numpy().tobytes() in members], F] += 30.0
            return logits_BK

    number = torch.arange(len(labels)) % pj.PER_CLASS
    few = tuple(map(str, torch.nonzero(held_out & ((number < 50) | (labels != F))).flatten().tolist()))
    spec = pj.make_job(tmp_path / "data", pj.trained(2, F)).read_spec()
    changes = {"dataset": spec.dataset.model_copy(update={"held_out_ids": few}), "policy": only("class_membership")}
    metric = "membership_hits_at_1_percent_false_alarms"
    good = verify.run(pj.make_job(tmp_path / "good", pj.trained(2, F), **changes))
    (weak,) = [f for f in good.findings if (f.metric, f.subject) == (metric, "candidate")]
    assert (weak.gating, weak.underpowered) == (False, True)
    monkeypatch.setattr(registry, "families", lambda: {"perceptron": Remembering})
    bad = verify.run(pj.make_job(tmp_path / "bad", pj.trained(2, F), **changes))
    (found,) = [f for f in bad.findings if (f.metric, f.subject) == (metric, "candidate")]
    assert (found.gating, found.passed, found.underpowered) == (True, False, False)


def test_a_network_whose_features_are_not_finite_is_an_error(tmp_path: Path) -> None:
    broken = pj.trained(2, F) | {"body.bias": torch.full((pj.HIDDEN,), float("inf"))}
    report = verify.run(pj.make_job(tmp_path, broken, policy=Policy(name="p", checks=pj.CHECKS)))
    assert report.verdict == "ERROR"


def test_an_invertible_change_of_features_is_no_forgetting() -> None:
    """A class hidden in a direction a thousand times fainter, at an angle to every feature, is as plain as before."""
    source = torch.Generator().manual_seed(0)
    features = torch.randn(500, 6, generator=source, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=source, dtype=torch.float64))
    hidden = features @ turn @ torch.diag(torch.tensor([1, 1, 1, 1, 1, 1e-3], dtype=torch.float64)) @ turn.T
    one, other = (Whitening.of(x.numpy())(x.numpy()) for x in (features, hidden))
    assert one @ one.T == pytest.approx(other @ other.T, abs=1e-6)  # the same but for a rotation
    assert one.T @ one / 499 == pytest.approx(torch.eye(6).numpy(), abs=1e-9)


def restore(root: Path, candidate: dict[str, Tensor], **params: object) -> Finding:
    policy = only("head_restore", images_per_class=300, repeats=10, **params)
    report = verify.run(pj.make_job(root, candidate, policy=policy))
    (found,) = [f for f in report.findings if f.metric.startswith("restore_time_to_")]
    return found


def test_a_slow_attack_does_not_cut_its_yardstick_short(tmp_path: Path) -> None:
    """Back after 12 of 20 steps, the yardstick after 34: held against a yardstick that ends at 20, it was half as slow."""
    found = restore(tmp_path, pj.with_head_edited(pj.trained(1), F), steps=20, learning_rate=0.02)
    assert (found.gating, found.passed) == (True, False)
    assert found.value == pytest.approx(12.1 / 33.6, abs=0.01)
    assert "cut off after 20 and 40" in found.detail


@pytest.mark.parametrize("reference", [False, True])
def test_a_last_layer_times_a_thousand_is_restored_as_soon(reference: bool, tmp_path: Path) -> None:
    """Adam moves a weight by 0.2 a step at most: beside rows a thousand times as large no class would ever come back."""
    edited = pj.with_head_edited(pj.trained(1), F)
    times = []
    for scale in (1.0, 1000.0):
        scaled = {name: tensor * scale if name.startswith("head") else tensor for name, tensor in edited.items()}
        policy = only("head_restore", images_per_class=300, repeats=10)
        job = pj.make_job(tmp_path / f"{scale:g}", scaled, policy=policy, reference=pj.trained(3, F) if reference else None)
        found = next(f for f in verify.run(job).findings if f.metric.startswith("restore_time_to_"))
        assert (found.gating, found.passed) == (True, False)
        times.append(found.value)
    assert times[1] == pytest.approx(times[0], rel=0.05)


def test_two_times_that_were_both_cut_off_show_nothing(tmp_path: Path) -> None:
    for candidate in (pj.trained(2, F), pj.with_head_edited(pj.trained(1), F)):
        found = restore(tmp_path / str(len(list(tmp_path.iterdir()))), candidate, steps=4, learning_rate=1e-6)
        assert (found.gating, found.underpowered) == (False, True)
        assert "neither comes back" in found.detail
