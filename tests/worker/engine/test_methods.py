"""What every method must keep, whichever it is and on whichever family: both are under test the moment their files exist."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.worker.engine.unlearning_job import ITERATIONS, ONE_RANK, PAIRS, RUNS, begin, make_job, params_of
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


class Subject:
    """A job of one method on one family, run for two iterations under one set of parameters after another."""

    def __init__(self, root: Path, name: str, family: str) -> None:
        self.job, self.family = make_job(root, method=name, family=family), family
        self.method = registry.methods()[name]
        self.spec = self.job.read_spec()
        self.loaded = registry.families()[family].load(self.job.base, labels=self.spec.labels, device=ONE_RANK.device)
        self.start = {n: t.clone() for n, t in self.loaded.module.state_dict().items()}
        self.dataset = load_dataset(self.job, self.spec)

    def params(self, given: Mapping[str, Any]) -> Params:
        """Short-run parameters without a preset, those left out that `given` takes the effect from. Raises: BadInput."""
        short = {"preset": None, **params_of(self.method.name, self.family)}
        idle = intake.without_effect(self.method, self.family, self.method.Params.model_validate(short | given))
        given = {key: value for key, value in short.items() if key not in idle} | given
        return intake.effective(self.method, self.family, given)

    def result(self, params: Any) -> dict[str, torch.Tensor] | None:
        """The weights after two iterations, or more; None where the method refuses such parameters."""
        self.loaded.module.load_state_dict(self.start)
        work = Work(self.spec, type(self.loaded), self.method, params)
        events = Events(self.job.events, "test", speaks=False)
        try:
            run = make_run(work, self.loaded, self.dataset, ONE_RANK, events, cache=self.job.fishers)
            method: Any = self.method(params, run)
            looped(method, self.job.root, min(params.iterations, REACH.get(self.method.name, 2)))
        except BadInput:
            return None
        return weights_of(method)


REACH = {"encoder_l2_epsilon": ITERATIONS}
"""Iterations that it takes to see every phase, of methods that have some."""

OTHERS: Mapping[str, tuple[Any, ...]] = {
    "algorithm": ("sgd", "adamw"), "alpha": (1.0,), "alpha_decay": ("constant",), "alpha_forget": (3.0,), "augment": ("flip",),
    "batch_norm": ("train",), "batch_size": (4,), "clip": (1e-3,), "decay": ("linear",), "epsilon_ratio": (1.0,),
    "eta": (3.0,), "ewc": (1e6,),
    "fisher": ("per_sample", "batch"), "fisher_batch_size": (2,), "fisher_clip": (1e-3,), "fisher_samples": (4,),
    "forget_batch_size": (3,), "forget_clip": (1e-3,), "forget_every": (2,), "forget_label_drop": (1.0,),
    "forget_loss": ("ascent",),
    "forget_weight": (3.0,), "gamma": (3.0,), "guidance_scale": (1.0,), "inputs": ("generated",), "iterations": (1,),
    "l1": (1e-3,), "label_drop": (1.0,), "learning_rate": (3e-3,), "loss_ceiling": (1e-3,), "loss_scale": (100.0,),
    "max_iterations": (0,), "momentum": (0.5,), "noise_scope": ("hole",), "optimizer": ("shared",), "partners": (3,),
    "phase_one_rate": (3.0,), "phase_one_share": (0.4,), "phase_two_rate": (0.0, 9.0),
    "precision": ("bf16",), "ratio": (0.2,), "relabel": ("next",), "release_compat": (True,),
    "replay_guidance": (2.0,), "replay_per_class": (3,), "replay_steps": (3,), "replay_weight": (3.0,),
    "retain_weight": (3.0,), "saliency": ("share",), "saliency_samples": (4,), "scope": ("selfattn", "noxattn"),
    "share": (0.5,), "steps": (5,), "target": ("mean_embedding", "retain_neighbour"), "target_masks": (2,),
    "temperature": (2.0,),
    "weight_decay": (0.1,),
}  # fmt: skip
"""Values that are no default of any method: at least one of them must lead to another result."""

HOW = {"replay_batch_size", "saliency_batch_size", "sharding"}
"""How the work is cut up, which must not change the result of one rank: these must be read, no more."""

WHEN = {"early_stop_every", "early_stop_samples", "early_stop_rate", "early_stop_drop"}
"""When the loop stops, which is no method's business; see `test_early_stop`."""

