"""Encoder distillation's own rules: alpha, targets, and what a batch of one kind says of the other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of
from worker.engine import registry
from worker.engine.batch import Batch, Part
from worker.engine.completion import NOISES, Lesson, alike, apart
from worker.engine.family import Draw

FAMILIES = [family for name, family in PAIRS if name == "encoder_l2"]
every = pytest.mark.parametrize("family", FAMILIES)


def job_method(root: Path, family: str, **params: object) -> Any:
    return begin(make_job(root, method="encoder_l2", family=family, params=params_of("encoder_l2", family) | params))


def encoder_of(method: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.run.family.module.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def gradients(method: Any, *parts: Any) -> list[Tensor]:
    method.run.gradients.together(parts)
    return [p.grad.clone() for p in method.run.parameters]


def test_a_distance_is_a_mean_over_numbers_and_a_sum_over_taps() -> None:
    tokens, maps = torch.zeros(2, 3, 4), torch.zeros(2, 1, 2, 2)
    far = [tokens.clone(), maps.clone()]
    far[0][1] += 2  # every number of the second row's first tap: a mean of 4
    far[1][1, 0, 0, 0] += 4  # one in four of its second tap: a mean of 16 / 4
    assert apart(far, [tokens, maps]).tolist() == [0.0, 8.0]
    assert apart([t.bfloat16() for t in far], [tokens, maps]).dtype == torch.float32


@every
def test_the_retain_loss_is_exactly_zero_at_the_start(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    assert float(method.run.gradients.together([method.lesson.retained(0)])) == 0.0
    assert all(not bool(p.grad.any()) for p in method.run.parameters)


@every
def test_without_alpha_the_encoder_stays_as_it_is(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, alpha=0.0)
    before = encoder_of(method)
    for i in range(3):
        method.step(i)
    assert same(before, encoder_of(method))


@every
def test_alpha_scales_the_forget_part_alone(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family)
    for i in range(2):
        method.step(i)  # so that the retain loss has a gradient, too
    lesson = method.lesson
    retain, forget = gradients(method, lesson.retained(5)), gradients(method, lesson.forgotten(5, scale=1.0))
    both = gradients(method, lesson.retained(5), lesson.forgotten(5, scale=0.25))
    assert any(bool(g.any()) for g in retain)
    for r, f, b in zip(retain, forget, both, strict=True):
        assert torch.allclose(b, r + 0.25 * f, atol=1e-7)


@every
def test_an_unbalanced_batch_does_not_rescale_alpha(family: str, tmp_path: Path) -> None:
    """Each mean is over its own kind: rows that come twice change nothing, and the retained ones count for none of it."""
    method = job_method(tmp_path, family)
    batch = method.lesson.forget_batch(0)
    twice = repeated(batch)
    part = method.lesson.forgotten(0, scale=0.25)
    one = gradients(method, part)
    two = gradients(method, replace(part, batch=twice))
    assert len(twice.y_B) == 2 * len(batch.y_B)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(one, two, strict=True))


def repeated(batch: Batch) -> Batch:
    tensors = {name: torch.cat([t, t]) for name, t in batch.draw.tensors.items()}
    return Batch(
        torch.cat([batch.x_BCHW] * 2), torch.cat([batch.y_B] * 2), type(batch.draw)(tensors),
        torch.cat([batch.index_B] * 2), 2 * batch.total,
    )  # fmt: skip


@every
def test_the_size_of_the_forget_batch_is_its_own(family: str, tmp_path: Path) -> None:
    lesson = job_method(tmp_path, family, forget_batch_size=3).lesson
    assert (lesson.retain_batch(0).total, lesson.forget_batch(0).total) == (8, 3)


@every
@pytest.mark.parametrize("kind", ["retained", "forgotten"])
def test_images_of_one_kind_have_no_part_in_the_other_s_gradient(kind: str, family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, target="noise")
    method.step(0)  # so that the retain loss has a gradient, too
    run, lesson = method.run, method.lesson
    part = {"retained": lesson.retained, "forgotten": partial(lesson.forgotten, scale=1.0)}[kind]
    others_N, own_N = run.forget.indices_N, run.retain.indices_N
    if kind == "forgotten":
        others_N, own_N = own_N, others_N
    before = gradients(method, part(1))
    run.held_N[others_N] = run.held_N[others_N].flip(-1)
    after = gradients(method, part(1))
    assert any(bool(g.any()) for g in before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    run.held_N[own_N] = run.held_N[own_N].flip(-1)
    assert not all(torch.equal(a, b) for a, b in zip(before, gradients(method, part(1)), strict=True))


@every
def test_student_and_teacher_are_asked_under_the_same_mask(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, target="noise")
    asked: list[tuple[Any, Any]] = []
    fam, encode = method.run.family, method.run.family.encode

    def watch(question: Any, *, module: Any = None) -> list[Tensor]:
        asked.append((question, module))
        return encode(question, module=module)

    fam.encode = watch
    batch = method.lesson.forget_batch(0)
    method.lesson.as_target(batch, method.run.module)
    (theirs, teacher), (ours, student) = sorted(asked, key=lambda pair: pair[1] is not method.lesson.teacher)
    assert teacher is method.lesson.teacher
    assert student is not teacher
    with torch.no_grad():
        expected = fam.question(batch.x_BCHW, batch.y_B, batch.draw, noise_in=method.params.noise_scope)
    assert all(torch.equal(a, b) for a, b in zip(theirs, expected, strict=True))
    # All but the image is one: putting the image back into the teacher's question gives the student's.
    again = fam.question(batch.x_BCHW, batch.y_B, batch.draw)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@every
def test_descent_brings_forgotten_images_nearer_to_their_targets_by_more_than_it_moves_the_others(
    family: str, tmp_path: Path
) -> None:
    method = job_method(tmp_path, family, iterations=40, learning_rate=1e-3, alpha=1.0)
    lesson, unseen = method.lesson, range(900, 904)

    @torch.no_grad()
    def means() -> tuple[float, float]:
        forget = torch.cat([lesson.as_target(lesson.forget_batch(i), method.run.module)[0] for i in unseen])
        retain = torch.cat([lesson.as_taught(lesson.retain_batch(i), method.run.module)[0] for i in unseen])
        return float(forget.mean()), float(retain.mean())

    before, none = means()
    for i in range(40):
        method.step(i)
    after, moved = means()
    assert none == 0.0
    assert after < 0.95 * before
    assert moved < before - after


# --------------------------------------------------------------------------------------------------------------- targets


@every
def test_the_mean_embedding_is_the_mean_of_the_teacher_s_answers_under_the_image_s_own_mask(
    family: str, tmp_path: Path
) -> None:
    method = job_method(tmp_path, family, target="mean_embedding", partners=3)
    lesson: Lesson = method.lesson
    batch = lesson.forget_batch(0)
    assert batch.draw["instead"].shape == (8, 3)
    retained = set(method.run.retain.indices_N.tolist())
    assert set(batch.draw["instead"].flatten().tolist()) <= retained
    expected = []
    for m in range(3):
        index_B = batch.draw["instead"][:, m]
        x = method.run.family.prepare(method.run.held_N[index_B], batch.draw)
        expected.append(lesson.taught(method.run.family.question(x, method.run.labels_N[index_B], batch.draw)))
    for tap, *answers in zip(lesson.target(batch), *expected, strict=True):
        assert torch.allclose(tap, sum(answers) / 3, atol=1e-6)


@every
def test_a_neighbour_is_the_retained_image_that_the_teacher_sees_as_nearest(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, target="retain_neighbour")
    run, neighbour_N = method.run, method.lesson.neighbour_N
    forgotten, retained = run.forget.indices_N, run.retain.indices_N
    assert set(neighbour_N[forgotten].tolist()) <= set(retained.tolist())
    assert bool((neighbour_N[retained] == -1).all())
    seen = method.lesson._seen(torch.arange(len(run.labels_N)))
    for i in forgotten.tolist():
        cosine = seen[retained] @ seen[i]
        assert float(cosine.max() - seen[neighbour_N[i]] @ seen[i]) < 1e-5
    batch = method.lesson.forget_batch(0)
    assert torch.equal(batch.draw["instead"][:, 0], neighbour_N[batch.index_B])


KEEPING = [f for f in FAMILIES if "target_masks" not in registry.families()[f].ignores]


@pytest.mark.parametrize("family", KEEPING)
def test_kept_targets_are_the_means_of_those_that_would_be_computed(family: str, tmp_path: Path) -> None:
    method = job_method(tmp_path, family, target_masks=3)
    lesson: Lesson = method.lesson
    batch = lesson.forget_batch(0)
    assert set(batch.draw["kept"].tolist()) <= {0, 1, 2}
    for row, k in list(enumerate(batch.draw["kept"].tolist()))[:4]:
        noise = lesson.noises(k)
        draw = Draw(alike(batch.draw.part(slice(row, row + 1)), NOISES).tensors | {"noise": noise})
        computed = lesson.taught(lesson.family.question(noise, torch.full((NOISES,), -1), draw, noise_in="image"))
        for kept, answers in zip(lesson.target(batch), computed, strict=True):
            assert torch.allclose(kept[row], answers.mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("family", KEEPING)
def test_a_kept_target_has_the_gradient_of_its_noises_on_average(family: str, tmp_path: Path) -> None:
    """||z - mean t||^2 and the mean of ||z - t||^2 differ by what does not depend on z."""
    method = job_method(tmp_path, family, target_masks=1, forget_batch_size=2)
    lesson: Lesson = method.lesson
    batch = lesson.forget_batch(0)
    kept = gradients(method, Part(batch, lesson.as_target))
    lesson.kept, total = [], None
    for noise in lesson.noises(0):
        draw = Draw(batch.draw.tensors | {"noise": noise.expand(2, *noise.shape)})
        found = gradients(method, Part(replace(batch, draw=draw), lesson.as_target))
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    assert total is not None
    assert all(torch.allclose(a, b / NOISES, atol=1e-6) for a, b in zip(kept, total, strict=True))


@every
@pytest.mark.parametrize("target", ["mean_embedding", "retain_neighbour"])
def test_a_resumed_run_has_the_same_targets(target: str, family: str, tmp_path: Path) -> None:
    results = []
    for folder in ("whole", "broken"):
        method = job_method(tmp_path / folder, family, target=target)
        method.step(0)
        if folder == "broken":
            weights, state = method.run.family.module.state_dict(), method.state_dict()
            other: Any = begin(make_job(
                tmp_path / "again", method="encoder_l2", family=family,
                params=params_of("encoder_l2", family) | {"target": target},
            ), prepare=False)  # fmt: skip
            other.run.family.module.load_state_dict(weights)
            other.load_state_dict(state)
            method = other
        method.step(1)
        results.append(encoder_of(method))
    assert same(*results)
