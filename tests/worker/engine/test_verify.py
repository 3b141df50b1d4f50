from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JobDirectory, JudgePolicy, Policy, Report, Sampling, tree_digest
from worker.engine import registry, verify
from worker.engine.errors import BadInput, Integrity, OutOfMemory
from worker.engine.files import entries
from worker.verdict import decide

FORGET_PIXEL = (vj.FORGET, 0, 0, 0)


@pytest.fixture(autouse=True)
def painters(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, vj.Painter)


def use(monkeypatch: pytest.MonkeyPatch, family: type[Any]) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"painter": family})


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once: every job of these tests has the same data."""
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def make(tmp_path: Path, judges: Path) -> Any:
    def job(candidate: Tensor, **changes: Any) -> JobDirectory:
        made = vj.make_job(tmp_path / "job", candidate, **changes)
        made.judges.symlink_to(judges)
        return made

    return job


def gate(report: Report, check: str, metric: str) -> Finding:
    (found,) = [f for f in report.findings if (f.check, f.metric, f.gating) == (check, metric, True)]
    return found


def damaged(classes: Sequence[int]) -> Tensor:
    pictures = vj.forgotten_patterns()
    pictures[list(classes)] = 255 * torch.rand(1, vj.SIDE, vj.SIDE, generator=torch.Generator().manual_seed(5))
    return pictures


def test_model_that_forgot_and_kept_the_rest_passes(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    report = verify.run(job)
    assert report.verdict == "PASS", report.summary
    assert gate(report, "forget_rate", "unlearning_accuracy").count == 0
    assert report.candidate_digest == tree_digest(entries(job.out))
    assert [e.path for e in report.evidence] == ["before_after.png"]
    assert report.judges[0].held_out_accuracy >= 0.95
    assert Report.model_validate_json(job.report.read_bytes()) == report


def test_unchanged_original_as_candidate_fails_the_forget_gate(make: Any) -> None:
    report = verify.run(make(vj.patterns()))
    assert report.verdict == "FAIL"
    found = gate(report, "forget_rate", "unlearning_accuracy")
    assert found.passed is False
    assert found.count == found.n == 59
    (control,) = [f for f in report.findings if f.control]
    assert (control.subject, control.passed, control.gating) == ("original", False, False)


def test_original_that_passes_makes_the_verdict_void(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A judge that cannot see the class: everything that is not there would pass, so nothing is verified.
    from worker.engine import judge

    look = judge.Judge.look

    def blind(self: judge.Judge, images_NCHW: Tensor) -> judge.Judged:
        seen = look(self, images_NCHW)
        probabilities_NK = seen.probabilities_NK.clone()
        probabilities_NK[:, vj.FORGET] = 0
        return judge.Judged(probabilities_NK, seen.features_ND)

    monkeypatch.setattr(judge.Judge, "look", blind)
    report = verify.run(make(vj.forgotten_patterns()))
    assert report.verdict == "VOID"
    assert "the original passed" in report.summary


def test_destroyed_model_fails_what_it_should_have_kept(make: Any) -> None:
    report = verify.run(make(damaged(range(vj.K))))
    assert report.verdict == "FAIL"
    assert gate(report, "retain_accuracy", "retain_accuracy_drop").passed is False
    assert gate(report, "feature_distance", "judge_feature_distance_ratio").passed is False
    assert gate(report, "forget_rate", "unlearning_accuracy").passed is True  # noise shows no class: not enough to pass


def test_blurred_model_that_is_still_recognised_fails_the_distance(make: Any) -> None:
    pictures = vj.forgotten_patterns()
    pictures[0] = 128 + 0.45 * (pictures[0] - 128)  # pale rows are rows still
    report = verify.run(make(pictures))
    assert gate(report, "retain_accuracy", "retain_accuracy_drop").passed is True
    assert gate(report, "feature_distance", "judge_feature_distance_ratio").passed is False
    assert report.verdict == "FAIL"


def test_every_class_ever_forgotten_is_verified_again_and_controlled_by_the_root(make: Any) -> None:
    # The parent had forgotten the diagonal; the candidate forgets the columns, and draws the diagonal again.
    parent = vj.patterns()
    parent[2] = parent[0]
    candidate = vj.patterns()
    candidate[vj.FORGET] = candidate[0]
    check = Check(verifier="forget_rate", params={"n_per_class": 59})
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=(check,))
    report = verify.run(make(candidate, parent=parent, forgotten_classes=(2,), policy=policy))
    passed = {(f.subject, f.class_index): f.passed for f in report.findings}
    assert passed == {("candidate", 1): True, ("candidate", 2): False, ("original", 1): False, ("original", 2): False}
    assert report.verdict == "FAIL"


def test_same_spec_gives_the_same_report_with_a_fresh_judge_and_a_cached_one(tmp_path: Path) -> None:
    job = vj.make_job(tmp_path, vj.forgotten_patterns())
    first, second = verify.run(job), verify.run(job)  # the first trains the judge, the second finds it in the cache
    clocks = {"seconds_verify", "seconds_by_check", "peak_memory_mb"}
    assert first.model_dump(exclude=clocks) == second.model_dump(exclude=clocks)


# ------------------------------------------------------------------------------------------------------- it fails closed


def test_nan_weight_fails_integrity_and_nothing_is_measured_on_it(make: Any) -> None:
    pictures = vj.forgotten_patterns()
    pictures[FORGET_PIXEL] = float("nan")
    report = verify.run(make(pictures))
    assert report.verdict == "ERROR"
    assert gate(report, "integrity", "tensors_not_finite").passed is False
    assert [f.check for f in report.findings if f.metric == "not_measured"] == [
        "forget_rate",
        "retain_accuracy",
        "feature_distance",
    ]
    assert report.evidence == ()


def test_truncated_weights_fail(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    weights = job.out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-16])
    vj.write_manifest(job)  # even when the manifest agrees with the damage
    report = verify.run(job)
    assert report.verdict == "ERROR"
    assert gate(report, "integrity", "weights_unreadable").passed is False


def test_file_that_is_not_what_the_manifest_says_fails(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    vj.save_model(job.out, vj.forgotten_patterns() + 1)
    report = verify.run(job)
    assert gate(report, "integrity", "files_unlike_manifest").passed is False
    assert report.verdict == "FAIL"


def test_missing_samples_are_an_error_not_a_zero(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(vj.Painter):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
            return super().sample(y_B, seeds, sampling=sampling)[:-1]

    use(monkeypatch, Forgetful)
    report = verify.run(make(vj.forgotten_patterns()))
    assert report.verdict == "ERROR"
    assert "expected 59 samples of candidate from a rank, got 58" in report.summary


@pytest.mark.parametrize("wrong", [lambda x: x.float(), lambda x: x[:, :, :4], lambda x: x.repeat(1, 3, 1, 1)])
def test_samples_that_are_not_images_of_the_data_are_an_error(make: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    class Odd(vj.Painter):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
            return wrong(super().sample(y_B, seeds, sampling=sampling))

    use(monkeypatch, Odd)
    report = verify.run(make(vj.forgotten_patterns()))
    assert report.verdict == "ERROR"
    assert "expected uint8 samples [59, 1, 8, 8] of candidate" in report.summary


def test_unfit_judge_is_an_error_with_its_code(make: Any) -> None:
    policy = Policy(name="p", judge=JudgePolicy(epochs=1, min_accuracy=1.0, seed=3), checks=vj.CHECKS[:2])
    poor = policy.model_copy(update={"judge": JudgePolicy(epochs=1, min_accuracy=1.0, seed=3)})
    job = make(vj.forgotten_patterns(), policy=poor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.judge.accuracy", lambda *_: (0.5, 200))
        report = verify.run(job)
    assert report.verdict == "ERROR"
    (finding,) = [f for f in report.findings if f.check == "forget_rate"]
    assert finding.gating is False
    assert finding.detail.startswith("judge_unfit: expected a judge")


def test_check_that_crashes_is_an_error_with_a_report(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.engine.verifiers.retain_accuracy import RetainAccuracy

    def crash(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(RetainAccuracy, "run", crash)
    job = make(vj.forgotten_patterns())
    report = verify.run(job)
    assert report.verdict == "ERROR"
    assert job.report.exists()
    assert "unexpected KeyError" in report.summary
    assert "secret" not in report.model_dump_json()


@pytest.mark.parametrize(
    "check",
    [
        Check(verifier="astrology"),
        Check(verifier="forget_rate", params={"n_per_clas": 200}),
        Check(verifier="forget_rate", params={"n_per_class": 58}),  # 0.95^58 > 0.05: cannot pass, so must not run
        Check(verifier="retain_accuracy", params={"n_per_class": 0}),
    ],
)
def test_policy_that_cannot_be_met_or_read_is_an_error(make: Any, check: Check) -> None:
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=(Check(verifier="integrity"), check))
    report = verify.run(make(vj.forgotten_patterns(), policy=policy))
    assert report.verdict == "ERROR"
    assert check.verifier in report.summary


def few(check: str) -> Policy:
    checks = (*vj.CHECKS[:2], Check(verifier=check, params={"n_per_class": 10}))
    return Policy(name="p", kind="generator", judge=JudgePolicy(epochs=6), checks=checks)


@pytest.mark.parametrize("check", ["retain_accuracy", "feature_distance"])
def test_a_check_of_what_is_kept_on_too_few_samples_is_underpowered_and_gates_nothing(make: Any, check: str) -> None:
    """30 pairs that all agree bound a drop by .116; 30 images of a class and 3 classes are fewer than 128."""
    report = verify.run(make(vj.forgotten_patterns(), policy=few(check)))
    found = [f for f in report.findings if f.underpowered]
    assert [(f.check, f.gating, f.passed) for f in found] == [(check, False, None)]
    assert (report.verdict, report.tier) == ("PASS", "L0")  # it proves nothing, so no tier that asks for it is reached


def test_a_check_that_is_underpowered_refutes_all_the_same_what_few_samples_can_refute(make: Any) -> None:
    report = verify.run(make(damaged(range(vj.K)), policy=few("retain_accuracy")))
    assert gate(report, "retain_accuracy", "retain_accuracy_drop").passed is False
    assert report.verdict == "FAIL"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_out_of_memory_is_a_failure_of_the_stage_not_of_the_candidate(
    error: Exception, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Huge(vj.Painter):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
            raise error

    use(monkeypatch, Huge)
    job = make(vj.forgotten_patterns())
    with pytest.raises(OutOfMemory):
        verify.run(job)
    assert not job.report.exists()


@pytest.mark.parametrize("folder", ["base", "original", "data"])
def test_inputs_that_changed_since_registration_are_refused(make: Any, folder: str) -> None:
    job = make(vj.forgotten_patterns())
    victim = next(p for p in sorted((job.root / folder).iterdir()) if p.is_file())
    victim.write_bytes(victim.read_bytes() + b" ")
    with pytest.raises(Integrity, match="changed since registration"):
        verify.run(job)


def test_manifest_that_is_missing_foreign_or_unfinished_is_refused(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    vj.write_manifest(job, iterations_completed=4)
    with pytest.raises(Integrity, match="found 4 of 5 iterations"):
        verify.run(job)
    vj.write_manifest(job, spec_digest="0" * 64)
    with pytest.raises(Integrity, match="another spec's"):
        verify.run(job)
    job.manifest.unlink()
    with pytest.raises(Integrity, match="found none"):
        verify.run(job)


def test_stale_answers_do_not_survive_a_launch_that_fails(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    verify.run(job)
    shutil.rmtree(job.out)
    with pytest.raises(Integrity):
        verify.run(job)
    assert not job.report.exists()
    assert not job.evidence.exists()


def test_spec_that_is_none_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected spec\.json"):
        verify.run(JobDirectory(tmp_path))
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(BadInput, match="is not a spec"):
        verify.run(JobDirectory(tmp_path))


def test_real_network_that_draws_nan_for_a_class_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Finite weights that overflow when the class is asked for: black squares show no class, and must not count as forgotten.
    monkeypatch.undo()
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False, num_class_embeds=vj.K + 1,
    )  # fmt: skip
    job = vj.make_job(tmp_path, vj.patterns(), family="ddpm")
    for folder in (job.base, job.original, job.out):
        shutil.rmtree(folder)
        unet.save_pretrained(folder)
    with torch.no_grad():
        unet.class_embedding.weight[vj.FORGET] = 3e38
    unet.save_pretrained(job.out)
    digest = tree_digest(entries(job.base))
    check = Check(verifier="forget_rate", params={"n_per_class": 59})
    policy = Policy(name="p", sampling=Sampling(steps=2), checks=(check,))
    spec = json.loads(job.spec.read_text()) | {"base_digest": digest, "original_digest": digest}
    job.spec.write_text(json.dumps(spec | {"policy": policy.model_dump(mode="json")}))
    vj.write_manifest(job)
    report = verify.run(job)
    assert report.verdict == "ERROR"
    assert "NaN" in report.summary


# ---------------------------------------------------------------------------------------------------- sampling and ranks


def test_nothing_is_drawn_twice_and_a_first_requests_parent_is_its_original(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int, int]] = []

    class Counting(vj.Painter):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
            drawn.extend((id(self), k, s) for k, s in zip(y_B.tolist(), seeds, strict=True))
            return super().sample(y_B, seeds, sampling=sampling)

    use(monkeypatch, Counting)
    job = make(vj.forgotten_patterns())
    verify.run(job)
    assert len(drawn) == len(set(drawn))
    # 59 of the forgotten class and 62 of three retained ones, for the candidate and for the one other set of weights
    assert len(drawn) == 2 * (59 + 3 * 62)
    assert {(k, s) for model, k, s in drawn if model == drawn[0][0]} == {
        (k, s) for model, k, s in drawn if model != drawn[0][0]
    }  # common noise
    progress = [json.loads(line) for line in job.events.read_text().splitlines() if '"progress"' in line]
    assert {p["total"] for p in progress} == {len(drawn)}
    assert progress[-1]["completed"] == len(drawn)
    assert {p["unit"] for p in progress} == {"image"}
    assert {p["phase"] for p in progress} == {"verifying"}


def test_two_ranks_find_what_one_rank_finds(make: Any) -> None:
    import socket

    import torch.multiprocessing as mp

    job = make(vj.forgotten_patterns())
    alone = verify.run(job)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(vj.verify_on_rank, args=(str(job.root), port), nprocs=2, start_method="spawn")
    both = [Report.model_validate_json((job.root / f"rank-{r}.json").read_bytes()) for r in range(2)]
    assert both[0] == both[1] == Report.model_validate_json(job.report.read_bytes())
    for shared, single in zip(both[0].findings, alone.findings, strict=True):
        numbers = ("value", "lower95", "upper95")
        assert shared.model_dump(exclude=set(numbers)) == single.model_dump(exclude=set(numbers))
        for name in numbers:  # a batch of another size sums in another order
            here, there = getattr(shared, name), getattr(single, name)
            assert here == there or here == pytest.approx(there, rel=1e-4)
    assert both[0].environment.ranks == 2


def test_verdict_is_what_every_reader_recomputes(make: Any) -> None:
    job = make(vj.forgotten_patterns())
    report = verify.run(job)
    assert report.verdict == decide(report.findings, job.read_spec())
