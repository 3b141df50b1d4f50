"""The unlearning stage as it is really started: a process of its own, its files, its exit status."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.unlearning_job import (
    ONE_RANK,
    make_job,
    params_of,
    run_engine,
    start_engine,
    weights_in,
    write_spec,
)
from worker.contract import (
    EXIT_FAILED,
    EXIT_STOPPED,
    Check,
    DatasetSpec,
    Event,
    Failure,
    JobDirectory,
    Manifest,
    Policy,
    document_digest,
    tree_digest,
)
from worker.engine import distributed, unlearn
from worker.engine.checkpoint import Cadence
from worker.engine.data import load_dataset, load_proxy
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, Integrity
from worker.engine.events import Events
from worker.engine.files import entries
from worker.engine.run import Run
from worker.engine.unlearn import forgotten, make_run, read_work

EVERY_STEP = ("--checkpoint-iterations", "1", "--checkpoint-seconds", "0")


def in_process(job: JobDirectory) -> Manifest:
    return unlearn.run(job, ONE_RANK, cadence=Cadence(), stop_asked=lambda: False)


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def long_job(root: Path, iterations: int = 40) -> JobDirectory:
    return make_job(root, params=params_of("sfron") | {"iterations": iterations})


def steps_in(job: JobDirectory) -> list[str]:
    return sorted(p.name for p in job.steps.glob("step-*")) if job.steps.exists() else []


def test_a_finished_run_names_every_file_it_wrote(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    manifest = in_process(job)
    assert manifest == Manifest.model_validate_json(job.manifest.read_bytes())
    assert manifest.files == entries(job.out)
    assert manifest.complete
    assert manifest.spec_digest == document_digest(job.read_spec())
    assert manifest.effective_params["temperature"] == 0.5  # a default, written out
    assert not job.steps.exists()
    assert not list(job.root.glob(".*"))


def test_the_candidate_has_the_layout_of_the_base_and_other_weights(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    in_process(job)
    assert [f.path for f in entries(job.out)] == [f.path for f in entries(job.base)]
    before, after = weights_in(job.base), weights_in(job.out)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_progress_counts_iterations_to_the_last(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    in_process(job)
    events = [Event.model_validate_json(line) for line in job.events.read_text().splitlines()]
    assert events[0].kind == "phase"
    assert {e.phase for e in events} == {"unlearning"}
    progress = [e for e in events if e.unit == "iteration"]
    assert (progress[-1].completed, progress[-1].total) == (6, 6)
    assert progress[-1].estimated_remaining_seconds == 0


def test_a_killed_engine_goes_on_to_the_bits_of_an_unbroken_run(tmp_path: Path) -> None:
    whole, broken = long_job(tmp_path / "whole"), long_job(tmp_path / "broken")
    assert run_engine(whole) == 0
    process = start_engine(broken, *EVERY_STEP)
    wait_for(lambda: any(name >= "step-000005" for name in steps_in(broken)))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert not broken.manifest.exists()
    assert len(steps_in(broken)) <= 3  # the newest two, and one that was about to be dropped
    assert run_engine(broken) == 0
    manifest = Manifest.model_validate_json(broken.manifest.read_bytes())
    assert 5 <= manifest.resumed_from_iteration < 40
    assert entries(broken.out) == entries(whole.out)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_rank_that_is_left_says_that_another_died(victim: int, tmp_path: Path) -> None:
    job = long_job(tmp_path, iterations=2000)
    write_spec(job, ranks=2, params=params_of("sfron") | {"iterations": 2000})
    process = start_engine(job, *EVERY_STEP, ranks=2)
    wait_for(lambda: bool(steps_in(job)))
    os.kill(rank_of(process.pid, victim), signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert job.failure.exists(), output
    failure = Failure.model_validate_json(job.failure.read_bytes())
    assert (failure.code, failure.retryable) == ("rank_lost", True), output
    assert failure.message == "expected 2 ranks to answer, one no longer does"
    assert not job.manifest.exists()
    assert not list(job.root.glob(".failure*"))


def test_the_reason_of_a_failure_is_written_down_before_the_other_ranks_see_this_one_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path)
    write_spec(job, ranks=2)
    written: list[bool] = []
    monkeypatch.setattr(distributed, "close", lambda _: written.append(job.failure.exists()))
    assert run_engine(job) == EXIT_FAILED
    assert written == [True]


def rank_of(launcher: int, rank: int) -> int:
    """The process id of a rank that torchrun started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


