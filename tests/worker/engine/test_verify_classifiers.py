"""The verification stage on classifiers: what passes, what fails, and what is not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.engine import naming_job as nj
from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import classifier as tiny
from worker.contract import Check, DatasetSpec, Finding, JobDirectory, Policy, Report, Spec
from worker.engine import registry, verify
from worker.engine.families.classifier import ImageClassifier
from worker.verdict import decide


@pytest.fixture(autouse=True)
def namers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"namer": nj.Namer, "classifier": ImageClassifier})


def gate(report: Report, check: str, metric: str) -> Finding:
    (found,) = [f for f in report.findings if (f.check, f.metric, f.gating) == (check, metric, True)]
    return found


def only(*checks: Check) -> Policy:
    return Policy(name="p", checks=checks)


# --------------------------------------------------------------------------------------------------------------- classes


def test_model_that_no_longer_names_the_class_passes_and_the_summary_says_so(tmp_path: Path) -> None:
    job = nj.make_job(tmp_path, nj.without_class())
    report = verify.run(job)
    assert report.verdict == "PASS", report.summary
    assert report.summary == "The saved model no longer recognises columns; all 13 gating findings passed."
    assert gate(report, "forget_accuracy", "forgotten_class_accuracy").count == 0
    assert gate(report, "retain_test_accuracy", "retain_accuracy_drop").n == 150  # 3 retained classes of 50
    assert report.judges == ()
    assert not job.judges.exists()
    assert [e.path for e in report.evidence] == ["before_after.png"]
    assert Report.model_validate_json(job.report.read_bytes()) == report


def test_unchanged_classifier_fails_the_forget_gate_and_so_does_its_control(tmp_path: Path) -> None:
    report = verify.run(nj.make_job(tmp_path, nj.knowing()))
    assert report.verdict == "FAIL"
    assert report.summary.startswith("Forgetting columns is not verified (FAIL): forget_accuracy")
    found = gate(report, "forget_accuracy", "forgotten_class_accuracy")
    assert (found.count, found.n, found.passed) == (50, 50, False)
    (control,) = [f for f in report.findings if f.control]
    assert (control.subject, control.passed) == ("original", False)


def test_original_that_never_knew_the_class_makes_the_verdict_void(tmp_path: Path) -> None:
    report = verify.run(nj.make_job(tmp_path, nj.without_class(), original=nj.without_class()))
    assert report.verdict == "VOID"
    assert "the original passed forget_accuracy on columns" in report.summary


def test_classifier_that_lost_a_retained_class_fails(tmp_path: Path) -> None:
    bias = torch.tensor([0.0, -1000.0, -1000.0, 0.0])
    report = verify.run(nj.make_job(tmp_path, nj.knowing(bias=bias)))
    assert report.verdict == "FAIL"
    drop = gate(report, "retain_test_accuracy", "retain_accuracy_drop")
    assert (drop.count, drop.value) == (50, pytest.approx(50 / 150))  # all of one class of three
    assert gate(report, "forget_accuracy", "forgotten_class_accuracy").passed is True


@pytest.mark.parametrize("most", [0.05, None])
def test_what_earlier_requests_lost_is_held_against_the_original(tmp_path: Path, most: float | None) -> None:
    parent = nj.knowing(bias=torch.tensor([0.0, 0.0, -1000.0, 0.0]))
    candidate = nj.knowing(bias=torch.tensor([0.0, -1000.0, -1000.0, 0.0]))
    policy = only(
        nj.CLASS_CHECKS[1], Check(verifier="retain_test_accuracy", params={"max_drop": 0.1, "max_lineage_drop": most})
    )
    report = verify.run(nj.make_job(tmp_path, candidate, parent=parent, policy=policy))
    assert gate(report, "retain_test_accuracy", "retain_accuracy_drop").value == 0
    assert report.verdict == ("PASS" if most is None else "FAIL"), report.summary
    if most is not None:
        whole = gate(report, "retain_test_accuracy", "retain_accuracy_drop_from_original")
        assert (whole.passed, whole.value, whole.n) == (False, pytest.approx(50 / 150), 150)


def test_a_class_forgotten_earlier_is_asked_for_again(tmp_path: Path) -> None:
    parent = nj.knowing(bias=torch.tensor([0.0, 0.0, -1000.0, 0.0]))
    policy = only(nj.CLASS_CHECKS[1])
    report = verify.run(nj.make_job(tmp_path, nj.without_class(), parent=parent, forgotten_classes=(2,), policy=policy))
    passed = {(f.subject, f.class_index): f.passed for f in report.findings}
    assert passed == {("candidate", 1): True, ("candidate", 2): False, ("original", 1): False, ("original", 2): False}
    assert report.verdict == "FAIL"


# --------------------------------------------------------------------------------------------------------------- samples


def test_model_that_answers_samples_like_unseen_images_passes(tmp_path: Path) -> None:
    report = verify.run(nj.make_job(tmp_path, nj.knowing(), samples=True))
    assert report.verdict == "PASS", report.summary
    expected = "The saved model answers 100 samples like images that it has never seen; all 14 gating findings passed."
    assert report.summary == expected
    auc = gate(report, "sample_membership", "membership_auc")
    assert auc.n == 100
    assert auc.value == pytest.approx(0.5, abs=3 * 0.0356)  # three standard errors, see SAMPLE_CHECKS
    assert {f.passed for f in report.findings if f.control} == {False}


def test_model_that_remembers_the_samples_fails(tmp_path: Path) -> None:
    vj.write_data(tmp_path / "data")
    report = verify.run(nj.make_job(tmp_path / "job", nj.remembering(tmp_path / "data"), samples=True))
    assert report.verdict == "FAIL"
    assert report.summary.startswith("Forgetting 100 samples is not verified (FAIL): sample_membership/membership_auc 1 ")
    assert gate(report, "sample_membership", "membership_auc").value == 1  # every one beats every unseen image


def test_samples_that_are_named_right_too_often_fail_by_the_gap_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hides its memory from the ranking by loss: remembered images lie between the halves of the unseen ones."""

    class Hiding(nj.Namer):
        def logits(self, images_BCHW: Tensor) -> Tensor:
            honest_BK = super().logits(images_BCHW)
            if self.module.get_parameter("bias")[0].item() == 0:
                return honest_BK
            known_B = (images_BCHW[:, None] == self.module.get_parameter("memory")).flatten(2).all(dim=2).any(dim=1)
            even_B = torch.arange(len(images_BCHW)) % 2 == 0
            height_B = torch.where(known_B, 0.1, torch.where(even_B, 1.0, -1.0))  # above 0: named right
            return torch.nn.functional.one_hot(honest_BK.argmax(1), 4) * height_B[:, None]

    monkeypatch.setattr(registry, "families", lambda: {"namer": Hiding})
    vj.write_data(tmp_path / "data")
    hiding = nj.remembering(tmp_path / "data") | {"bias": torch.ones(4)}  # the marker; equal biases change no answer
    report = verify.run(nj.make_job(tmp_path / "job", hiding, samples=True, policy=only(nj.SAMPLE_CHECKS[1])))
    auc = gate(report, "sample_membership", "membership_auc")
    gap = gate(report, "sample_membership", "membership_accuracy_gap")
    assert (auc.value, auc.passed) == (0.5, True)  # each beats the 25 wrong ones of 50 and loses to the 25 right ones
    assert (gap.count, gap.value, gap.passed) == (100, 0.5, False)
    assert report.verdict == "FAIL"


