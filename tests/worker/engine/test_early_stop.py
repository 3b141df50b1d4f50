"""Looks during the loop: they end it when enough is forgotten, change nothing else, and see nothing of verification's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.worker.engine import unlearning_job as uj
from tests.worker.engine import verification_job as vj
from worker.contract import Check, JobDirectory, JudgePolicy, JudgeRecord, Manifest, Policy, Sampling
from worker.engine import early_stop, loop, registry, unlearn
from worker.engine.checkpoint import Cadence
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput, Diverged, JudgeUnfit, Stopped
from worker.engine.events import Events
from worker.engine.family import EARLY_STOP
from worker.engine.files import entries
from worker.engine.intake import effective
from worker.engine.judge_networks import WATCHER
from worker.engine.method import Params
from worker.engine.sampling import sample_seed

POLICY = Policy(
    name="none",
    sampling=Sampling(steps=2, guidance_scale=1.0, batch_size=4),
    judge=JudgePolicy(epochs=1, min_accuracy=0),
    checks=(Check(verifier="integrity"),),
)
EASY = {"early_stop_every": 2, "early_stop_samples": 4, "early_stop_rate": 0.999, "early_stop_drop": 0.99}
"""Whatever the model answers is enough, unless all of the forgotten class is recognised."""


class Blind:
    """A judge that says of every image that it shows class 0, which nobody forgets here."""

    def look(self, images_NCHW: Tensor) -> Any:
        return type("Judged", (), {"predicted_N": torch.zeros(len(images_NCHW), dtype=torch.int64)})()


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stop.Look, "_taught", lambda *_: Blind())


def job_of(root: Path, family: str = "ddpm", method: str = "gradient_ascent", **more: Any) -> JobDirectory:
    changes = {k: more.pop(k) for k in ("forget_classes", "forget_samples", "verification_seed", "policy") if k in more}
    params = {"iterations": 6, "batch_size": 8, "precision": "fp32", **({} if method == "retrain" else {"learning_rate": 1e-4})}
    return uj.make_job(root, family=family, method=method, params=params | more, **{"policy": POLICY, **changes})


def run(job: JobDirectory, stop_asked: Any = lambda: False) -> Manifest:
    return unlearn.run(job, uj.ONE_RANK, cadence=Cadence(iterations=1, seconds=0), stop_asked=stop_asked)


def looks(job: JobDirectory) -> list[dict[str, Any]]:
    notes = [json.loads(line).get("values", {}) for line in job.events.read_text().splitlines()]
    return [values for values in notes if "look_after_iteration" in values]


# ---------------------------------------------------------------------------------------------------------------- the loop


class Counting:
    """A method that counts its steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def prepare(self) -> None: ...

    def step(self, iteration: int) -> None:
        self.steps.append(iteration)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def looped(tmp_path: Path, every: int, enough_after: int, iterations: int = 10) -> tuple[loop.Outcome, list[int], list[int]]:
    asked: list[int] = []

    def enough(completed: int) -> bool:
        asked.append(completed)
        return completed >= enough_after

    events = Events(tmp_path / "events.jsonl", "test", speaks=False)
    ranks = Ranks(0, 1, torch.device("cpu"))
    plain = loop.Loop(nn.Linear(1, 1), ranks, events, tmp_path, "key", Cadence(100, 1e9), lambda: False, lambda: None)
    method: Any = Counting()
    outcome = loop.run(dataclasses.replace(plain, look_every=every, enough=enough), method, iterations)
    return outcome, asked, method.steps


def test_the_loop_ends_at_the_first_look_that_finds_enough(tmp_path: Path) -> None:
    outcome, asked, steps = looped(tmp_path, every=3, enough_after=5)
    assert asked == [3, 6]
    assert steps == list(range(6))
    assert (outcome.iterations_completed, outcome.stopped_early) == (6, True)


def test_no_look_is_taken_after_the_last_iteration_and_none_where_none_is_asked_for(tmp_path: Path) -> None:
    outcome, asked, _ = looped(tmp_path, every=5, enough_after=99)
    assert asked == [5]
    assert (outcome.iterations_completed, outcome.stopped_early) == (10, False)
    outcome, asked, _ = looped(tmp_path, every=0, enough_after=0)
    assert asked == []
    assert (outcome.iterations_completed, outcome.stopped_early) == (10, False)


# ----------------------------------------------------------------------------------------------------------- what is enough


