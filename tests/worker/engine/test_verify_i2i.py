"""The verification stage on image-to-image models: what passes, what fails, and what is not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine import completing_job as cj
from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import mae as tiny
from worker.contract import Check, Finding, JobDirectory, MaskSpec, Report, tree_digest
from worker.engine import corruption, references, registry, verify
from worker.engine.families.mae import MaskedAutoencoder
from worker.engine.files import entries
from worker.engine.sampling import ERASED
from worker.engine.statistics import paired_difference_upper
from worker.verdict import decide


@pytest.fixture(autouse=True)
def completers(monkeypatch: pytest.MonkeyPatch) -> None:
    cj.pretend(monkeypatch)


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once a corruption: every job of these tests has the same data."""
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def make(tmp_path: Path, judges: Path) -> Any:
    def job(candidate: dict[str, Tensor], **changes: Any) -> JobDirectory:
        made = cj.make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", candidate, **changes)
        made.judges.symlink_to(judges)
        return made

    return job


def gate(report: Report, check: str, metric: str) -> Finding:
    (found,) = [f for f in report.findings if (f.check, f.metric, f.gating) == (check, metric, True)]
    return found


def controls(report: Report) -> dict[str, Finding]:
    return {f.metric: f for f in report.findings if f.control}


def use(monkeypatch: pytest.MonkeyPatch, family: type[Any]) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"completer": family})


# --------------------------------------------------------------------------------------------------------- what it says


def test_model_that_forgot_and_kept_the_rest_passes(make: Any) -> None:
    job = make(cj.without_class())
    report = verify.run(job)
    assert report.verdict == "PASS", report.summary
    gates = sum(f.gating for f in report.findings)
    expected = (
        f"The saved model completes images of columns no better than what never saw any; all {gates} gating findings passed."
    )
    assert report.summary == expected
    forgot = gate(report, "forget_completion", "completed_region_accuracy")
    assert (forgot.count, forgot.n, forgot.class_index, forgot.corruption) == (0, 50, vj.FORGET, cj.HOLE)
    assert gate(report, "frozen_decoder", "frozen_tensors_changed").n == 1
    ratio = gate(report, "retain_completion", "judge_feature_distance_ratio")
    assert (ratio.value, ratio.upper95, ratio.n) == (1, 1, 150)  # the same pictures and the same noise of three classes
    assert [e.path for e in report.evidence] == ["before_after.png"]
    assert Report.model_validate_json(job.report.read_bytes()) == report
    assert decide(report.findings, job.read_spec()) == "PASS"


def test_the_judge_of_each_corruption_is_on_record(make: Any) -> None:
    policy = cj.policy(corruptions=(cj.HOLE, cj.PATCHES))
    report = verify.run(make(cj.without_class(), policy=policy))
    assert report.verdict == "PASS", report.summary
    assert [j.name for j in report.judges] == [
        "judge-cnn/1 of center 0.25 in cells of 2",
        "judge-cnn/1 of random_patch 0.5 in cells of 2",
    ]
    assert all(j.held_out_accuracy >= 0.95 and j.held_out_n == 200 for j in report.judges)
    hidden = {f.corruption for f in report.findings if f.check in ("forget_completion", "retain_completion")}
    assert hidden == {cj.HOLE, cj.PATCHES}


def test_how_near_the_completions_come_is_reported_for_both_kinds_of_class(make: Any) -> None:
    report = verify.run(make(cj.without_class()))
    said = {(f.check, f.metric, f.subject): f.value for f in report.findings if f.value is not None}
    for metric, better in (("psnr", 1), ("ssim", 1), ("judge_feature_cosine", 1), ("judge_feature_distance", -1)):
        before, after = (said["forget_completion", metric, s] for s in ("original", "candidate"))
        assert better * before > better * after
        assert said["retain_completion", metric, "original"] == said["retain_completion", metric, "candidate"]
    assert said["forget_completion", "judge_feature_cosine", "original"] > 0.9