def test_two_ranks_that_are_asked_to_stop_leave_one_checkpoint_and_go_on_from_it(tmp_path: Path) -> None:
    job = long_job(tmp_path, iterations=400)
    write_spec(job, ranks=2, params=params_of("sfron") | {"iterations": 400})
    process = start_engine(job, ranks=2)
    wait_for(lambda: job.events.exists() and '"unit":"iteration"' in job.events.read_text())
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its ranks
    output, _ = process.communicate(timeout=60)
    assert len(steps_in(job)) >= 1, output
    assert not job.manifest.exists()
    assert not job.failure.exists()


def test_asked_to_stop_it_ends_with_75_and_a_step_checkpoint(tmp_path: Path) -> None:
    job = long_job(tmp_path, iterations=2000)
    process = start_engine(job, "--checkpoint-seconds", "1e9", "--checkpoint-iterations", "1000000")
    wait_for(lambda: job.events.exists() and '"unit":"iteration"' in job.events.read_text())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED
    assert len(steps_in(job)) == 1
    assert not job.manifest.exists()
    assert not job.failure.exists()


def test_a_diverging_run_writes_no_weights_and_says_where(tmp_path: Path) -> None:
    job = make_job(tmp_path, method="gradient_ascent", params={"learning_rate": 100.0, "clip": 1e6, "iterations": 500})
    assert run_engine(job) == EXIT_FAILED
    failure = Failure.model_validate_json(job.failure.read_bytes())
    assert failure.code == "diverged"
    assert failure.step is not None
    assert failure.step > 0
    assert failure.loss is not None
    assert not job.out.exists()
    assert not job.manifest.exists()


def test_weights_whose_digest_changed_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    weights = next(job.base.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["conv_in.bias"][0] += 1e-3
    save_file(tensors, weights)
    assert run_engine(job) == EXIT_FAILED
    failure = Failure.model_validate_json(job.failure.read_bytes())
    assert failure.code == "integrity"
    assert "digest" in failure.message
    assert not job.out.exists()


def test_changed_data_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    np.savez(job.data / "more.npz", images=np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(Integrity, match="dataset"):
        in_process(job)


def test_nothing_stale_survives_the_start_of_a_new_attempt(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    in_process(job)
    write_spec(job, params={"no_such": 1})
    with pytest.raises(BadInput, match="no_such"):
        in_process(job)
    assert not job.manifest.exists()
    assert not job.out.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"family": "no_such_family"}, "no_such_family"),
        ({"method": "no_such_method", "params": {}}, "no_such_method"),
        ({"params": {"temperature": -1}}, "temperature"),
        ({"forget_classes": (4,)}, "forget set"),
        ({"forget_classes": (0, 1), "forgotten_classes": (2, 3)}, "forget set"),
        ({"ranks": 2}, "2 ranks"),
    ],
)
def test_a_spec_that_cannot_be_worked_on_is_refused_by_name(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    job = make_job(tmp_path)
    write_spec(job, **changes)
    with pytest.raises(BadInput, match=named):
        in_process(job)


def test_a_spec_that_is_no_spec_ends_in_a_failure_document(tmp_path: Path) -> None:
    job = JobDirectory(tmp_path)
    job.spec.write_text(json.dumps({"schema_version": 1}))
    assert run_engine(job) == EXIT_FAILED
    assert Failure.model_validate_json(job.failure.read_bytes()).code == "bad_input"


def prepared(job: JobDirectory, ranks: Ranks = ONE_RANK) -> Run:
    work = read_work(job, ranks)
    family = work.family.load(job.base, labels=work.spec.labels, device=ranks.device)
    events, dataset = Events(job.events, "test", speaks=False), load_dataset(job, work.spec)
    proxy = load_proxy(job, work.spec, dataset)
    return make_run(work, family, dataset, ranks, events, cache=job.fishers, proxy=proxy)


def test_nothing_to_retain_is_named(tmp_path: Path) -> None:
    held_out = {"0", "12", "24", "36"}
    everything = tuple(str(i) for i in range(48) if str(i) not in held_out)
    job = make_job(tmp_path, forget_classes=(), forget_samples=everything)
    with pytest.raises(BadInput, match="at least 1 training images to retain, one a rank, found 0"):
        prepared(job, ONE_RANK)


def test_fewer_images_than_ranks_are_named(tmp_path: Path) -> None:
    ranks = Ranks(0, 12, torch.device("cpu"))
    job = make_job(tmp_path, ranks=12)  # 11 training images a class
    with pytest.raises(BadInput, match="at least 12 training images to forget, one a rank, found 11"):
        prepared(job, ranks)


def test_a_sample_that_is_no_training_item_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, forget_classes=(), forget_samples=("1", "0", "nowhere"))  # "0" is held out
    with pytest.raises(BadInput, match="expected ids of training items, 2 of 3 are none"):
        prepared(job, ONE_RANK)


