"""What every method must keep, whichever it is: a method is under test the moment its file exists."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine import checkpoint, loop, registry
from worker.engine.checkpoint import Cadence
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged
from worker.engine.events import Events
from worker.engine.method import Method

METHODS = sorted(registry.methods())


def weights_of(method: Method) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in method.run.family.module.state_dict().items()}  # type: ignore[attr-defined]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def looped(method: Method, root: Path, iterations: int, *, every: int = 10_000) -> loop.Outcome:
    settings = loop.Loop(
        module=method.run.family.module,  # type: ignore[attr-defined]
        ranks=Ranks(0, 1, torch.device("cpu")),
        events=Events(root / "events.jsonl", "test", speaks=False),
        steps=root / "steps",
        key="key",
        cadence=Cadence(iterations=every, seconds=math.inf),
        stop_asked=lambda: False,
    )
    return loop.run(settings, method, iterations)


@pytest.mark.parametrize("name", METHODS)
def test_it_declares_what_the_catalogue_prints(name: str) -> None:
    method = registry.methods()[name]
    assert method.name == name
    assert method.title
    assert method.paper
    assert set(method.families) <= set(registry.families())
    assert method.Params().iterations >= 1
    assert method.Params.model_json_schema()["additionalProperties"] is False


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_parameter_and_one_out_of_range_are_refused(name: str) -> None:
    params = registry.methods()[name].Params
    with pytest.raises(ValidationError):
        params.model_validate({"no_such_parameter": 1})
    with pytest.raises(ValidationError):
        params.model_validate({"iterations": 0})
    with pytest.raises(ValidationError):
        params.model_validate({"learning_rate": float("nan")})


@pytest.mark.parametrize("name", METHODS)
def test_a_step_moves_the_weights_and_leaves_them_finite(name: str, tmp_path: Path) -> None:
    method = begin(make_job(tmp_path, method=name))
    before = weights_of(method)
    method.step(0)
    after = weights_of(method)
    assert not same(before, after)
    assert all(bool(torch.isfinite(t).all()) for t in after.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str, tmp_path: Path) -> None:
    results = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        method = begin(make_job(tmp_path / folder, method=name, seed=seed))
        for i in range(2):
            method.step(i)
        results.append(weights_of(method))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name: str, tmp_path: Path) -> None:
    iterations = int(str(params_of(name)["iterations"]))
    whole = begin(make_job(tmp_path / "whole", method=name))
    looped(whole, tmp_path / "whole", iterations)

    broken = begin(make_job(tmp_path / "broken", method=name))
    looped(broken, tmp_path / "broken", iterations - 2, every=iterations - 3)
    assert checkpoint.newest(tmp_path / "broken" / "steps", "key") == iterations - 3  # one step behind the break

    (tmp_path / "fresh").mkdir()
    resumed = begin(make_job(tmp_path / "fresh" / "job", method=name))
    outcome = looped(resumed, tmp_path / "broken", iterations)
    assert outcome.resumed_from == iterations - 3
    assert same(weights_of(whole), weights_of(resumed))


@pytest.mark.parametrize("name", METHODS)
def test_a_diverging_run_stops_before_the_update(name: str, tmp_path: Path) -> None:
    method = begin(make_job(tmp_path, method=name))
    module = method.run.family.module  # type: ignore[attr-defined]
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    before = weights_of(method)
    with pytest.raises(Diverged) as caught:
        method.step(3)
    assert caught.value.step == 3
    assert math.isnan(caught.value.loss)
    after = weights_of(method)
    assert all(torch.equal(before[n], after[n]) or bool(torch.isnan(before[n]).any()) for n in before)