def test_original_that_memorised_nothing_makes_the_verdict_void(tmp_path: Path) -> None:
    report = verify.run(nj.make_job(tmp_path, nj.knowing(), samples=True, original=nj.knowing()))
    assert report.verdict == "VOID"
    assert "the original passed sample_membership" in report.summary


def test_few_samples_do_not_make_a_control_of_an_original_that_memorised_nothing(tmp_path: Path) -> None:
    # The bound of so few samples lies above the threshold whatever the model: that is no proof of memory.
    few = tuple(nj.FORGOTTEN_IDS[k * 25 + i] for k in range(4) for i in range(10))
    check = Check(verifier="sample_membership", params={"max_auc": 0.6, "resamples": 200})
    made = nj.make_job(tmp_path, nj.knowing(), samples=True, original=nj.knowing(), forget_samples=few, policy=only(check))
    report = verify.run(made)
    controls = {f.metric: f for f in report.findings if f.control}
    assert set(controls) == {"membership_auc", "membership_auc_beyond_chance"}
    assert controls["membership_auc_beyond_chance"].passed is True
    assert report.verdict == "VOID"


def test_too_few_samples_to_show_anything_are_an_error(tmp_path: Path) -> None:
    # 8 items, 50 unseen of each of 4 classes: sqrt(53 / (12 * 2 * 50) / 4) = 0.105, a bound of .67 for a true retrain.
    few = tuple(nj.FORGOTTEN_IDS[k * 25 + i] for k in range(4) for i in range(2))
    report = verify.run(nj.make_job(tmp_path, nj.knowing(), samples=True, forget_samples=few))
    assert report.verdict == "ERROR"
    assert "8 samples cannot show an AUC of at most 0.6" in report.summary
    assert "0.673" in report.summary


