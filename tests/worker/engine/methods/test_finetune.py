"""Fine-tuning's own rules: what is forgotten is never looked at, and the l1 penalty falls to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine.methods.finetune import add_l1


def job_method(root: Path, **params: object) -> Any:
    return begin(make_job(root, method="finetune", params=params_of("finetune") | params))


def test_the_penalty_s_gradient_is_alpha_times_the_sign() -> None:
    gradients = [torch.tensor([1.0, 1.0, 1.0])]
    add_l1(gradients, [nn.Parameter(torch.tensor([-3.0, 0.0, 0.2]))], 0.5)
    assert gradients[0].tolist() == [0.5, 1.0, 1.5]  # 1 - .5, 1 + 0, 1 + .5


def test_alpha_falls_linearly_to_nothing(tmp_path: Path) -> None:
    method = job_method(tmp_path, l1=0.8, iterations=4)
    alphas = []

    def see(parts: object, iteration: int, *, edit: Any = None) -> None:
        gradients = [torch.zeros_like(p) for p in method.run.parameters]
        edit(gradients)
        alphas.append(round(max(float(g.max()) for g in gradients), 6))

    method.descend = see
    for i in range(4):
        method.step(i)
    assert alphas == [0.8, 0.6, 0.4, 0.2]


def test_the_penalty_makes_weights_smaller(tmp_path: Path) -> None:
    sizes = []
    for folder, l1 in (("plain", 0.0), ("sparse", 0.1)):
        method = job_method(tmp_path / folder, l1=l1, iterations=20, learning_rate=1e-3)
        for i in range(10):
            method.step(i)
        sizes.append(float(sum(p.detach().abs().sum() for p in method.run.parameters)))
    assert sizes[1] < 0.95 * sizes[0]


def test_only_retained_images_are_trained_on(tmp_path: Path) -> None:
    method = job_method(tmp_path)
    dealt: list[str] = []
    deal = method.run.batch
    method.run.batch = lambda stream, *args, **options: dealt.append(stream.name) or deal(stream, *args, **options)
    method.step(0)
    assert dealt == ["retain"]