def test_forgotten_samples_and_classes_of_the_lineage_stay_in_the_forget_set(tmp_path: Path) -> None:
    job = make_job(tmp_path, forget_classes=(), forget_samples=("13",), forgotten_classes=(0,), forgotten_samples=("25",))
    spec = job.read_spec()
    # Class 0 has the items 0 to 11, of which 0 is held out.
    assert forgotten(spec, load_dataset(job, spec)).tolist() == [*range(1, 12), 13, 25]


# -------------------------------------------------------------------------------------------------- what is left as it was


@pytest.mark.parametrize(
    ("method", "trains"),
    [("encoder_l2", "encoder"), ("encoder_l2_epsilon", "encoder"), ("random_encoder", "encoder"), ("max_loss", "all"),
     ("noisy_label", "all"), ("retain_label", "all"), ("finetune", "all"), ("retrain", "all")],
)  # fmt: skip
def test_a_method_moves_the_decoder_if_and_only_if_it_says_so(method: str, trains: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, family="mae", method=method, params=params_of(method, "mae") | {"iterations": 3})
    assert read_work(job, ONE_RANK).params.trains == trains
    in_process(job)
    base, out = weights_in(job.base), weights_in(job.out)
    decoder = [name for name in base if name.startswith("decoder.") and name != "decoder.decoder_pos_embed"]
    assert all(torch.equal(base[name], out[name]) for name in decoder) == (trains == "encoder")
    assert torch.equal(base["decoder.decoder_pos_embed"], out["decoder.decoder_pos_embed"])  # which nothing trains


# ------------------------------------------------------------------------------------------------------------ retain data

I2I: dict[str, object] = {"family": "mae", "method": "encoder_l2", "params": params_of("encoder_l2", "mae")}
CLASS = {k: [*range(12 * k + 1, 12 * k + 12)] for k in range(4)}
"""Training items by class: the first of every twelve is held out."""


def test_by_default_everything_else_is_retained(tmp_path: Path) -> None:
    run = prepared(make_job(tmp_path, **I2I))
    assert run.retain.indices_N.tolist() == [*CLASS[0], *CLASS[2], *CLASS[3]]


def test_real_retain_data_are_those_of_the_classes_that_are_named(tmp_path: Path) -> None:
    run = prepared(make_job(tmp_path, **I2I, retain={"classes": (3,), "proxy_classes": (2,)}))
    assert run.retain.indices_N.tolist() == CLASS[3]


def test_proxy_classes_stand_in_at_the_share_that_is_asked_for(tmp_path: Path) -> None:
    run = prepared(make_job(tmp_path, **I2I, retain={"classes": (3,), "proxy_classes": (2,), "real": 0.25}))
    dealt = run.retain.pick(0, 8)
    assert len(set(dealt.tolist()) & set(CLASS[3])) == 2
    assert len(set(dealt.tolist()) & set(CLASS[2])) == 6


