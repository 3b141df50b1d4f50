"""Attacks train copies of saved models, and the same way every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.worker.engine import tiny
from worker.engine import attacks, registry
from worker.engine.attacks import Attack, Lesson
from worker.engine.errors import BadInput
from worker.engine.family import Family
from worker.engine.statistics import ALPHA
from worker.engine.verifier import Env

STEPS = (0, 1, 3)


class Weights:
    """A probe that keeps what it finds."""

    n = 10

    def __init__(self, hits: int = 0) -> None:
        self.hits, self.seen = hits, list[Tensor]()

    def __call__(self, family: Family) -> Tensor:
        self.seen.append(torch.cat([p.detach().flatten() for p in family.module.parameters()]).clone())
        return torch.arange(self.n) < self.hits

    def untaught(self, subject: str) -> Tensor:
        return torch.arange(self.n) < self.hits


def env_of(family: str, root: Path) -> Env:
    """As much of one as an attack asks for."""
    tiny.case(family).write(root)
    load = registry.families()[family].load

    def fresh(_: str) -> Family:
        return load(root, labels=tiny.NAMES, device=torch.device("cpu"))

    held = SimpleNamespace(
        fresh=fresh, busy=lambda: None, device=torch.device("cpu"), alpha=ALPHA, spec=SimpleNamespace(verification_seed=7)
    )
    return cast(Env, held)


def attack_on(family: str, *probes: Any, rate: float = 1e-3, **changes: Any) -> Attack:
    images, labels = tiny.striped(channels=tiny.case(family).channels, side=tiny.case(family).side)
    images_NCHW = torch.from_numpy(images)[:, None]
    lessons = (Lesson(images_NCHW[:12], torch.from_numpy(labels)[:12], 4), Lesson(images_NCHW, torch.from_numpy(labels), 4))
    return replace(Attack("a", "candidate", lessons, tuple(probes), rate, STEPS), **changes)


@pytest.mark.parametrize("family", ["ddpm", "classifier"])
def test_attack_moves_the_weights_the_same_way_every_time(family: str, tmp_path: Path) -> None:
    env, one, two = env_of(family, tmp_path), Weights(), Weights()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    (first,), (second,) = attacks.run(env, [attack_on(family, one), attack_on(family, two)])
    assert first == second
    assert first.steps == STEPS
    assert all(torch.equal(a, b) for a, b in zip(one.seen, two.seen, strict=True))
    assert not torch.equal(one.seen[0], one.seen[1])  # after 1 update and after 3
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


def test_attacks_of_another_name_see_other_batches(tmp_path: Path) -> None:
    one, two = Weights(), Weights()
    attacks.run(env_of("ddpm", tmp_path), [attack_on("ddpm", one), attack_on("ddpm", two, name="b")])
    assert not torch.equal(one.seen[-1], two.seen[-1])


def test_attack_ends_when_enough_is_known(tmp_path: Path) -> None:
    """10 of 10 hits bound a rate by 0.025^(1/10) = 0.69 from below; it ends at the first checkpoint at or after step 1."""
    env = env_of("ddpm", tmp_path)
    wanted: dict[str, Any] = {"enough": (0.5, 1)}
    ((sure,), (unsure, _)) = attacks.run(
        env, [attack_on("ddpm", Weights(10), **wanted), attack_on("ddpm", Weights(10), Weights(5), **wanted)]
    )
    assert (sure.steps, sure.hits) == ((0, 1), (10, 10))
    assert unsure.steps == STEPS


def test_loss_that_is_no_number_ends_an_attack_and_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: Any, x_BCHW: Tensor, *_: Any, **__: Any) -> Tensor:
        answer_B: Tensor = next(self.module.parameters()).sum() * x_BCHW.flatten(1).sum(1)
        return answer_B * torch.nan

    monkeypatch.setattr(registry.families()["ddpm"], "loss", nothing)
    probe = Weights()
    ((course,),) = attacks.run(env_of("ddpm", tmp_path), [attack_on("ddpm", probe)])
    assert course.steps == (0,)
    assert "before checkpoint 1" in course.diverged
    assert "finite" in course.diverged


def test_images_are_the_same_few_for_who_asks_for_more() -> None:
    env = cast(Env, SimpleNamespace(spec=SimpleNamespace(verification_seed=7)))
    images_NCHW = torch.arange(50).view(50, 1, 1, 1)
    few, many = (attacks.taught_images(env, images_NCHW, k, "x").flatten().tolist() for k in (5, 20))
    assert many[:5] == few
    assert len(set(many)) == 20
    with pytest.raises(BadInput):
        attacks.taught_images(env, images_NCHW[:0], 5, "x")