IMPOSSIBLE = {"augment", "release_compat", "target_masks"}
"""What some families cannot do, so that it is refused: latents are not mirrored, targets that depend on time are not kept,
and where the decoder reads nothing of the encoder's, nothing of the kind is trained."""


def modes(subject: Subject, key: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Parameters beside which a parameter has an effect, and others beside which it has none."""
    fields = subject.method.Params.model_fields
    kind, idle = type(subject.loaded).kind, key in type(subject.loaded).ignores
    read: list[dict[str, Any]] = [{}]
    unread: list[dict[str, Any]] = []
    for name, values in subject.method.Params.conditions.get(key, {}).items():
        if name == "kind":
            idle = idle or kind not in values
            continue
        read = [{name: v} for v in values]
        unread = [{name: v} for v in get_args(fields[name].annotation) if v not in values]
    return ([], [{}]) if idle else (read, unread)


@pair
def test_a_parameter_changes_the_result_or_is_refused(name: str, family: str, tmp_path: Path) -> None:
    subject = Subject(tmp_path, name, family)
    results: dict[str, Any] = {}

    def changed(mode: dict[str, Any], update: dict[str, Any]) -> bool:
        params = subject.params(mode)
        if str(mode) not in results:
            results[str(mode)] = subject.result(params)
            assert results[str(mode)] is not None
        result = subject.result(params.model_copy(update=update))
        return result is None or not same(result, results[str(mode)])

    for key in subject.method.Params.model_fields.keys() - {"preset"} - HOW - WHEN:
        having, lacking = modes(subject, key)
        for mode in having:
            assert any(changed(mode, {key: value}) for value in OTHERS[key]), (key, mode)
        for mode in lacking:
            for value in OTHERS[key]:
                with pytest.raises(BadInput, match=f"{key}: has "):
                    subject.params({**mode, key: value})
                assert key in IMPOSSIBLE or not changed(mode, {key: value}), (key, mode)


@pair
def test_a_parameter_of_how_the_work_is_cut_up_is_read(name: str, family: str, tmp_path: Path) -> None:
    subject, read = Subject(tmp_path, name, family), set[str]()
    subject.result(Recorder(subject.params({}), read))
    assert read >= HOW & subject.method.Params.model_fields.keys()


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


@pytest.mark.parametrize("asked", RUNS)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(asked: str, tmp_path: Path) -> None:
    whole = begin(make_job(tmp_path / "whole", **RUNS[asked]), prepare=False)
    looped(whole, tmp_path / "whole", ITERATIONS)

    broken = begin(make_job(tmp_path / "broken", **RUNS[asked]), prepare=False)
    looped(broken, tmp_path / "broken", ITERATIONS - 2, every=ITERATIONS - 3)
    assert checkpoint.newest(tmp_path / "broken" / "steps", "key") == ITERATIONS - 3  # one step behind the break

    resumed = begin(make_job(tmp_path / "fresh", **RUNS[asked]), prepare=False)
    outcome = looped(resumed, tmp_path / "broken", ITERATIONS)
    assert outcome.resumed_from == ITERATIONS - 3
    assert same(weights_of(whole), weights_of(resumed))


PRESETS = [(m, f, p) for m, f in PAIRS for p, preset in registry.methods()[m].presets.items() if f in preset.families]
AT_MOST = {
    "iterations": 3, "batch_size": 4, "fisher_samples": 8, "fisher_batch_size": 4, "saliency_samples": 8, "steps": 5,
    "replay_per_class": 2, "replay_steps": 3,
}  # fmt: skip
"""What makes a preset long, and how much of it is left for a test."""


@pytest.mark.parametrize(("name", "family", "preset"), PRESETS, ids=["-".join(p) for p in PRESETS])
def test_every_preset_runs(name: str, family: str, preset: str, tmp_path: Path) -> None:
    method = registry.methods()[name]
    whole = intake.recorded(method, family, intake.effective(method, family, {"preset": preset}))
    short = {key: min(int(str(whole[key])), most) for key, most in AT_MOST.items() if key in whole}
    single = method.presets[preset].units == ("sample",)
    forget = {"forget_classes": (), "forget_samples": ("1", "14", "27", "40")} if single else {}
    job = make_job(tmp_path, method=name, family=family, params={"preset": preset, **short}, **forget)
    begun = begin(job, prepare=False)
    before = weights_of(begun)
    looped(begun, tmp_path, 2)
    after = weights_of(begun)
    assert not same(before, after)
    assert all(bool(torch.isfinite(t).all()) for t in after.values())


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
    assert not any(layer.training for layer in method.run.gradients.batch_norms)


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