def test_without_real_retain_data_none_is_ever_dealt(tmp_path: Path) -> None:
    job = make_job(tmp_path, **I2I, retain={"proxy_classes": (2,), "real": 0.0}, forgotten_samples=("25",))
    run = prepared(job)
    assert run.retain.name == "retain"
    assert run.retain.indices_N.tolist() == CLASS[2][1:]  # item 25 was forgotten singly


def with_proxy(
    job: JobDirectory,
    *,
    side: int = 8,
    copies: dict[int, int] | None = None,
    forgotten_samples: tuple[str, ...] = (),
    **changes: object,
) -> JobDirectory:
    """Six images of another dataset beside, of which the last is held out; some are copies of this one's: theirs -> ours."""
    job.proxy.mkdir()
    images, labels = np.full((6, side, side), 77, np.uint8), np.array([0, 0, 0, 1, 1, 1])
    for theirs, ours in (copies or {}).items():
        with np.load(next(job.data.glob("*.npz"))) as arrays:
            images[theirs] = arrays["images"][ours]
    np.savez(job.proxy / "other.npz", images=images, labels=labels)
    described = DatasetSpec(format="npz", digest=tree_digest(entries(job.proxy)), held_out_ids=("5",))
    asked = {"real": 0.5, "proxy_dataset": described, "proxy_class_names": ("bus", "tram")}
    write_spec(job, **I2I, retain=asked | changes, forgotten_samples=forgotten_samples)
    return job


def test_another_dataset_stands_in_behind_the_items_of_the_first(tmp_path: Path) -> None:
    run = prepared(with_proxy(make_job(tmp_path, **I2I)))
    assert len(run.held_N) == 48 + 6
    assert run.labels_N[48:].tolist() == [-1] * 6
    assert set(run.retain.indices_N.tolist()) == {*CLASS[0], *CLASS[2], *CLASS[3], 48, 49, 50, 51, 52}
    dealt = run.retain.pick(0, 8)
    assert int((dealt >= 48).sum()) == 4
    assert bool((run.held_N[dealt[dealt >= 48]] == 77).all())
    assert run.forget.indices_N.tolist() == CLASS[1]


def test_a_run_with_a_proxy_dataset_ends_with_a_result(tmp_path: Path) -> None:
    manifest = in_process(with_proxy(make_job(tmp_path, **I2I), real=0.0))
    assert manifest.complete


def test_a_proxy_dataset_that_changed_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    job = with_proxy(make_job(tmp_path / "other", **I2I))
    np.savez(job.proxy / "more.npz", images=np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(Integrity, match="the proxy dataset"):
        prepared(job)
    with pytest.raises(BadInput, match=r"expected proxy images of shape \(1, 8, 8\), as the dataset's, found \(1, 6, 6\)"):
        prepared(with_proxy(make_job(tmp_path / "small", **I2I), side=6))


@pytest.mark.parametrize(
    ("ours", "what"),
    [(13, "to be forgotten"), (25, "to be forgotten"), (24, "held out"), (12, "held out"), (26, "of a retained class")],
)
@pytest.mark.parametrize("real", [0.0, 0.5])
def test_a_proxy_dataset_with_an_image_to_forget_held_out_or_retained_is_refused(
    real: float, ours: int, what: str, tmp_path: Path
) -> None:
    """Whatever file it lies in, and whatever it is called there: 13 is of the class, 25 goes singly, 12 and 24 are held out.

    One of a retained class, 26, is no stand-in: more real images would be trained on than the request allows.
    """
    job = with_proxy(make_job(tmp_path, **I2I), copies={2: ours}, forgotten_samples=("25",), real=real)
    with pytest.raises(BadInput, match=f"expected no image of the dataset that is {what} among the proxy images, found 1"):
        prepared(job)


def test_a_proxy_dataset_may_hold_images_of_classes_that_stand_in_anyway(tmp_path: Path) -> None:
    assert len(prepared(with_proxy(make_job(tmp_path, **I2I), copies={2: 26}, proxy_classes=(2,))).held_N) == 48 + 6


def test_what_a_proxy_dataset_holds_out_may_be_anything(tmp_path: Path) -> None:
    assert len(prepared(with_proxy(make_job(tmp_path, **I2I), copies={5: 13})).held_N) == 48 + 6


def test_proxy_data_with_a_class_to_forget_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, **I2I)
    text = json.loads(job.spec.read_text()) | {"retain": {"real": 0.0, "proxy_classes": [1]}}
    job.spec.write_text(json.dumps(text))
    with pytest.raises(BadInput, match="expected proxy classes that are not to be forgotten, got columns"):
        prepared(job)


