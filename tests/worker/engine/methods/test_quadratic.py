"""SFR-on where its arithmetic is known: on a quadratic retained loss a forget step passes a low-pass filter of k steps.

    theta_k - theta_r = (I - eta H)^k (0 - beta m u),   u the gradient of the forget objective, theta_r the retained minimum

Letters: H Hessian of the retained loss, beta and eta sizes of a forget and a remain step, m the mask, P weights, N images of
each of the two sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.engine.unlearning_job import ONE_RANK
from worker.engine.events import Events
from worker.engine.family import Draw
from worker.engine.methods.sfron import SFRon, SFRonParams
from worker.engine.run import Run
from worker.engine.streams import Stream

P, N = 4, 8
ETA, BETA = 0.3, 0.6
NUMBERS = torch.Generator().manual_seed(4)
A_2NP = torch.randn(2 * N, P, generator=NUMBERS) * torch.tensor([1.5, 1.0, 0.5, 0.05])
"""The images, forgotten ones (label 0) first. Curvature differs by a factor of 900 between the first and the last weight."""
MINIMUM_P = torch.randn(P, generator=NUMBERS)
U_P = -A_2NP[:N].mean(0)  # ascent descends the negated mean of a·theta
HESSIAN_PP = A_2NP[N:].T @ A_2NP[N:] / N


class Toy:
    """Loss of a forgotten image: 20 + a·theta. Of a retained one: (a·theta - a·minimum)² / 2."""

    def __init__(self) -> None:
        self.module = nn.Linear(P, 1, bias=False)
        self.module.weight.data.copy_(MINIMUM_P)

    def draw(self, count: int, image_shape: Sequence[int], generator: torch.Generator, **options: Any) -> Draw:
        return Draw({})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        return held_B

    def loss(self, x_BP: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        answer_B = (module or self.module)(x_BP).squeeze(1)
        return torch.where(y_B == 0, 20 + answer_B, (answer_B - x_BP @ MINIMUM_P).square() / 2)


def begun(root: Path, k: int, **changes: Any) -> SFRon:
    """Plain gradient steps on whole sets, from the minimum of the retained loss."""
    forget_step: dict[str, Any] = {
        "forget_every": k, "forget_loss": "ascent", "alpha_forget": BETA / ETA, "alpha_decay": "constant",
        "temperature": 0.0, "forget_clip": None, "gamma": 0.0, "fisher": "batch", "fisher_batch_size": N, "fisher_samples": N,
    }  # fmt: skip
    remain_step = {"algorithm": "sgd", "momentum": 0.0, "learning_rate": ETA, "decay": "constant", "clip": None}
    params = SFRonParams.model_validate({"precision": "fp32", "batch_size": N, **forget_step, **remain_step, **changes})
    labels_2N, family = torch.arange(2 * N) // N, Toy()
    run = Run(
        spec=SimpleNamespace(class_names=("gone", "kept"), retain_classes=(1,)),  # type: ignore[arg-type]
        params=params,
        family=family,  # type: ignore[arg-type]
        dataset=SimpleNamespace(image_shape=(1, 1, P)),  # type: ignore[arg-type]
        ranks=ONE_RANK,
        forget=Stream("forget", 1, torch.arange(N), labels_2N[:N]),
        retain=Stream("retain", 1, torch.arange(N, 2 * N), labels_2N[N:]),
        module=family.module,
        held_N=A_2NP,
        labels_N=labels_2N,
        events=Events(root / "events.jsonl", "test", speaks=False),
        cache=root,
    )
    method = SFRon(params, run)
    method.prepare()
    return method


def displacement(method: SFRon) -> Tensor:
    """(P,) the way from the retained minimum."""
    (weight,) = method.run.parameters
    return weight.detach().flatten() - MINIMUM_P


def filtered(way_P: Tensor, k: int) -> Tensor:
    """(I - eta H)^k times a way."""
    return torch.linalg.matrix_power(torch.eye(P) - ETA * HESSIAN_PP, k) @ way_P


@pytest.mark.parametrize("optimizer", ["dual", "shared"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_k_remain_steps_filter_a_forget_step_by_the_retained_curvature(tmp_path: Path, k: int, optimizer: str) -> None:
    method = begun(tmp_path, k, optimizer=optimizer)
    assert all(bool(m.all()) for m in method.mask)
    expected_P = torch.zeros(P)
    for cycle in range(3):
        for i in range(cycle * k, (cycle + 1) * k):
            method.step(i)
        expected_P = filtered(expected_P - BETA * U_P, k)
        assert torch.allclose(displacement(method), expected_P, rtol=0, atol=1e-5)
    assert float(expected_P.norm()) > 1e-2  # far above the tolerance


@pytest.mark.parametrize("optimizer", ["dual", "shared"])
def test_the_mask_keeps_back_the_forget_step_alone(tmp_path: Path, optimizer: str) -> None:
    method = begun(tmp_path, 3, optimizer=optimizer)
    inside_P = torch.tensor([True, False, True, False])
    method.mask = [inside_P[None]]
    for i in range(3):
        method.step(i)
    expected_P = filtered(-BETA * U_P * inside_P, 3)
    assert torch.allclose(displacement(method), expected_P, rtol=0, atol=1e-5)
    assert float(expected_P[~inside_P].abs().min()) > 1e-3  # the remain steps move what the forget step may not


def test_more_remain_steps_undo_the_curved_directions_and_spare_the_flat(tmp_path: Path) -> None:
    curvature_P, direction_PP = torch.linalg.eigh(HESSIAN_PP)
    left = {}
    for k in (1, 5):
        method = begun(tmp_path, k)
        for i in range(k):
            method.step(i)
        left[k] = (direction_PP.T @ displacement(method)).abs() / (direction_PP.T @ (BETA * U_P)).abs()
    for k, left_P in left.items():
        assert torch.allclose(left_P, (1 - ETA * curvature_P).abs().pow(k), atol=1e-3)
    assert float(left[5][0]) > 0.99
    assert float(left[5][-1]) < 0.1