def test_unchanged_original_as_candidate_fails_the_forget_gate(make: Any) -> None:
    report = verify.run(make(cj.knowing()))
    assert report.verdict == "FAIL"
    found = gate(report, "forget_completion", "completed_region_accuracy")
    assert (found.count, found.passed) == (50, False)
    assert report.summary.startswith(
        "Forgetting columns is not verified (FAIL): forget_completion/completed_region_accuracy 1 "
    )
    assert {m: f.passed for m, f in controls(report).items()} == {"completed_region_accuracy": False, "underpowered": False}


def test_noise_shows_no_class_but_a_model_that_answers_with_it_lost_the_rest(make: Any) -> None:
    noise = 255 * torch.rand(vj.K, 1, vj.SIDE, vj.SIDE, generator=torch.Generator().manual_seed(5))
    report = verify.run(make(cj.knowing(pictures=noise)))
    assert report.verdict == "FAIL"
    assert gate(report, "retain_completion", "judge_feature_distance_ratio").passed is False
    assert gate(report, "retain_completion", "retain_accuracy_drop").passed is False


def test_pale_completions_that_are_still_recognised_fail_by_their_distance(make: Any) -> None:
    pictures = vj.forgotten_patterns()
    pictures[0] = 128 + 0.85 * (pictures[0] - 128)
    report = verify.run(make(cj.knowing(pictures=pictures)))
    assert gate(report, "retain_completion", "retain_accuracy_drop").passed is True
    ratio = gate(report, "retain_completion", "judge_feature_distance_ratio")
    assert ratio.passed is False
    assert ratio.value > 1.05
    assert report.verdict == "FAIL"


@pytest.mark.parametrize("most", [0.15, None])
def test_one_retained_class_that_is_lost_fails_where_the_policy_asks(make: Any, most: float | None) -> None:
    """A third of all here, and less than any bound on the average where there are 25 of them."""
    pictures = vj.forgotten_patterns()
    pictures[3] = pictures[2]
    check = Check(
        verifier="retain_completion", params={"max_class_drop": most, "max_drop": 0.9, "max_ratio": 100.0, "resamples": 100}
    )
    policy = cj.policy(*(c for c in cj.CHECKS if c.verifier != check.verifier), check)
    report = verify.run(make(cj.knowing(pictures=pictures), policy=policy))
    (found,) = [f for f in report.findings if f.metric == "worst_class_drop"]
    assert (found.class_index, found.value, found.corruption) == (3, 1.0, cj.HOLE)
    assert (found.gating, found.passed, found.open) == ((False, None, False) if most is None else (True, False, False))
    assert report.verdict == ("PASS" if most is None else "FAIL")
    if most is not None:  # 0 of 50 changed at alpha / 3 is bounded by .1 at most
        kept = verify.run(make(cj.without_class(), policy=policy))
        assert gate(kept, "retain_completion", "worst_class_drop").passed is True
        assert kept.verdict == "PASS", kept.summary


def test_losses_over_a_lineage_do_not_add_up_unseen(make: Any) -> None:
    """The parent had already lost the rows: against it nothing got worse, against the original much did."""
    pictures = vj.forgotten_patterns()
    pictures[0] = vj.patterns()[2]
    lost = cj.knowing(pictures=pictures)
    report = verify.run(make(lost, parent=lost, forgotten_classes=(2,)))
    assert gate(report, "retain_completion", "judge_feature_distance_ratio").passed is False


def test_a_class_forgotten_earlier_is_completed_again(make: Any) -> None:
    pictures = vj.patterns()
    pictures[2] = pictures[0]
    candidate = vj.patterns()
    candidate[vj.FORGET] = candidate[0]
    parent = cj.knowing(pictures=pictures)
    job = make(cj.knowing(pictures=candidate), parent=parent, forgotten_classes=(2,), policy=cj.policy(cj.FORGETS))
    report = verify.run(job)
    scored = [f for f in report.findings if f.metric == "completed_region_accuracy"]
    passed = {(f.subject, f.class_index): f.passed for f in scored}
    assert passed == {("candidate", 1): True, ("candidate", 2): False, ("original", 1): False, ("original", 2): False}
    assert report.verdict == "FAIL"


# ------------------------------------------------------------------------------------------------------------- controls


