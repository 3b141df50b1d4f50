"""The two teachers: what is forgotten moves towards a fresh network, what is retained stays with the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, params_of


def job_method(root: Path, family: str, **params: object) -> Any:
    return begin(make_job(root, method="bad_teacher", family=family, params=params_of("bad_teacher") | params))


def distance(method: Any, stream: Any, teacher: Any) -> float:
    batch = method.run.plain(stream.indices_N, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(method.run.family.distance(batch.x_BCHW, batch.y_B, batch.draw, teacher=teacher).mean())


@pytest.mark.parametrize("family", ["classifier", "ddpm"])
def test_forgotten_answers_approach_the_fresh_network_s_and_retained_ones_stay(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, iterations=40, learning_rate=3e-3, algorithm="adam", weight_decay=0.0)
    run = method.run
    forgotten, retained = distance(method, run.forget, method.incompetent), distance(method, run.retain, method.incompetent)
    assert distance(method, run.retain, method.competent) == pytest.approx(0, abs=1e-9)
    for i in range(40):
        method.step(i)
    assert distance(method, run.forget, method.incompetent) < 0.7 * forgotten
    assert distance(method, run.retain, method.competent) < 0.5 * distance(method, run.retain, method.incompetent)
    assert distance(method, run.retain, method.incompetent) > 0.3 * retained


@pytest.mark.parametrize("family", ["classifier", "ddpm"])
def test_teachers_are_frozen(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, **({"batch_norm": "train"} if family == "classifier" else {}))
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (method.competent, method.incompetent)]
    method.step(0)
    for teacher, state in zip((method.competent, method.incompetent), before, strict=True):
        assert not teacher.training
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
        assert all(torch.equal(t, state[n]) for n, t in teacher.state_dict().items())


def test_the_fresh_teacher_follows_from_the_seed(tmp_path: Path) -> None:
    method = job_method(tmp_path, "ddpm")
    fresh = method.run.family.fresh(method.run.spec.seed)
    pairs = zip(method.incompetent.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
