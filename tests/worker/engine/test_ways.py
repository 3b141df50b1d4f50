"""A model is asked in the ways that checks name, for every family that draws: under no label, under one between two."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine.tiny import NAMES, case
from tests.worker.engine.tiny import ddpm as tiny_ddpm
from worker.contract import Sampling
from worker.engine import registry
from worker.engine.distributed import Ranks
from worker.engine.sampling import SamplingFailed, Studio, asked_for
from worker.engine.ways import DRAWN, Blend, Way

FAMILIES = ("ddpm", "dit", "stable_diffusion")
LABELS, SEEDS = [0, 1, 2, 3, 1, 2], [11, 12, 13, 14, 15, 16]
SAMPLING = Sampling(steps=3, guidance_scale=2.0, batch_size=4)


@pytest.fixture(params=FAMILIES)
def studio(request: pytest.FixtureRequest, tmp_path: Path) -> Studio:
    return of(request.param, tmp_path)


def of(family: str, folder: Path, write: Any = None) -> Studio:
    made = case(family)
    (write or made.write)(folder / "model")
    return Studio(
        registry.families()[family],
        {"candidate": folder / "model"},
        labels=NAMES,
        dataset=SimpleNamespace(image_shape=made.shape),  # type: ignore[arg-type]
        sampling=SAMPLING,
        ranks=Ranks(0, 1, torch.device("cpu")),
    )


def draw(studio: Studio, way: Way = DRAWN, labels: list[int] = LABELS) -> Tensor:
    return studio.draw("candidate", labels, SEEDS[: len(labels)], way=way)


def far(a_BCHW: Tensor, b_BCHW: Tensor) -> float:
    return float((a_BCHW.float() - b_BCHW.float()).abs().max())


def test_own_rows_as_labels_of_others_draw_what_the_own_labels_draw(studio: Studio) -> None:
    model: Any = studio.load("candidate")
    own = torch.arange(len(NAMES))
    other = model.with_labels(model.conditioning(own))
    came = other.sample(model.label_count + torch.tensor(LABELS), SEEDS, sampling=SAMPLING)
    assert far(came, draw(studio)) == 0
    swapped = model.with_labels(model.conditioning(own.flip(0)))
    assert far(swapped.sample(model.label_count + torch.tensor(LABELS), SEEDS, sampling=SAMPLING), draw(studio)) > 0


def test_labels_of_others_leave_the_own_ones_and_the_model_as_they_were(studio: Studio) -> None:
    model: Any = studio.load("candidate")
    before, count = draw(studio), model.label_count
    other = model.with_labels(5 * model.conditioning(torch.tensor([0])))
    assert far(other.sample(torch.tensor(LABELS), SEEDS, sampling=SAMPLING), before) == 0
    assert (model.label_count, other.label_count) == (count, count + 1)
    assert far(draw(studio), before) == 0


def test_null_is_the_same_for_every_class_and_needs_no_guidance(studio: Studio) -> None:
    null = draw(studio, Way(label="null"))
    assert far(null, draw(studio, Way(label="null"), labels=[0] * len(SEEDS))) == 0  # it is not told for whom
    assert far(null, draw(studio)) > 0
    unguided = Way(label="null", sampling=SAMPLING.model_copy(update={"guidance_scale": 1.0}))
    assert far(null, draw(studio, unguided)) <= 1  # e_null + s (e_null - e_null), but for rounding
    model: Any = studio.load("candidate")
    told = model.with_labels(model.conditioning(torch.tensor([model.null_label])))
    came = told.sample(torch.full((len(SEEDS),), model.label_count), SEEDS, sampling=SAMPLING)
    assert far(came, null) == 0


@pytest.mark.parametrize(("weight", "same"), [(0.0, LABELS), (1.0, [3] * len(LABELS))])
def test_mixture_ends_at_either_label(studio: Studio, weight: float, same: list[int]) -> None:
    assert far(draw(studio, Way(label=Blend(3, weight))), draw(studio, labels=same)) == 0


def test_mixture_lies_between_two_labels(studio: Studio) -> None:
    half = draw(studio, Way(label=Blend(3, 0.5)), labels=[0] * len(SEEDS))
    ends = [draw(studio, labels=[k] * len(SEEDS)) for k in (0, 3)]
    assert min(far(half, end) for end in ends) > 0
    model: Any = studio.load("candidate")
    rows = model.conditioning(torch.tensor([0, 3])).mean(dim=0, keepdim=True)
    came = model.with_labels(rows).sample(torch.full((len(SEEDS),), model.label_count), SEEDS, sampling=SAMPLING)
    assert far(half, came) == 0


def test_of_several_classes_each_image_takes_one_by_its_seed(studio: Studio) -> None:
    mixed = draw(studio, Way(label=Blend((2, 3), 1.0)), labels=[0] * len(SEEDS))
    due = [(2, 3)[seed % 2] for seed in SEEDS]  # 11 -> 3, 12 -> 2, ...
    assert set(due) == {2, 3}
    assert far(mixed, draw(studio, labels=due)) == 0


@pytest.mark.parametrize("label", ["own", "null", Blend((1, 2), 0.5)])
def test_nothing_is_asked_for_nobody(studio: Studio, label: Any) -> None:
    model: Any = studio.load("candidate")
    asked, label_B = asked_for(model, label, torch.empty(0, dtype=torch.int64), [])
    assert len(asked.sample(label_B, [], sampling=SAMPLING)) == 0


@pytest.mark.parametrize("arithmetic", ["bf16", "fp16"])
def test_other_arithmetic_draws_almost_the_same(studio: Studio, arithmetic: Any) -> None:
    rounded, exact = draw(studio, Way(arithmetic=arithmetic)), draw(studio)
    assert rounded.dtype == torch.uint8
    # A rounding of 2^-8 in a network of a few layers, three steps, guidance 2: a few grey levels of 255 on average.
    assert float((rounded.float() - exact.float()).abs().mean()) < 8


def test_model_without_a_null_label_cannot_be_asked_for_none(tmp_path: Path) -> None:
    unguided = Way(label="null", sampling=SAMPLING.model_copy(update={"guidance_scale": 1.0}))
    without = functools.partial(tiny_ddpm.write_model, unet=tiny_ddpm.tiny_unet(rows=len(NAMES)))
    with pytest.raises(SamplingFailed, match="expected a model with a null label"):
        draw(of("ddpm", tmp_path, without), unguided)
