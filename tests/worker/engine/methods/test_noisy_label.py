"""Noisy label: what is hidden of a forgotten image is to be completed as noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of
from worker.engine.distributed import Ranks

every = pytest.mark.parametrize("family", [family for name, family in PAIRS if name == "noisy_label"])


def job_method(root: Path, family: str, **params: object) -> Any:
    return begin(make_job(root, method="noisy_label", family=family, params=params_of("noisy_label", family) | params))


def mean_over(batch: Any, loss: Any) -> float:
    """One image after the other."""
    rows = [batch.part(slice(i, i + 1)) for i in range(len(batch.y_B))]
    with torch.no_grad():
        return sum(float(loss(b.x_BCHW, b.y_B, b.draw)) for b in rows) / len(rows)


@every
def test_the_objective_is_the_retained_loss_and_alpha_times_the_loss_to_noise(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, alpha=0.4, forget_batch_size=5)
    run, found = method.run, []
    method.descend = lambda parts, iteration: found.append(float(run.gradients.together(parts)))
    method.step(3)
    retained = mean_over(run.batch(run.retain, 3, 8, label_drop=0.5), run.family.loss)
    forgotten = mean_over(method.forget_batch(3), run.family.loss_to_noise)
    assert found == [pytest.approx(retained + 0.4 * forgotten, rel=1e-5)]


@every
def test_noise_is_new_at_every_iteration_and_the_same_again_for_the_same(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    family_, losses = method.run.family, []
    for iteration in (0, 0, 1):
        batch = method.forget_batch(0)
        batch.draw.tensors.update(
            {k: t for k, t in method.forget_batch(iteration).draw.tensors.items() if k in ("noise", "eps")}
        )
        losses.append(mean_over(batch, family_.loss_to_noise))
    assert losses[0] == losses[1] != losses[2]


@every
def test_a_rank_has_its_rows_of_the_noise_of_the_whole_batch(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, forget_batch_size=5)
    whole = method.forget_batch(2).draw
    method.run.ranks = Ranks(1, 2, torch.device("cpu"))
    part = method.forget_batch(2).draw
    assert all(torch.equal(whole.tensors[key][2:], part.tensors[key]) for key in whole.tensors)


def test_forgotten_images_come_nearer_to_noise_than_they_were(tmp_path: Path) -> None:
    method = job_method(tmp_path, "mae", iterations=30, learning_rate=1e-3, alpha=1.0)
    batch, loss = method.forget_batch(999), method.run.family.loss_to_noise
    before = mean_over(batch, loss)
    for i in range(30):
        method.step(i)
    assert mean_over(batch, loss) < 0.9 * before
