"""From where an image is denoised that somebody else began: the sampler's own step, not the depth that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worker.engine import tiny
from worker.contract import Sampling
from worker.engine import registry
from worker.engine.errors import BadInput


@pytest.mark.parametrize(
    ("sampler", "steps", "depth", "begun"),
    [
        ("ddim", 10, 0.6, 0.6),  # of 0, 100, ... 900
        ("ddim", 3, 0.6, 0.333),  # of 0, 333, 666
        ("ddim", 3, 0.9, 0.666),
        ("ddim", 20, 0.62, 0.6),
        ("ddim", 4, 1.0, 0.75),
        ("ddim", 2, 0.3, 0.0),
    ],
)
def test_a_sampler_begins_at_its_own_next_step(sampler: str, steps: int, depth: float, begun: float, tmp_path: Path) -> None:
    tiny.case("ddpm").write(tmp_path)
    model = registry.families()["ddpm"].load(tmp_path, labels=tiny.NAMES, device=torch.device("cpu"))
    sampling = Sampling(sampler=sampler, steps=steps)  # type: ignore[arg-type]
    assert model.begins_at(depth, sampling) == pytest.approx(begun)


def test_a_sampler_without_a_step_below_the_depth_is_refused(tmp_path: Path) -> None:
    tiny.case("ddpm").write(tmp_path)
    model = registry.families()["ddpm"].load(tmp_path, labels=tiny.NAMES, device=torch.device("cpu"))
    with pytest.raises(BadInput, match=r"expected a sampler with a step below 0\.1 of the way, found 2 steps"):
        model.begins_at(0.1, Sampling(sampler="dpm++", steps=2))
