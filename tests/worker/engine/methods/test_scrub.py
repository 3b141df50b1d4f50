"""SCRUB's alternation: away from the original where it must forget, for a while, and back to it everywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, params_of


def job_method(root: Path, family: str = "classifier", **params: object) -> Any:
    return begin(make_job(root, method="scrub", family=family, params=params_of("scrub") | params))


def forgotten_distance(method: Any) -> float:
    run = method.run
    batch = run.plain(run.forget.indices_N, torch.Generator().manual_seed(0))
    with torch.no_grad():
        distance_B = run.family.distance(batch.x_BCHW, batch.y_B, batch.draw, teacher=method.original, temperature=4.0)
    return float(distance_B.mean())


def test_the_first_iterations_begin_with_a_max_step_and_all_end_with_a_min_step(tmp_path: Path) -> None:
    method = job_method(tmp_path, max_iterations=2)
    seen: list[tuple[str, int]] = []
    method.max_step = lambda i: seen.append(("max", i))
    method.min_step = lambda i: seen.append(("min", i))
    for i in range(3):
        method.step(i)
    assert seen == [("max", 0), ("min", 0), ("max", 1), ("min", 1), ("min", 2)]


@pytest.mark.parametrize("family", ["classifier", "ddpm"])
def test_max_steps_drive_forgotten_answers_further_from_the_original(family: str, tmp_path: Path) -> None:
    ends = []
    for folder, max_iterations in (("with", 12), ("without", 0)):
        method = job_method(tmp_path / folder, family, max_iterations=max_iterations, iterations=12)
        for i in range(12):
            method.step(i)
        ends.append(forgotten_distance(method))
    assert ends[0] > 1.5 * ends[1]


def test_a_max_step_from_the_original_itself_has_no_direction(tmp_path: Path) -> None:
    # D(p ‖ q) is least at q = p: its gradient there is zero, up to rounding.
    method = job_method(tmp_path, weight_decay=0.0, algorithm="sgd", learning_rate=0.01)
    before = torch.cat([p.detach().flatten().clone() for p in method.run.parameters])
    method.max_step(0)
    after = torch.cat([p.detach().flatten() for p in method.run.parameters])
    assert float((after - before).norm()) < 1e-6 * float(before.norm())


def test_the_two_terms_of_a_min_step_have_their_weights(tmp_path: Path) -> None:
    method = job_method(tmp_path, gamma=0.5, alpha=0.25)
    seen: list[Any] = []
    method.descend = lambda parts, iteration: seen.extend(parts)
    method.min_step(0)
    assert [part.scale for part in seen] == [0.5, 0.25]
    assert seen[0].batch is seen[1].batch
    assert 1 not in seen[0].batch.y_B.tolist()
