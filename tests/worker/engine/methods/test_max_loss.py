"""Max loss: what is forgotten is ascended, what is retained descended, by the whole network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of

every = pytest.mark.parametrize("family", [family for name, family in PAIRS if name == "max_loss"])


def job_method(root: Path, family: str, **params: object) -> Any:
    return begin(make_job(root, method="max_loss", family=family, params=params_of("max_loss", family) | params))


def mean_loss(method: Any, batch: Any) -> float:
    """One image after the other."""
    rows = [batch.part(slice(i, i + 1)) for i in range(len(batch.y_B))]
    with torch.no_grad():
        return sum(float(method.run.family.loss(b.x_BCHW, b.y_B, b.draw)) for b in rows) / len(rows)


@every
def test_the_objective_is_the_retained_loss_less_alpha_times_the_forgotten_one(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, alpha=0.4, forget_batch_size=5)
    run, found = method.run, []
    method.descend = lambda parts, iteration: found.append(float(run.gradients.together(parts)))
    method.step(3)
    retained, forgotten = run.batch(run.retain, 3, 8, label_drop=0.5), run.batch(run.forget, 3, 5, label_drop=0.5)
    expected = mean_loss(method, retained) - 0.4 * mean_loss(method, forgotten)
    assert found == [pytest.approx(expected, rel=1e-5)]


def test_the_forgotten_loss_rises_and_the_retained_one_does_not(tmp_path: Path) -> None:
    method = job_method(tmp_path, "mae", iterations=30, learning_rate=1e-3, alpha=0.5)
    run = method.run
    forgotten = run.plain(run.forget.indices_N, torch.Generator().manual_seed(0))
    retained = run.plain(run.retain.indices_N, torch.Generator().manual_seed(0))
    before = mean_loss(method, forgotten), mean_loss(method, retained)
    for i in range(30):
        method.step(i)
    assert mean_loss(method, forgotten) > 1.05 * before[0]
    assert mean_loss(method, retained) < before[1]


@every
def test_both_halves_are_trained(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    module = method.run.family.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    method.step(0)
    moved = {module.half_of(name) for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved >= {"encoder", "decoder"}