# ------------------------------------------------------------------------------------------------------- it fails closed


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        (Check(verifier="forget_rate"), "measures generator models, expected one for a classifier"),
        (Check(verifier="feature_distance"), "measures generator models"),
        (Check(verifier="forget_accuracy"), "50 held-out images of 'columns' cannot show"),  # 0/50 bounds .058
        (Check(verifier="forget_accuracy", params={"max_accuracy": 0}), "thresholds"),
    ],
)
def test_what_cannot_be_measured_is_an_error(tmp_path: Path, check: Check, sentence: str) -> None:
    policy = only(Check(verifier="integrity"), check)
    report = verify.run(nj.make_job(tmp_path, nj.without_class(), policy=policy))
    assert report.verdict == "ERROR"
    assert sentence in report.summary
    assert report.evidence == ()


def test_too_few_held_out_images_of_what_is_kept_are_underpowered(tmp_path: Path) -> None:
    """150 pairs that all agree bound a drop by .024."""
    policy = only(nj.CLASS_CHECKS[1], Check(verifier="retain_test_accuracy"))
    report = verify.run(nj.make_job(tmp_path, nj.without_class(), policy=policy))
    (found,) = [f for f in report.findings if f.underpowered]
    assert (found.metric, found.gating, found.passed) == ("retain_accuracy_drop", False, None)
    assert report.verdict == "PASS"


def test_nan_weight_is_an_error_and_nothing_is_measured_on_it(tmp_path: Path) -> None:
    report = verify.run(nj.make_job(tmp_path, nj.knowing(bias=torch.tensor([0.0, float("nan"), 0.0, 0.0]))))
    assert report.verdict == "ERROR"
    assert gate(report, "integrity", "tensors_not_finite").passed is False
    unmeasured = [f for f in report.findings if f.metric == "not_measured"]
    assert [f.check for f in unmeasured] == ["forget_accuracy", "retain_test_accuracy"]
    assert all("no answers of the candidate" in f.detail for f in unmeasured)


def test_answers_that_overflow_are_an_error_not_a_wrong_answer(tmp_path: Path) -> None:
    patterns = nj.knowing()["patterns"].clone()
    patterns[vj.FORGET] = 1e30  # finite, but its squared distance is not
    report = verify.run(nj.make_job(tmp_path, nj.knowing(patterns=patterns)))
    assert report.verdict == "ERROR"
    assert "NaN or infinity" in report.summary


def test_a_picture_that_cannot_be_drawn_fails_even_if_no_check_asked(tmp_path: Path) -> None:
    patterns = nj.knowing()["patterns"].clone()
    patterns[vj.FORGET] = 1e30
    policy = only(Check(verifier="integrity"))
    report = verify.run(nj.make_job(tmp_path, nj.knowing(patterns=patterns), policy=policy))
    assert (report.verdict, gate(report, "evidence", "samples_missing").passed) == ("ERROR", False)