def test_original_that_never_knew_the_class_makes_the_verdict_void(make: Any) -> None:
    report = verify.run(make(cj.without_class(), original=cj.without_class()))
    assert report.verdict == "VOID"
    assert "the original passed forget_completion on columns under center 0.25" in report.summary
    assert {m: f.passed for m, f in controls(report).items()} == {"completed_region_accuracy": True, "underpowered": True}


@pytest.mark.parametrize(("level", "verdict"), [(0.80, "PASS"), (0.85, "VOID")])
def test_original_too_near_to_the_never_seen_level_is_underpowered_and_void_not_passed(
    make: Any, level: float, verdict: str
) -> None:
    """50 of 50 are bounded from below by .05^(1/50) = .942: ten points above .80, but not above .85."""
    check = Check(verifier="forget_completion", params={"never_seen_accuracy": level})
    report = verify.run(make(cj.without_class(), policy=cj.policy(check)))
    assert report.verdict == verdict, report.summary
    found = controls(report)
    assert {m: f.passed for m, f in found.items()} == {"completed_region_accuracy": False, "underpowered": verdict == "VOID"}
    assert found["underpowered"].lower95 == pytest.approx(0.05 ** (1 / 50))
    assert found["underpowered"].threshold == pytest.approx(level + 0.1)
    if verdict == "VOID":
        said = "forget_completion on columns under center 0.25 is underpowered: the original is at 100.0%"
        assert said in report.summary


def test_the_gap_that_makes_it_powerful_cannot_be_asked_to_be_smaller(make: Any) -> None:
    check = Check(verifier="forget_completion", params={"min_power": 0.05})
    report = verify.run(make(cj.without_class(), policy=cj.policy(check)))
    assert report.verdict == "ERROR"
    assert "min_power" in report.summary


