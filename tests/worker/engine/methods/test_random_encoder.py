"""Random encoder: forgotten images are pulled to features of the right size that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of
from worker.engine.distributed import Ranks
from worker.engine.methods.random_encoder import Moments

every = pytest.mark.parametrize("family", [family for name, family in PAIRS if name == "random_encoder"])


def job_method(root: Path, family: str, *, prepare: bool = True, **params: object) -> Any:
    job = make_job(root, method="random_encoder", family=family, params=params_of("random_encoder", family) | params)
    return begin(job, prepare=prepare)


def test_moments_are_those_of_all_numbers_of_a_tap() -> None:
    tokens, maps = torch.randn(7, 3, 4) * 3 + 2, torch.randn(7, 2, 5, 5)
    moments = Moments()
    for rows in (slice(0, 4), slice(4, 7)):
        moments.count([tokens[rows], maps[rows]])
    assert moments.shapes == [[3, 4], [2, 5, 5]]
    for (mean, std), tap in zip(moments.spread(), (tokens, maps), strict=True):
        assert mean == pytest.approx(float(tap.mean()), abs=1e-6)
        assert std == pytest.approx(float(tap.std(correction=0)), rel=1e-5)


@every
def test_targets_are_as_large_as_the_features_were(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    run = method.run
    batch = run.plain(torch.cat([run.forget.indices_N, run.retain.indices_N]), torch.Generator().manual_seed(0))
    with torch.no_grad():
        taps = run.family.encode(method._question(batch))
    for (mean, std), shape, tap in zip(method.spread, method.shapes, taps, strict=True):
        assert tuple(shape) == tap.shape[1:]
        assert abs(mean - float(tap.mean())) < 0.1 * float(tap.std())  # other masks are drawn there
        assert std == pytest.approx(float(tap.std()), rel=0.1)


@every
def test_the_forgotten_term_is_the_mean_square_from_random_numbers(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    batch = method.forget_batch(4)
    found_B = method.forgotten(batch, method.run.module)[0].detach()
    for row in range(len(batch.y_B)):
        one, expected = batch.part(slice(row, row + 1)), 0.0
        with torch.no_grad():
            taps = method.run.family.encode(method._question(one))
        for i, tap in enumerate(taps):
            mean, std = method.spread[i]
            expected += float((tap[0] - (mean + std * one.draw[f"tap{i}"][0])).square().mean())
        assert float(found_B[row]) == pytest.approx(expected, rel=1e-5)


@every
def test_targets_are_drawn_anew_at_every_iteration_and_do_not_look_at_the_image(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    first, again, other = (method.forget_batch(i).draw["tap0"] for i in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert abs(float(first.mean())) < 0.2
    assert float(first.std()) == pytest.approx(1, abs=0.2)


@every
def test_a_rank_has_its_rows_of_the_targets_of_the_whole_batch(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, forget_batch_size=5)
    whole = method.forget_batch(2).draw["tap0"]
    method.run.ranks = Ranks(1, 2, torch.device("cpu"))
    assert torch.equal(method.forget_batch(2).draw["tap0"], whole[2:])


@every
def test_the_retained_term_is_exactly_zero_at_the_start(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    distance_B, _ = method.retained(method.run.batch(method.run.retain, 0, 8, label_drop=0.5), method.run.module)
    assert distance_B.tolist() == [0.0] * 8


@every
def test_nothing_but_the_encoder_is_trained(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    module = method.run.family.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    method.step(0)
    moved = {module.half_of(name) for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"encoder"}


@every
def test_what_was_counted_is_part_of_the_state(family: str, tmp_path: Path) -> None:
    method, other = job_method(tmp_path, family), job_method(tmp_path / "other", family, prepare=False)
    other.load_state_dict(method.state_dict())
    assert (other.shapes, other.spread) == (method.shapes, method.spread)