def test_retain_data_are_chosen_for_image_to_image_models_alone(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="image-to-image model alone, found them for a generator"):
        prepared(make_job(tmp_path, retain={"classes": (3,)}))


HOLE = {"kind": "center", "ratio": 0.25}


def i2i_policy(*checks: Check, **mask: object) -> Policy:
    return Policy.model_validate({"name": "p", "sampling": {"corruptions": [{**HOLE, **mask}]}, "checks": checks})


@pytest.mark.parametrize(
    ("policy", "held_out", "sentence"),
    [
        (i2i_policy(Check(verifier="integrity"), ratio=0.01), 4, "center at ratio 0.01 hides none"),
        (i2i_policy(Check(verifier="integrity"), kind="random_patch", ratio=0.99), 4, "random_patch at ratio 0.99 hides all"),
        (
            i2i_policy(Check(verifier="forget_completion")),
            1,
            "two held-out images of every forgotten class, found fewer of columns",
        ),
        (
            i2i_policy(Check(verifier="retain_completion")),
            1,
            "two held-out images of every retained class, found fewer of rows",
        ),
        (i2i_policy(Check(verifier="forget_rate")), 4, "forget_rate could not be measured .measures generator models"),
        (
            i2i_policy(Check(verifier="forget_completion", params={"never_seen_accuracy": 0.1})),
            4,
            "4 held-out images of 'columns' cannot show an accuracy of at most 0.150",
        ),
    ],
)
def test_what_verification_could_not_measure_is_said_before_anything_is_trained(
    policy: Policy, held_out: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, **I2I, policy=policy)
    ids = tuple(str(12 * k + i) for k in range(4) for i in range(held_out))
    write_spec(job, **I2I, policy=policy, dataset=job.read_spec().dataset.model_copy(update={"held_out_ids": ids}))
    monkeypatch.setattr(unlearn, "make_run", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(BadInput, match=sentence):
        in_process(job)


def test_a_class_that_is_set_aside_needs_held_out_images_too_for_the_judge_s_sake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = i2i_policy(Check(verifier="retain_completion"))
    wanted = {**I2I, "policy": policy, "retain": {"proxy_classes": (2,)}}
    job = make_job(tmp_path, **wanted)
    ids = tuple(str(12 * k + i) for k in (0, 1, 3) for i in range(2))
    write_spec(job, **wanted, dataset=job.read_spec().dataset.model_copy(update={"held_out_ids": ids}))
    monkeypatch.setattr(unlearn, "make_run", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(BadInput, match="expected held-out images of every class, found none of diagonal"):
        in_process(job)


def test_more_sampler_steps_than_a_diffusion_has_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = i2i_policy(Check(verifier="integrity"))
    policy = policy.model_copy(update={"sampling": policy.sampling.model_copy(update={"steps": 1000})})
    params = params_of("encoder_l2", "i2i_diffusion")
    job = make_job(tmp_path, family="i2i_diffusion", method="encoder_l2", params=params, policy=policy)
    (job.base / "scheduler_config.json").write_text(json.dumps({"num_train_timesteps": 50}))
    write_spec(job, family="i2i_diffusion", method="encoder_l2", params=params, policy=policy)
    monkeypatch.setattr(unlearn, "make_run", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(BadInput, match="expected at most 50 sampler steps, found 1000"):
        in_process(job)
