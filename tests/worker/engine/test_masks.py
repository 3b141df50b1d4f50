"""Saliency masks: the asked share of weights, those that the images to forget pull at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, memory_for
from worker.engine import masks
from worker.engine.errors import BadInput, Diverged, OutOfMemory
from worker.engine.run import Run


def run_of(root: Path, family: str = "classifier") -> Run:
    method: Any = begin(make_job(root, method="finetune", family=family))
    run: Run = method.run
    return run


def test_the_share_is_of_all_weights_together_and_by_absolute_gradient() -> None:
    # Six weights in two tensors; the largest half by absolute value is 9, 7 and 5.
    chosen = masks.top([torch.tensor([-9.0, 1.0, 2.0]), torch.tensor([[-7.0], [3.0], [5.0]])], 0.5)
    assert [m.tolist() for m in chosen] == [[True, False, False], [[True], [False], [True]]]


def test_a_share_of_one_takes_every_weight_that_has_a_gradient() -> None:
    assert masks.top([torch.tensor([1.0, -1e-20, 0.0])], 1.0)[0].tolist() == [True, True, False]


def test_ties_with_the_last_weight_are_in_and_zeros_never() -> None:
    assert masks.top([torch.tensor([2.0, 1.0, 1.0, 1.0])], 0.5)[0].tolist() == [True] * 4
    # Three of four are asked for and only one has a gradient: without the rule all zeros would tie with the third.
    assert masks.top([torch.tensor([0.0, 4.0, 0.0, 0.0])], 0.75)[0].tolist() == [False, True, False, False]


def test_a_share_below_one_weight_is_one_weight() -> None:
    assert masks.top([torch.tensor([1.0, 3.0, 2.0])], 0.01)[0].tolist() == [False, True, False]


def test_no_gradient_anywhere_is_an_error_and_not_an_empty_mask() -> None:
    with pytest.raises(BadInput, match="exactly zero"):
        masks.top([torch.zeros(5)], 0.5)


def test_the_gradient_is_that_of_the_mean_loss_in_batches_of_any_size(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    stream = run.forget  # 11 images: batches of 4 leave one of 3
    batch = run.plain(stream.indices_N, torch.Generator())
    mean = run.family.loss(batch.x_BCHW, batch.y_B, batch.draw).mean()
    whole = torch.autograd.grad(mean, run.parameters)
    for size in (4, 100):
        cut = masks.mean_gradient(run, stream, batch_size=size, samples=1_000)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(whole, cut, strict=True))


def test_a_part_of_the_images_gives_another_gradient_and_leaves_none_behind(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    few, all_ = (masks.mean_gradient(run, run.forget, batch_size=4, samples=n) for n in (3, 1_000))
    assert not torch.allclose(few[0], all_[0], rtol=1e-3)
    assert all(p.grad is None for p in run.parameters)


def test_batches_that_do_not_fit_are_halved_and_the_gradient_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path)
    whole = masks.mean_gradient(run, run.forget, batch_size=8, samples=1_000)
    seen = memory_for(3, run, monkeypatch)
    cut = masks.mean_gradient(run, run.forget, batch_size=8, samples=1_000)
    assert seen == [2, 2, 2, 2, 2, 1]  # 8 -> 4 -> 2, and the last 3 of 11 by the size that fitted
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(whole, cut, strict=True))


def test_one_image_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    memory_for(0, run, monkeypatch)
    with pytest.raises(OutOfMemory, match="expected at least one to fit"):
        masks.mean_gradient(run, run.forget, batch_size=8, samples=8)


def test_a_gradient_that_is_not_finite_is_named_before_a_mask_is_made_of_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, "ddpm")
    with torch.no_grad():
        run.parameters[0].view(-1)[0] = float("inf")
    with pytest.raises(Diverged, match="not finite"):
        masks.mean_gradient(run, run.forget, batch_size=4, samples=8)
