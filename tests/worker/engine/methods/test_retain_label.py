"""Retain label: a forgotten image is answered as the original answers a retained one under the same mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of
from worker.engine.distributed import Ranks

FAMILIES = [family for name, family in PAIRS if name == "retain_label"]
every = pytest.mark.parametrize("family", FAMILIES)


def job_method(root: Path, family: str, **params: object) -> Any:
    return begin(make_job(root, method="retain_label", family=family, params=params_of("retain_label", family) | params))


@every
def test_labels_are_the_retained_images_of_the_same_update_and_never_a_forgotten_one(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, batch_size=4, forget_batch_size=10)
    run = method.run
    for iteration in range(6):
        batch = method.forget_batch(iteration)
        retained = run.batch(run.retain, iteration, 4, label_drop=0.5).index_B.tolist()
        assert batch.draw["instead"].tolist() == [*retained, *retained, *retained[:2]]
        assert not set(batch.draw["instead"].tolist()) & set(run.forget.indices_N.tolist())


@every
def test_the_ranks_share_the_labels_of_the_whole_batch(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, batch_size=4, forget_batch_size=7)
    whole = method.forget_batch(1).draw["instead"]
    parts = []
    for rank in (0, 1):
        method.run.ranks = Ranks(rank, 2, torch.device("cpu"))
        parts.append(method.forget_batch(1).draw["instead"])
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f == "mae"])
def test_the_forgotten_term_is_the_mean_square_over_hidden_patches(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    for i in range(2):
        method.step(i)  # so that student and original differ
    run, batch = method.run, method.forget_batch(7)
    found_B = method.forgotten(batch, run.module)[0].detach()
    for row in range(len(batch.y_B)):
        one = batch.part(slice(row, row + 1))
        image, visible = run.family.question(one.x_BCHW, one.y_B, one.draw)
        retained = run.family.prepare(run.held_N[one.draw["instead"]], one.draw)
        with torch.no_grad():
            ours = run.family.module(image, visible, whole=True)[0]
            theirs = method.original(retained, visible, whole=True)[0]
        hidden = [patch for patch in range(len(ours)) if patch not in visible[0].tolist()]
        expected = sum(float((ours[patch] - theirs[patch]).square().mean()) for patch in hidden) / len(hidden)
        assert float(found_B[row]) == pytest.approx(expected, rel=1e-5)


@every
def test_the_retained_term_is_exactly_zero_at_the_start(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    distance_B, _ = method.retained(method.run.batch(method.run.retain, 0, 8, label_drop=0.5), method.run.module)
    assert distance_B.tolist() == [0.0] * 8


def test_forgotten_answers_come_nearer_to_their_labels_and_retained_ones_stay(tmp_path: Path) -> None:
    method = job_method(tmp_path, "mae", iterations=60, learning_rate=1e-3, alpha=1.0)
    forget, retain = method.forget_batch(999), method.run.batch(method.run.retain, 999, 8, label_drop=0.5)

    def means() -> tuple[float, float]:
        with torch.no_grad():
            rows = method.forgotten(forget, method.run.module), method.retained(retain, method.run.module)
        return float(rows[0][0].mean()), float(rows[1][0].mean())

    before, _ = means()
    for i in range(60):
        method.step(i)
    after, moved = means()
    assert after < 0.9 * before
    assert moved < before - after


@every
def test_the_original_is_frozen_and_has_both_halves(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    before = {name: t.clone() for name, t in method.original.state_dict().items()}
    method.step(0)
    assert before.keys() == method.run.family.module.state_dict().keys()
    assert all(torch.equal(t, before[name]) for name, t in method.original.state_dict().items())
    assert not any(p.requires_grad for p in method.original.parameters())
