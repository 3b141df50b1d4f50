"""What every method must keep, whichever it is and on whichever family: both are under test the moment their files exist."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.worker.engine.unlearning_job import ONE_RANK, PAIRS, begin, make_job, params_of
from worker.contract import JobDirectory
from worker.engine import checkpoint, intake, loop, registry
from worker.engine.checkpoint import Cadence
from worker.engine.data import load_dataset
from worker.engine.errors import BadInput, Diverged
from worker.engine.events import Events
from worker.engine.method import Params
from worker.engine.unlearn import Work, make_run

METHODS = sorted(registry.methods())
ON_CLASSIFIERS = [name for name, family in PAIRS if family == "classifier"]
MASKED = {"sfron": {"gamma": 3.0, "optimizer": "dual"}, "salun": {"ratio": 0.2}}
"""Methods whose `mask` keeps weights out of a step, and parameters under which it keeps out many."""

MODES: Mapping[str, list[dict[str, object]]] = {
    "esd": [{"inputs": "generated"}],
    "sfron": [{"forget_loss": "ascent"}],
}
"""What else a method's parameters are read in, beside its defaults."""

pair = pytest.mark.parametrize(("name", "family"), PAIRS, ids=[f"{m}-{f}" for m, f in PAIRS])


def weights_of(method: Any) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in method.run.family.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def looped(method: Any, root: Path, iterations: int, *, every: int = 10_000) -> loop.Outcome:
    settings = loop.Loop(
        module=method.run.family.module,
        ranks=ONE_RANK,
        events=Events(root / "events.jsonl", "test", speaks=False),
        steps=root / "steps",
        key="key",
        cadence=Cadence(iterations=every, seconds=math.inf),
        stop_asked=lambda: False,
        check=method.run.check,
    )
    return loop.run(settings, method, iterations)


# ------------------------------------------------------------------------------------------------------------ every method


@pytest.mark.parametrize("name", METHODS)
def test_it_declares_what_the_catalogue_prints(name: str) -> None:
    method = registry.methods()[name]
    assert method.name == name
    assert method.title
    assert method.paper
    assert set(method.families) & set(registry.families())
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
def test_every_preset_is_valid_says_where_it_comes_from_and_is_for_families_of_the_method(name: str) -> None:
    method = registry.methods()[name]
    for preset, described in method.presets.items():
        assert described.source
        assert set(described.families) <= set(method.families)
        for family in described.families:
            params = intake.effective(method, family, {"preset": preset})
            assert params.preset == preset
            assert all(getattr(params, key) == value for key, value in described.params.items())


class Recorder:
    """Parameters that note which of their fields are read."""

    def __init__(self, params: Params, read: set[str]) -> None:
        self._params, self._read = params, read

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._params, name)


def read_in_a_run(job: JobDirectory) -> set[str]:
    """Fields of the job's parameters that a whole run of two iterations reads."""
    spec = job.read_spec()
    method, family = registry.methods()[spec.method], registry.families()[spec.family]
    read = {"preset"}  # by `intake.effective`, which makes the parameters: the test of presets above sees it at work
    params: Any = Recorder(intake.effective(method, spec.family, spec.params), read)
    loaded = family.load(job.base, labels=spec.labels, device=ONE_RANK.device)
    events = Events(job.events, "test", speaks=False)
    work = Work(spec, family, method, params)
    run = make_run(work, loaded, load_dataset(job, spec), ONE_RANK, events, cache=job.fishers)
    begun = method.begin(params, run)
    looped(begun, job.root, min(params.iterations, 2))
    begun.state_dict()
    return read


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_read_in_some_family_and_mode(name: str, tmp_path: Path) -> None:
    unread = set(registry.methods()[name].Params.model_fields)
    for family in (f for m, f in PAIRS if m == name):
        for i, mode in enumerate([{}, *MODES.get(name, [])]):
            job = make_job(tmp_path / f"{family}-{i}", method=name, family=family, params=params_of(name) | mode)
            unread -= read_in_a_run(job)
    assert not unread


# -------------------------------------------------------------------------------------------- every method on every family


@pair
def test_a_step_moves_the_trained_weights_alone_and_leaves_them_finite(name: str, family: str, tmp_path: Path) -> None:
    method: Any = begin(make_job(tmp_path, method=name, family=family))
    before = weights_of(method)
    named = method.run.family.module.named_parameters(remove_duplicate=False)  # weights that blocks share have several names
    trained = {n for n, p in named if p.requires_grad}
    others = [(p, p.detach().clone()) for p in frozen_parts(method.run.family)]
    method.step(0)
    after = weights_of(method)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert moved <= trained
    assert all(torch.equal(p, was) and p.grad is None for p, was in others)
    assert all(bool(torch.isfinite(t).all()) for t in after.values())