@pytest.mark.parametrize(
    ("check", "samples", "lacking"),
    [("integrity", False, "classes"), ("sample_membership", False, "classes"), ("forget_accuracy", True, "samples")],
)
def test_a_policy_that_measures_something_else_is_an_error(tmp_path: Path, check: str, samples: bool, lacking: str) -> None:
    policy = only(Check(verifier="integrity"), *([Check(verifier=check)] if check != "integrity" else []))
    report = verify.run(nj.make_job(tmp_path, nj.without_class(), samples=samples, policy=policy))
    assert report.verdict == "ERROR"
    assert report.summary.endswith(f"(ERROR): no check of the policy measures whether {lacking} are forgotten.")
    assert {f.check for f in report.findings} == {"integrity"}


def test_classes_and_samples_of_one_lineage_are_measured_by_one_policy(tmp_path: Path) -> None:
    """The class went first; the candidate forgot the samples. What nobody asked to forget is passed over."""
    both = only(*nj.CLASS_CHECKS, nj.SAMPLE_CHECKS[1])
    vj.write_data(tmp_path / "data")
    remembering, candidate = nj.remembering(tmp_path / "data"), nj.without_class()
    made = nj.make_job(
        tmp_path / "both", candidate, samples=True, forgotten_classes=(vj.FORGET,), original=remembering, policy=both
    )
    report = verify.run(made)
    assert {f.check for f in report.findings if f.control} == {"forget_accuracy", "sample_membership"}
    assert {f.class_index for f in report.findings if f.control and f.check == "forget_accuracy"} == {vj.FORGET}
    assert gate(report, "forget_accuracy", "forgotten_class_accuracy").passed is True
    alone = verify.run(nj.make_job(tmp_path / "alone", nj.without_class(), policy=both))
    assert alone.verdict == "PASS", alone.summary
    assert "sample_membership" not in {f.check for f in alone.findings}


def test_nothing_is_asked_twice_and_progress_counts_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Counting(nj.Namer):
        def logits(self, images_BCHW: Tensor) -> Tensor:
            asked.append((id(self), len(images_BCHW)))
            return super().logits(images_BCHW)

    monkeypatch.setattr(registry, "families", lambda: {"namer": Counting})
    job = nj.make_job(tmp_path, nj.without_class())
    verify.run(job)
    # Two sets of weights (the parent is the original), four classes of 50 held-out images each.
    assert sorted(n for _, n in asked) == [50] * 8
    assert len({model for model, _ in asked}) == 2
    progress = [json.loads(line) for line in job.events.read_text().splitlines() if '"progress"' in line]
    assert progress[-1]["completed"] == progress[-1]["total"] == 400
    assert {p["unit"] for p in progress} == {"image"}


# ------------------------------------------------------------------------------------------------------- verdict.decide


def finding(check: str, *, control: bool = False, passed: bool = True, k: int | None = None) -> Finding:
    subject = "original" if control else "candidate"
    return Finding(check=check, metric="m", subject=subject, gating=not control, control=control, passed=passed, class_index=k)


def spec_of(*checks: str, **wish: Any) -> Spec:
    """A spec that decides a verdict; what it is run on is not read."""
    digest = "0" * 64
    return Spec(
        request_id="r", family="f", method="m", seed=0, verification_seed=0, class_names=("a", "b", "c"),
        base_digest=digest, original_digest=digest, dataset=DatasetSpec(format="npz", digest=digest),
        policy=only(*(Check(verifier=name) for name in checks)), **wish,
    )  # fmt: skip


CLASS, SAMPLE = {"forget_classes": (1,)}, {"forget_samples": ("x",)}


@pytest.mark.parametrize(
    ("check", "wish", "k"), [("forget_rate", CLASS, 1), ("forget_accuracy", CLASS, 1), ("sample_membership", SAMPLE, None)]
)
def test_each_check_that_measures_forgetting_needs_a_control_of_its_own(check: str, wish: Any, k: int | None) -> None:
    spec = spec_of("integrity", check, **wish)
    passed = [finding("integrity"), finding(check, k=k)]
    assert decide([*passed, finding(check, control=True, passed=False, k=k)], spec) == "PASS"
    assert decide([*passed, finding(check, control=True, passed=True, k=k)], spec) == "VOID"
    assert decide(passed, spec) == "VOID"
    assert decide([*passed, finding("integrity", control=True, passed=False)], spec) == "VOID"