def test_what_a_look_finds() -> None:
    asked = torch.tensor([0] * 59 + [1] * 59 + [2] * 10)
    before = torch.ones(128, dtype=torch.bool)
    now = before.clone()
    now[:59] = False
    now[59:117] = False  # of class 1 a single image is still recognised
    now[-1] = False
    seen = early_stop.compared(asked, before, now, (0, 1))
    # 1 of 59: the p at which at most one hit has a chance of 5 %; the worse class counts
    assert 59 * seen.upper * (1 - seen.upper) ** 58 + (1 - seen.upper) ** 59 == pytest.approx(0.05)
    assert seen.drop == pytest.approx(0.1)
    now[117] = False
    assert early_stop.compared(asked, before, now, (0, 1)).upper == pytest.approx(1 - 0.05 ** (1 / 59))  # rule of three
    assert early_stop.compared(asked, ~now, before, (0, 1)).drop < 0  # more than before is no loss


# ------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("family", ["classifier", "ddpm", "dit", "stable_diffusion"])
def test_an_early_stop_gives_the_bits_of_a_run_of_so_many_iterations(family: str, tmp_path: Path, blind: None) -> None:
    early, short = job_of(tmp_path / "early", family, **EASY), job_of(tmp_path / "short", family, iterations=2)
    manifest = run(early)
    assert (manifest.stopped_early_at, manifest.iterations_completed, manifest.iterations_total) == (2, 2, 6)
    assert manifest.complete
    assert Manifest.model_validate_json(early.manifest.read_bytes()) == manifest
    assert run(short).stopped_early_at is None
    assert entries(early.out) == entries(short.out)
    assert [(look["look_after_iteration"], look["enough"]) for look in looks(early)] == [(2, True)]


@pytest.mark.parametrize("family", ["classifier", "ddpm"])
def test_looks_that_never_find_enough_change_no_bit(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_stop, "compared", lambda *_: early_stop.Seen(upper=1.0, drop=0.0))
    watched, plain = job_of(tmp_path / "watched", family, **EASY), job_of(tmp_path / "plain", family)
    manifest = run(watched)
    assert (manifest.stopped_early_at, manifest.iterations_completed) == (None, 6)
    assert [look["look_after_iteration"] for look in looks(watched)] == [2, 4]
    run(plain)
    assert not looks(plain)
    assert not plain.judges.exists()
    assert entries(watched.out) == entries(plain.out)


