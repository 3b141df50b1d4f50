"""Two terms in one update: alpha is of the forgotten one alone, and each is a mean over its own kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of
from worker.engine import registry
from worker.engine.batch import Batch, Part
from worker.engine.composite import Composite

METHODS = [pair for pair in PAIRS if issubclass(registry.methods()[pair[0]], Composite)]
every = pytest.mark.parametrize(("name", "family"), METHODS, ids=[f"{m}-{f}" for m, f in METHODS])


def job_method(root: Path, name: str, family: str, **params: object) -> Any:
    return begin(make_job(root, method=name, family=family, params=params_of(name, family) | params))


def parts_of(method: Any, iteration: int) -> list[Part]:
    """What a step descends, without stepping."""
    seen: list[Part] = []
    method.descend = lambda parts, iteration: seen.extend(parts)
    method.step(iteration)
    return seen


def gradients(method: Any, *parts: Part) -> list[Tensor]:
    method.run.gradients.together(parts)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in method.run.parameters]


def test_the_baselines_are_of_this_kind() -> None:
    assert {name for name, _ in METHODS} >= {"max_loss", "noisy_label", "random_encoder", "retain_label"}


@every
def test_alpha_scales_the_forgotten_term_alone(name: str, family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, name, family, alpha=0.25)
    retain, forget = parts_of(method, 5)
    assert (retain.scale, forget.scale) == (1.0, 0.25)
    of_retain, of_forget = gradients(method, retain), gradients(method, replace(forget, scale=1.0))
    assert any(bool(g.any()) for g in of_forget)
    for r, f, b in zip(of_retain, of_forget, gradients(method, retain, forget), strict=True):
        assert torch.allclose(b, r + 0.25 * f, atol=1e-6)


@every
def test_without_alpha_no_forgotten_image_is_looked_at(name: str, family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, name, family, alpha=0.0)
    dealt: list[str] = []
    deal = method.run.batch
    method.run.batch = lambda stream, *args, **options: dealt.append(stream.name) or deal(stream, *args, **options)
    method.step(0)
    assert dealt == ["retain"]


@every
def test_rows_that_come_twice_change_nothing(name: str, family: str, tmp_path: Path) -> None:
    """So a batch with more of one kind does not rescale alpha."""
    method = job_method(tmp_path, name, family)
    for part in parts_of(method, 0):
        b = part.batch
        draw = type(b.draw)({key: torch.cat([t, t]) for key, t in b.draw.tensors.items()})
        twice = Batch(torch.cat([b.x_BCHW] * 2), torch.cat([b.y_B] * 2), draw, torch.cat([b.index_B] * 2), 2 * b.total)
        once = gradients(method, part)
        pairs = zip(once, gradients(method, replace(part, batch=twice)), strict=True)
        assert all(torch.allclose(a, c, rtol=1e-4, atol=1e-6) for a, c in pairs)


@every
def test_the_forget_batch_has_a_size_of_its_own(name: str, family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, name, family, forget_batch_size=3)
    assert [part.batch.total for part in parts_of(method, 0)] == [8, 3]
    assert parts_of(job_method(tmp_path / "same", name, family), 0)[1].batch.total == 8


@every
def test_a_forgotten_image_has_a_gradient_and_its_term_pulls_at_no_retained_one(name: str, family: str, tmp_path: Path) -> None:
    """The published code has it the other way round, for two of them."""
    method = job_method(tmp_path, name, family)
    retained, forgotten = parts_of(method, 0)
    assert set(retained.batch.index_B.tolist()) <= set(method.run.retain.indices_N.tolist())
    assert set(forgotten.batch.index_B.tolist()) <= set(method.run.forget.indices_N.tolist())
    for i in range(len(forgotten.batch.y_B)):
        alone = replace(forgotten, batch=forgotten.batch.part(slice(i, i + 1)))
        assert any(bool(g.any()) for g in gradients(method, alone))
