"""Step checkpoints: what comes back is what went in, and what is torn or foreign does not come back."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.worker.engine.unlearning_job import make_job, make_spec
from worker.engine.checkpoint import Cadence, key_of, load, newest, save

STATE = {
    "weights": {"a.b": torch.tensor([1.5, -0.0, 1e-40])},
    "method": {"mask": [torch.tensor([True, False])], "state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1, "none": None},
}


def test_a_state_comes_back_with_its_types_and_bits(tmp_path: Path) -> None:
    save(tmp_path, 7, STATE, "key")
    state = load(tmp_path, 7)
    assert torch.equal(state["weights"]["a.b"].view(torch.int32), STATE["weights"]["a.b"].view(torch.int32))
    assert state["method"]["mask"][0].dtype == torch.bool
    assert list(state["method"]["state"]) == [0]  # an int, not "0": optimizers look their parameters up by number
    assert (state["method"]["lr"], state["method"]["none"]) == (0.1, None)


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    for i in (1, 2, 10):
        save(tmp_path, i, STATE, "key")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000010"]
    assert newest(tmp_path, "key") == 10


def test_a_checkpoint_for_other_work_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 3, STATE, "key")
    assert newest(tmp_path, "another") is None
    assert newest(tmp_path / "nowhere", "key") is None


def test_a_torn_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for damage in ("tensors", "json", "missing"):
        folder = tmp_path / damage
        save(folder, 1, STATE, "key")
        save(folder, 2, STATE, "key")
        tensors, document = folder / "step-000002" / "state.safetensors", folder / "step-000002" / "state.json"
        if damage == "tensors":
            tensors.write_bytes(tensors.read_bytes()[:-1])
        elif damage == "json":
            document.write_bytes(document.read_bytes()[:-1])
        else:
            tensors.unlink()
        assert newest(folder, "key") == 1


def test_the_key_follows_everything_that_decides_the_result(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    keys = {key_of(make_spec(job, **changes)) for changes in ({}, {"seed": 99}, {"forget_classes": (2,)}, {"params": {}})}
    assert len(keys) == 4
    assert key_of(make_spec(job)) == key_of(make_spec(job))


def test_it_is_time_after_ten_iterations_or_two_seconds_but_never_for_more_than_a_twentieth() -> None:
    now = [0.0]
    cadence = Cadence(iterations=10, seconds=2.0, clock=lambda: now[0])
    assert not cadence.due(0)
    assert not cadence.due(9)
    assert cadence.due(10)
    now[0] = 2.0
    assert cadence.due(0)  # a long preparation is worth keeping
    cadence.wrote(5, seconds=1.0)
    now[0] = 2.0 + 19.0
    assert not cadence.due(50)  # 1 s of writing in 19 s is more than 5 %
    now[0] = 2.0 + 20.0
    assert cadence.due(50)
    assert not cadence.due(5)  # already written