def test_a_resumed_run_stops_where_an_unbroken_one_does(tmp_path: Path, blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look finds enough; what the run began with is asked of the weights that it began with, not of resumed ones."""
    befores: list[list[bool]] = []
    real = early_stop.compared

    def second(asked_N: Tensor, before_N: Tensor, now_N: Tensor, forgotten: Sequence[int]) -> early_stop.Seen:
        befores.append(before_N.tolist())
        return dataclasses.replace(real(asked_N, before_N, now_N, forgotten), drop=1.0 if len(befores) in (1, 3) else 0.0)

    monkeypatch.setattr(early_stop, "compared", second)
    whole, broken = job_of(tmp_path / "whole", **EASY), job_of(tmp_path / "broken", **EASY)
    assert run(whole).stopped_early_at == 4
    steps = iter([False, False, False, True])
    with pytest.raises(Stopped):
        run(broken, stop_asked=lambda: next(steps))
    manifest = run(broken)
    assert (manifest.resumed_from_iteration, manifest.stopped_early_at) == (3, 4)
    assert entries(broken.out) == entries(whole.out)
    assert len(befores) == 4
    assert befores[3] == befores[0]


def test_an_answer_that_is_no_number_is_never_enough(tmp_path: Path, blind: None, monkeypatch: pytest.MonkeyPatch) -> None:
    family = registry.families()["ddpm"]
    sample, calls = family.sample, []  # type: ignore[attr-defined]  # var-annotated

    def broken(self: Any, y_B: Tensor, seeds: Sequence[int], **more: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise Diverged("NaN", step=0, loss=float("nan"))
        return sample(self, y_B, seeds, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(family, "sample", broken)
    assert run(job_of(tmp_path / "later", **EASY)).stopped_early_at is None
    with pytest.raises(BadInput, match="before the first iteration"):
        run(job_of(tmp_path / "first", **EASY))


def test_two_ranks_stop_after_the_same_iteration(tmp_path: Path) -> None:
    job = job_of(tmp_path, **{**EASY, "early_stop_every": 3})
    spec = job.read_spec()
    job.spec.write_text(spec.model_copy(update={"ranks": 2}).model_dump_json())
    output, _ = uj.start_engine(job, ranks=2).communicate(timeout=300)
    assert job.manifest.exists(), output
    manifest = Manifest.model_validate_json(job.manifest.read_bytes())
    (found,) = looks(job) if manifest.stopped_early_at else (looks(job)[0],)
    assert (manifest.stopped_early_at == 3) == found["enough"]
    assert manifest.complete


# -------------------------------------------------------------------------------------------------------- what it may look at


def test_the_judge_of_looks_is_its_own_and_sees_nothing_that_is_held_out(tmp_path: Path) -> None:
    job = vj.make_job(tmp_path, vj.patterns())
    data = load_dataset(job, job.read_spec())
    part = early_stop.training_part(data, seed=1)
    held = {name for name, is_held in zip(data.ids, data.held_out_N.tolist(), strict=True) if is_held}
    assert not held & set(part.ids)
    assert len(part.ids) == vj.K * vj.TRAIN
    assert part.held_out_counts == (vj.TRAIN // 10,) * vj.K
    assert torch.equal(part.images_NCHW, data.images_NCHW[~data.held_out_N])


def test_a_run_with_looks_leaves_one_judge_that_no_verification_takes(tmp_path: Path) -> None:
    job = job_of(tmp_path, **EASY)
    run(job)
    (folder,) = job.judges.iterdir()
    record = JudgeRecord.model_validate_json((folder / "judge.json").read_bytes())
    assert record.name == WATCHER.recipe
    assert record.held_out_n == 4 * 2  # two of eleven training images of each class


def test_an_unfit_judge_of_looks_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"judge": JudgePolicy(epochs=1, min_accuracy=1.0)})
    with pytest.raises(JudgeUnfit, match="early stops"):
        run(job_of(tmp_path, policy=policy, **EASY))


def test_noise_of_looks_has_nothing_to_do_with_the_verification_seed(
    tmp_path: Path, blind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = registry.families()["ddpm"]
    sample, seeds_of = family.sample, list[tuple[int, ...]]()  # type: ignore[attr-defined]

    def spy(self: Any, y_B: Tensor, seeds: Sequence[int], **more: Any) -> Tensor:
        seeds_of.append(tuple(seeds))
        return sample(self, y_B, seeds, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(family, "sample", spy)
    for verification_seed in (11, 12):  # 11 is the unlearner's seed, too
        run(job_of(tmp_path / str(verification_seed), verification_seed=verification_seed, **EASY))
    assert len(set(seeds_of)) == 1  # every look of both runs
    assert not set(seeds_of[0]) & {sample_seed(seed, k, i) for seed in (11, 12) for k in range(4) for i in range(100)}


def test_a_classifier_is_asked_about_training_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, "classifier", **EASY)
    data = load_dataset(job, job.read_spec())
    shown: list[Tensor] = []
    family = registry.families()["classifier"]
    logits = family.logits  # type: ignore[attr-defined]
    monkeypatch.setattr(family, "logits", lambda self, images: shown.append(images) or logits(self, images))
    run(job)
    assert len(shown) >= 2
    held = {bytes(image.numpy().tobytes()) for image in data.images_NCHW[data.held_out_N]}
    assert not held & {image.numpy().tobytes() for images in shown for image in images}
    assert len(shown[0]) == 4 + 3 * 2  # four of the forgotten class, as many, rounded up, of the three others


# --------------------------------------------------------------------------------------------------- what is refused, recorded


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"forget_classes": (), "forget_samples": ("1", "2")}, "single images"),
        ({"method": "retrain"}, "would not be independent"),
        ({"sharding": "sharded"}, "'sharded'"),
        ({"early_stop_rate": 0.01}, "cannot show a rate of 0.01"),
        ({"family": "classifier", "early_stop_samples": 100, "early_stop_rate": 0.05}, "11 training images of 'columns'"),
    ],
)
def test_looks_that_could_not_be_taken_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        run(job_of(tmp_path, **{**EASY, **changes}))


def test_models_that_complete_images_have_no_looks() -> None:
    assert {name for name in Params.model_fields if name.startswith("early_stop")} == EARLY_STOP
    for name, family in registry.families().items():
        assert (family.ignores >= EARLY_STOP) == (family.kind == "i2i"), name
    with pytest.raises(BadInput, match="early_stop_every: has no effect on family mae"):
        effective(registry.methods()["encoder_l2"], "mae", {"early_stop_every": 5})


def test_without_looks_is_the_default_of_every_method() -> None:
    assert all(method.Params().early_stop_every == 0 for method in registry.methods().values())


def test_a_manifest_says_where_it_stopped_and_lies_about_it_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "classifier", **EASY)
    told = run(job).model_dump(mode="json")
    assert not Manifest.model_validate({**told, "iterations_completed": 1}).complete
    unfinished = {k: v for k, v in told.items() if k != "stopped_early_at"}
    assert not Manifest.model_validate(unfinished).complete  # two of six, and nobody decided it
    for lie in ({"stopped_early_at": 3}, {"stopped_early_at": 6}, {"effective_params": {"early_stop_every": 0}}):
        with pytest.raises(ValidationError, match="early stop"):
            Manifest.model_validate({**told, **lie})