def test_everything_that_was_ever_forgotten_is_measured_each_class_by_itself_or_nothing_passes() -> None:
    def on(check: str, k: int | None = None) -> list[Finding]:
        return [finding(check, k=k), finding(check, control=True, passed=False, k=k)]

    spec = spec_of(
        "forget_accuracy", "sample_membership", forget_classes=(1,), forgotten_classes=(2,), forgotten_samples=("x",)
    )
    whole = [*on("forget_accuracy", 1), *on("forget_accuracy", 2), *on("sample_membership")]
    assert decide(whole, spec) == "PASS"
    for missing in (0, 2, 4):
        assert decide(whole[:missing] + whole[missing + 2 :], spec) == "ERROR"
        assert decide(whole[: missing + 1] + whole[missing + 2 :], spec) == "VOID"
    assert decide([*on("forget_accuracy"), *on("forget_accuracy", 1), *on("sample_membership")], spec) == "ERROR"


@pytest.mark.parametrize(
    ("check", "earlier"),
    [("forget_accuracy", {**CLASS, "forgotten_samples": ("x",)}), ("sample_membership", {**SAMPLE, "forgotten_classes": (1,)})],
)
def test_a_policy_that_leaves_out_what_was_forgotten_earlier_passes_nothing(check: str, earlier: Any) -> None:
    found = [finding(check, k=1), finding(check, control=True, passed=False, k=1)]
    assert decide(found, spec_of(check, **earlier)) == "ERROR"


def test_a_check_of_what_nobody_asked_to_forget_is_owed_nothing() -> None:
    found = [finding("forget_accuracy", k=1), finding("forget_accuracy", control=True, passed=False, k=1)]
    assert decide(found, spec_of("forget_accuracy", "sample_membership", **CLASS)) == "PASS"


# ------------------------------------------------------------------------------------------------------ the real family


def real_job(root: Path, spoil: Any) -> JobDirectory:
    """A CIFAR ResNet as base, original and candidate; the candidate spoiled before the manifest is written."""
    job = nj.make_job(root, nj.knowing())
    for folder in (job.base, job.original, job.out):
        for path in folder.iterdir():
            path.unlink()
        tiny.write_model(folder)
    held_out = job.read_spec().dataset.held_out_ids
    policy = Policy(name="test", checks=nj.CLASS_CHECKS)
    vj.write_spec(job, held_out, family="classifier", forget_classes=(vj.FORGET,), policy=policy)
    spoil(job.out)
    vj.write_manifest(job)
    return job


def test_the_classifier_family_is_verified_from_its_saved_files(tmp_path: Path) -> None:
    report = verify.run(real_job(tmp_path, lambda out: None))
    assert report.verdict in ("FAIL", "VOID")  # it was never trained: whether it names the columns is chance
    assert gate(report, "retain_test_accuracy", "retain_accuracy_drop").value == 0
    assert all(f.passed for f in report.findings if f.check == "integrity")
    before, after = (
        next(f.value for f in report.findings if f.check == "forget_accuracy" and f.subject == s)
        for s in ("original", "candidate")
    )
    assert before == after
    own = ImageClassifier.load(tmp_path / "out", labels=vj.NAMES, device=torch.device("cpu"))
    with np.load(tmp_path / "data" / "data.npz") as arrays:
        rows = [i for i in range(vj.K * 90) if i // 90 == vj.FORGET and i % 90 >= vj.TRAIN]
        images = torch.from_numpy(arrays["images"][rows])[:, None]
    assert after == float((own.logits(images).argmax(1) == vj.FORGET).double().mean())


def test_a_negative_variance_in_the_saved_file_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def spoil(out: Path) -> None:
        tensors = load_file(out / "model.safetensors")
        tensors["bn1.running_var"] = -tensors["bn1.running_var"]
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    report = verify.run(real_job(tmp_path, spoil))
    assert report.verdict == "ERROR"
    assert gate(report, "integrity", "load_errors").passed is False
    assert "variances of at least 0" in report.summary