def frozen_parts(family: Any) -> Iterator[torch.Tensor]:
    """What else the family holds: an autoencoder, prompts as a text encoder left them."""
    for value in vars(family).values():
        inside = vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, nn.Module) else [value]
        for held in inside:
            if isinstance(held, nn.Module) and held is not family.module:
                yield from held.parameters()
            if isinstance(held, torch.Tensor):
                yield held


@pair
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str, family: str, tmp_path: Path) -> None:
    results = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        method = begin(make_job(tmp_path / folder, method=name, family=family, seed=seed))
        for i in range(2):
            method.step(i)
        results.append(weights_of(method))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pair
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name: str, family: str, tmp_path: Path) -> None:
    iterations = int(str(params_of(name)["iterations"]))
    whole = begin(make_job(tmp_path / "whole", method=name, family=family), prepare=False)
    looped(whole, tmp_path / "whole", iterations)

    broken = begin(make_job(tmp_path / "broken", method=name, family=family), prepare=False)
    looped(broken, tmp_path / "broken", iterations - 2, every=iterations - 3)
    assert checkpoint.newest(tmp_path / "broken" / "steps", "key") == iterations - 3  # one step behind the break

    resumed = begin(make_job(tmp_path / "fresh", method=name, family=family), prepare=False)
    outcome = looped(resumed, tmp_path / "broken", iterations)
    assert outcome.resumed_from == iterations - 3
    assert same(weights_of(whole), weights_of(resumed))


@pair
def test_a_diverging_run_stops_before_the_update(name: str, family: str, tmp_path: Path) -> None:
    method: Any = begin(make_job(tmp_path, method=name, family=family))
    with torch.no_grad():
        next(p for p in method.run.parameters)[0] = float("nan")
    before = weights_of(method)
    with pytest.raises(Diverged) as caught:
        method.step(3)
    assert caught.value.step == 3
    assert math.isnan(caught.value.loss)
    after = weights_of(method)
    assert all(torch.equal(before[n], after[n]) or bool(torch.isnan(before[n]).any()) for n in before)


@pytest.mark.parametrize("name", ON_CLASSIFIERS)
@pytest.mark.parametrize("batch_norm", ["train", "frozen"])
def test_running_statistics_move_if_and_only_if_they_are_asked_to(name: str, batch_norm: str, tmp_path: Path) -> None:
    params = params_of(name) | {"batch_norm": batch_norm}
    method: Any = begin(make_job(tmp_path, method=name, family="classifier", params=params))
    statistics = [b for n, b in method.run.family.module.named_buffers() if n.endswith(("running_mean", "running_var"))]
    before = [b.clone() for b in statistics]
    method.step(0)
    moved = [not torch.equal(a, b) for a, b in zip(before, statistics, strict=True)]
    assert before
    assert all(moved) if batch_norm == "train" else not any(moved)
    assert not any(layer.training for layer in method.run.batch_norms)


# --------------------------------------------------------------------------------------------------------- masked methods


masked = pytest.mark.parametrize(("name", "family"), [p for p in PAIRS if p[0] in MASKED])


def masked_job(root: Path, name: str, family: str) -> JobDirectory:
    return make_job(root, method=name, family=family, params=params_of(name) | MASKED[name])


@masked
def test_the_mask_changes_the_result(name: str, family: str, tmp_path: Path) -> None:
    results = []
    for folder in ("masked", "open"):
        method: Any = begin(masked_job(tmp_path / folder, name, family))
        if folder == "open":
            method.mask = [torch.ones_like(m) for m in method.mask]
        for i in range(2):
            method.step(i)
        results.append(weights_of(method))
    assert not same(*results)


@masked
def test_a_masked_step_moves_salient_weights_and_no_others(name: str, family: str, tmp_path: Path) -> None:
    method: Any = begin(masked_job(tmp_path, name, family))
    method.step(0)  # momentum has something to leak
    step = getattr(method, "forget_step", method.step)  # sfron repairs on all weights afterwards, and is meant to
    before = [p.detach().clone() for p in method.run.parameters]
    step(1)
    triples = list(zip(before, method.run.parameters, method.mask, strict=True))
    assert any(bool((~m).any()) for m in method.mask)
    assert all(torch.equal(b[~m], p.detach()[~m]) for b, p, m in triples)
    assert any(not torch.equal(b[m], p.detach()[m]) for b, p, m in triples)


def test_a_method_is_not_run_on_a_family_that_it_does_not_list(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="for family 'classifier'"):
        begin(make_job(tmp_path, method="selective_amnesia", family="classifier"))