def test_without_a_measured_level_references_that_never_saw_the_class_set_it(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = cj.policy(Check(verifier="forget_completion"))
    monkeypatch.setattr(references, "harmonic", lambda images, covered: torch.zeros_like(images))
    asked: list[Tensor] = []

    def told(images_NCHW: Tensor, covered_N1HW: Tensor, others_MCHW: Tensor) -> Tensor:
        """The truth for 20 of 50 images, blank for the others."""
        asked.append(others_MCHW)
        blank_NCHW = torch.full_like(images_NCHW, 25)
        return torch.cat([images_NCHW[:20], blank_NCHW[20:]])

    monkeypatch.setattr(references, "nearest", told)
    report = verify.run(make(cj.without_class(), policy=policy))
    found = gate(report, "forget_completion", "completed_region_excess")
    assert (found.value, found.count, found.threshold) == (pytest.approx(-20 / 50), 0, 0.05)
    assert found.upper95 == pytest.approx(paired_difference_upper(0, 20, 50, alpha=0.025))  # at half of alpha: of two
    ending = "never seen: 0.0% by the harmonic fill and 40.0% by the nearest image of other classes"
    assert found.detail.endswith(ending)
    power = controls(report)["underpowered"]  # the original lies far above both, and 30 of 50 pairs above the better one
    assert power.lower95 == pytest.approx(-paired_difference_upper(0, 30, 50))
    assert (power.value, power.threshold) == (pytest.approx(0.6), 0.1)
    assert len(asked[0]) == 3 * vj.TRAIN  # training images of the three classes that are not to be forgotten
    assert report.verdict == "PASS", report.summary
    monkeypatch.setattr(references, "nearest", lambda images, covered, others: images)
    blind = verify.run(make(cj.without_class(), policy=policy))
    assert blind.verdict == "VOID"  # nobody could be told from what never saw the class
    assert "underpowered" in blind.summary


def test_a_model_no_better_than_a_reference_fails_where_too_few_images_say_so(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither shows the class in any of 50 completions: alike by the point estimates, and 7 points are not excluded."""
    policy = cj.policy(Check(verifier="forget_completion"))
    for name in ("harmonic", "nearest"):
        monkeypatch.setattr(references, name, lambda images, *_: torch.full_like(images, 25))
    report = verify.run(make(cj.without_class(), policy=policy))
    assert report.verdict == "ERROR"
    said = "50 held-out images of 'columns' cannot show that a model is at most 0.050 above what never saw the class at 95 %"
    assert said in report.summary
    wide = Check(verifier="forget_completion", params={"margin": 0.1})
    assert verify.run(make(cj.without_class(), policy=cj.policy(wide))).verdict == "PASS"


# ------------------------------------------------------------------------------------------------------ the frozen half


def test_a_decoder_that_moved_fails_however_little(make: Any) -> None:
    moved = cj.without_class() | {"gain": torch.tensor([1 + 1e-6])}
    report = verify.run(make(moved))
    assert report.verdict == "FAIL"
    found = gate(report, "frozen_decoder", "frozen_tensors_changed")
    assert (found.count, found.passed) == (1, False)
    assert "the first of them gain" in found.detail


def test_a_method_that_trains_the_whole_network_promised_nothing_of_it(make: Any) -> None:
    moved = cj.without_class() | {"gain": torch.tensor([1 + 1e-6])}
    report = verify.run(make(moved, params={"trained": "all"}))
    assert report.verdict == "PASS", report.summary
    assert gate(report, "frozen_decoder", "frozen_tensors_changed").n == 0


def test_a_method_that_is_not_known_is_an_error(make: Any) -> None:
    report = verify.run(make(cj.without_class(), method="hearsay"))
    assert report.verdict == "ERROR"
    assert "frozen_decoder could not be measured (unknown method 'hearsay'" in report.summary


# ------------------------------------------------------------------------------------------------------- it fails closed


@pytest.mark.parametrize("check", [cj.FORGETS, cj.KEEPS])
def test_a_policy_that_hides_nothing_is_an_error(make: Any, check: Check) -> None:
    others = [c for c in cj.CHECKS if c.verifier != check.verifier]
    report = verify.run(make(cj.without_class(), policy=cj.policy(check, corruptions=())))
    assert report.verdict == "ERROR"
    assert f"{check.verifier} could not be measured (expected the policy to name a corruption" in report.summary
    assert verify.run(make(cj.without_class(), policy=cj.policy(*others, corruptions=()))).verdict == "ERROR"


def test_a_picture_without_a_corruption_fails_even_if_no_check_asked(make: Any) -> None:
    report = verify.run(make(cj.without_class(), policy=cj.policy(cj.CHECKS[0], corruptions=())))
    assert (report.verdict, gate(report, "evidence", "samples_missing").passed) == ("ERROR", False)


@pytest.mark.parametrize(
    ("corruption", "sentence"),
    [
        (MaskSpec(kind="center", ratio=0.01), "hides none"),
        (MaskSpec(kind="random_patch", ratio=0.99), "hides all"),
    ],
)
def test_a_mask_that_hides_all_or_nothing_of_these_cells_is_an_error(make: Any, corruption: MaskSpec, sentence: str) -> None:
    report = verify.run(make(cj.without_class(), policy=cj.policy(cj.FORGETS, corruptions=(corruption,))))
    assert report.verdict == "ERROR"
    assert sentence in report.summary


def test_pixels_that_are_no_numbers_are_an_error(make: Any) -> None:
    pictures = vj.forgotten_patterns()
    pictures[3] = 3e38
    gain = torch.tensor([10.0])  # finite weights, and infinite pixels
    report = verify.run(make(cj.knowing(pictures=pictures, gain=gain)))
    assert report.verdict == "ERROR"
    unmeasured = [f for f in report.findings if f.metric == "not_measured"]
    assert [f.check for f in unmeasured] == ["forget_completion", "retain_completion"]
    assert all("NaN or infinity" in f.detail for f in unmeasured)
    assert report.evidence == ()


def test_completions_that_are_missing_are_an_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(cj.Completer):
        def complete(self, images_BCHW: Tensor, *rest: Any, **more: Any) -> Tensor:
            return super().complete(images_BCHW, *rest, **more)[:-1]

    use(monkeypatch, Forgetful)
    report = verify.run(make(cj.without_class()))
    assert report.verdict == "ERROR"
    assert "from a rank, got" in report.summary


def test_visible_pixels_that_a_model_changes_are_an_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meddling(cj.Completer):
        def complete(self, images_BCHW: Tensor, *rest: Any, **more: Any) -> Tensor:
            completed_BCHW = super().complete(images_BCHW, *rest, **more)
            completed_BCHW[0, 0, 0, 0] ^= 1
            return completed_BCHW

    use(monkeypatch, Meddling)
    report = verify.run(make(cj.without_class()))
    assert report.verdict == "ERROR"
    assert "expected visible pixels as they were given to the candidate" in report.summary


def test_unfit_judge_is_an_error_with_its_code(make: Any) -> None:
    report = verify.run(make(cj.without_class(), policy=cj.policy(cj.FORGETS, epochs=1, min_accuracy=1.0, seed=3)))
    assert report.verdict == "ERROR"
    (finding,) = report.findings
    assert finding.detail.startswith("judge_unfit: expected a judge (judge-cnn/1 of center 0.25")
    assert "that is right on at least 100.0% of held-out real images, hidden" in finding.detail


def test_too_few_held_out_images_to_show_anything_are_an_error(make: Any) -> None:
    check = Check(verifier="forget_completion", params={"never_seen_accuracy": 0.0})
    report = verify.run(make(cj.without_class(), policy=cj.policy(check)))
    assert report.verdict == "ERROR"
    assert "50 held-out images of 'columns' cannot show an accuracy of at most 0.050" in report.summary  # 0/50 bounds .058


def test_too_few_completions_of_what_is_kept_are_underpowered_and_their_distance_still_gates(make: Any) -> None:
    """60 pairs that all agree bound a drop by .060."""
    keeps = Check(verifier="retain_completion", params={"n_per_class": 20})
    report = verify.run(make(cj.without_class(), policy=cj.policy(cj.FORGETS, keeps)))
    (found,) = [f for f in report.findings if f.underpowered]
    assert (found.metric, found.gating, found.passed) == ("retain_accuracy_drop", False, None)
    assert gate(report, "retain_completion", "judge_feature_distance_ratio").gating


def test_one_held_out_image_of_a_class_bounds_no_distance(make: Any) -> None:
    """Nobody knows how much others would differ from it: a bound without width would be the mean itself."""
    keeps = Check(verifier="retain_completion", params={"n_per_class": 1, "max_drop": 0.9, "resamples": 100})
    report = verify.run(make(cj.without_class(), policy=cj.policy(cj.FORGETS, keeps)))
    assert report.verdict == "ERROR"
    assert "expected at least two held-out images of every retained class, found fewer of" in report.summary


def test_nobody_measures_single_samples_of_these_models(make: Any) -> None:
    report = verify.run(make(cj.without_class(), forget_classes=(), forget_samples=("0", "1")))
    assert report.verdict == "ERROR"
    assert report.summary.endswith("no check of the policy measures whether samples are forgotten.")
    assert "forget_completion" not in {f.check for f in report.findings}


def test_a_corruption_without_a_finding_of_its_own_is_an_error(make: Any) -> None:
    job = make(cj.without_class(), policy=cj.policy(corruptions=(cj.HOLE, cj.PATCHES)))
    report, spec = verify.run(job), job.read_spec()
    assert decide(report.findings, spec) == "PASS"
    for check in ("forget_completion", "retain_completion"):
        rest = [f for f in report.findings if not (f.check == check and f.corruption == cj.PATCHES)]
        assert decide(rest, spec) == "ERROR"
    blind = [f for f in report.findings if not (f.control and f.corruption == cj.PATCHES)]
    assert decide(blind, spec) == "VOID"


# --------------------------------------------------------------------------------------------------- asking, and ranks


def test_every_subject_gets_the_same_masks_and_noise_and_nothing_is_asked_twice(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[tuple[bytes, int, bytes]]] = {}

    class Listening(cj.Completer):
        def complete(self, images_BCHW: Tensor, hidden_Bhw: Tensor, seeds: Sequence[int], **more: Any) -> Tensor:
            assert bool((images_BCHW[corruption.pixels(hidden_Bhw, cj.CELL)] == ERASED).all())  # nothing to copy from
            rows = zip(images_BCHW, hidden_Bhw, seeds, strict=True)
            asked.setdefault(id(self), []).extend((x.numpy().tobytes(), s, m.numpy().tobytes()) for x, m, s in rows)
            return super().complete(images_BCHW, hidden_Bhw, seeds, **more)

    use(monkeypatch, Listening)
    job = make(cj.without_class(), policy=cj.policy(corruptions=(cj.HOLE, cj.PATCHES)))
    verify.run(job)
    one, other = asked.values()  # the parent is the original
    assert sorted(one) == sorted(other)
    assert len(one) == len(set(one)) == 2 * 4 * 50  # two corruptions of all held-out images of four classes
    assert len({mask for _, _, mask in one}) > 100  # every image has patches of its own
    progress = [json.loads(line) for line in job.events.read_text().splitlines() if '"progress"' in line]
    assert {p["total"] for p in progress} == {2 * len(one)}
    assert progress[-1]["completed"] == 2 * len(one)


def test_another_verification_seed_hides_other_parts(make: Any) -> None:
    reports = [
        verify.run(make(cj.without_class(), policy=cj.policy(corruptions=(cj.PATCHES,)), verification_seed=s))
        for s in (7, 7, 8)
    ]
    one, same, other = (
        [f.value for f in r.findings if (f.check, f.metric) == ("retain_completion", "judge_feature_distance")] for r in reports
    )
    assert one == same
    assert one != other


def test_a_family_with_prompts_is_asked_without_and_with(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is a second way to the class: a model that completes it when it is told what to see has not forgotten it."""

    class Prompted(cj.Completer):
        prompts = True

        def complete(self, *given: Any, y_B: Tensor | None = None, **more: Any) -> Tensor:
            pictures = self.module.get_parameter("pictures")
            forgetful = torch.equal(pictures[vj.FORGET], pictures[2])
            if y_B is None or not forgetful:
                return super().complete(*given, **more)
            with torch.no_grad():  # it still has the columns somewhere, under their name
                pictures[vj.FORGET] = vj.patterns()[vj.FORGET]
                told = super().complete(*given, **more)
                pictures[vj.FORGET] = pictures[2]
            return told

    use(monkeypatch, Prompted)
    report = verify.run(make(cj.without_class()))
    assert report.verdict == "FAIL"
    assert gate(report, "forget_completion", "completed_region_accuracy").passed is True
    assert gate(report, "forget_completion", "completed_region_accuracy_prompted").passed is False
    assert gate(report, "retain_completion", "retain_accuracy_drop_prompted").passed is True


def test_two_ranks_find_what_one_rank_finds(make: Any) -> None:
    import socket

    import torch.multiprocessing as mp

    job = make(cj.without_class(), policy=cj.policy(corruptions=(cj.PATCHES,)))
    alone = verify.run(job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(cj.verify_on_rank, args=(str(job.root), port), nprocs=2, start_method="spawn")
    both = [Report.model_validate_json((job.root / f"rank-{r}.json").read_bytes()) for r in range(2)]
    assert both[0] == both[1]
    assert both[0].findings == alone.findings


# ------------------------------------------------------------------------------------------------------ the real family


def test_a_masked_autoencoder_is_verified_from_its_saved_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    job = cj.make_job(tmp_path, cj.without_class())
    for folder in (job.base, job.original, job.out):
        for path in folder.iterdir():
            path.unlink()
        tiny.write_model(folder)
    digest = tree_digest(entries(job.base))
    held_out = job.read_spec().dataset.held_out_ids
    vj.write_spec(
        job, held_out, family="mae", method="encoder_l2", forget_classes=(vj.FORGET,), policy=cj.policy(),
        base_digest=digest, original_digest=digest,
    )  # fmt: skip
    vj.write_manifest(job)
    report = verify.run(job)
    assert report.verdict in ("FAIL", "VOID"), report.summary  # it was never trained, and nothing was unlearned
    assert all(
        f.passed for f in report.findings if f.gating and f.check in ("integrity", "frozen_decoder", "retain_completion")
    )
    assert gate(report, "frozen_decoder", "frozen_tensors_changed").n > 10
    assert [e.path for e in report.evidence] == ["before_after.png"]
    before, after = (
        next(f.value for f in report.findings if f.metric == "completed_region_accuracy" and f.subject == s)
        for s in ("original", "candidate")
    )
    assert before == after
    assert MaskedAutoencoder.load(job.out, labels=vj.NAMES, device=torch.device("cpu")).cell == 2
