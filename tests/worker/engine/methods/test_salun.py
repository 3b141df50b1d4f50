"""SalUn's own rules: weights outside the mask keep their bits, whatever the optimizer does to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine.intake import effective
from worker.engine.methods.salun import SalUn

DECAY = {"momentum": 0.9, "weight_decay": 0.5, "learning_rate": 1e-2, "ratio": 0.3}


def job_method(root: Path, family: str = "ddpm", **params: object) -> Any:
    return begin(make_job(root, method="salun", family=family, params=params_of("salun") | params))


def moved_outside(method: Any, steps: int = 4) -> int:
    """How many masked-out weights have other bits than at the start; the masked-in ones must move."""
    before = [p.detach().clone() for p in method.run.parameters]
    for i in range(steps):
        method.step(i)
    after = [p.detach() for p in method.run.parameters]
    assert any(not torch.equal(b[m], a[m]) for b, a, m in zip(before, after, method.mask, strict=True))
    return sum(int((b[~m] != a[~m]).sum()) for b, a, m in zip(before, after, method.mask, strict=True))


@pytest.mark.parametrize("family", ["classifier", "ddpm"])
@pytest.mark.parametrize("algorithm", ["sgd", "adam", "adamw"])
def test_masked_out_weights_keep_their_bits_under_momentum_and_weight_decay(
    algorithm: str, family: str, tmp_path: Path
) -> None:
    assert moved_outside(job_method(tmp_path, family, algorithm=algorithm, **DECAY)) == 0


@pytest.mark.parametrize("algorithm", ["sgd", "adam", "adamw"])
def test_without_putting_them_back_weight_decay_would_move_them(algorithm: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, algorithm=algorithm, **DECAY)
    method._put_back = lambda: None
    assert moved_outside(method) > 0


@pytest.mark.parametrize("algorithm", ["sgd", "adam", "adamw"])
def test_without_weight_decay_a_masked_gradient_is_enough(algorithm: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, algorithm=algorithm, **DECAY | {"weight_decay": 0.0})
    assert method._outside == []
    assert moved_outside(method) == 0


def test_what_is_put_back_is_exact_whatever_the_weights_are(tmp_path: Path) -> None:
    method = job_method(tmp_path, **DECAY)
    weight = method.run.parameters[0]
    before, inside = weight.detach().clone(), method.mask[0]
    before[~inside] = -0.0  # as numbers, 0 · w + -0 would be +0
    now = torch.where(inside, torch.full_like(before, -0.0), torch.full_like(before, float("inf")))
    with torch.no_grad():
        weight.copy_(before)
        method._take(method.mask)
        weight.copy_(now)
        method._put_back()
    bits = weight.detach().view(torch.int32)
    assert torch.equal(bits, torch.where(inside, now, before).view(torch.int32))


def test_the_published_weight_of_what_is_retained_is_of_a_sum_over_pixels() -> None:
    params: Any = effective(SalUn, "ddpm", {"preset": "cifar10-ddpm"})
    assert params.retain_weight == pytest.approx(1e-3 * 3 * 32 * 32)


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_mask_has_the_asked_share_of_all_weights(ratio: float, tmp_path: Path) -> None:
    mask = torch.cat([m.flatten() for m in job_method(tmp_path, ratio=ratio).mask])
    assert float(mask.float().mean()) == pytest.approx(ratio, abs=1 / len(mask))


def test_the_mask_is_of_the_images_to_forget(tmp_path: Path) -> None:
    one = job_method(tmp_path / "one").mask
    other: Any = begin(make_job(tmp_path / "other", method="salun", forget_classes=(2,)))
    assert any(not torch.equal(a, b) for a, b in zip(one, other.mask, strict=True))
