"""What the label of a forgotten image shall mean: another class that is retained, the same one whenever it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine.errors import BadInput
from worker.engine.relabel import following, next_others, random_others


def anchors(root: Path, **changes: Any) -> torch.Tensor:
    method: Any = begin(make_job(root, method="random_label", **changes))
    anchor_N: torch.Tensor = method.objective.anchor_N
    return anchor_N


def test_a_random_label_is_retained_and_not_the_item_s_own() -> None:
    # Classes 0, 2, 5 are retained. An item of 2 has two others, halved at 1/2; one of the forgotten 3 has three, in thirds.
    labels = torch.tensor([2, 2, 2, 3, 3, 3])
    chance = torch.tensor([0.0, 0.49, 0.5, 0.3, 0.4, 0.99])
    assert random_others(labels, (5, 0, 2), chance).tolist() == [0, 0, 5, 0, 2, 5]


def test_every_other_retained_class_is_as_likely() -> None:
    labels = torch.full((30_000,), 1)
    chance = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(random_others(labels, (0, 1, 2, 3), chance), minlength=4)
    # 10,000 each, with a standard deviation of sqrt(30000 · 1/3 · 2/3) = 82.
    assert counts[1] == 0
    assert bool((counts[[0, 2, 3]] - 10_000).abs().max() < 5 * 82)


def test_the_largest_chance_still_names_a_class() -> None:
    almost_one = torch.tensor([1 - 2**-24])
    assert random_others(torch.tensor([0]), tuple(range(1, 10_001)), almost_one).tolist() == [10_000]


def test_a_label_is_followed_by_the_next_class_that_is_retained() -> None:
    # 1 and 2 are forgotten: 0 -> 3 (the next retained), 1 -> 3, 2 -> 3, 3 -> 0 (around the corner).
    assert following((0, 3), 4).tolist() == [3, 3, 3, 0]
    assert following((1,), 2).tolist() == [1, 1]  # the only one has no other


def test_the_next_label_is_the_next_retained_one_and_never_the_own() -> None:
    # 1 and 2 are forgotten, 0 and 3 retained: 1 -> 3, 2 -> 3, an item of 3 -> 0 around the corner, one of 0 -> 3.
    assert next_others(torch.tensor([1, 2, 3, 0]), (0, 3), 4).tolist() == [3, 3, 0, 3]


def test_an_image_of_the_only_retained_class_has_nowhere_to_go() -> None:
    with pytest.raises(BadInput, match="retained class beside"):
        random_others(torch.tensor([1, 0]), (0,), torch.tensor([0.5, 0.5]))
    with pytest.raises(BadInput, match="retained class beside"):
        next_others(torch.tensor([1, 0]), (0,), 2)


def test_labels_follow_from_the_seed_and_exist_for_what_is_forgotten_alone(tmp_path: Path) -> None:
    first, again, other = (anchors(tmp_path / f, seed=s) for f, s in (("a", 1), ("b", 1), ("c", 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.nonzero(first >= 0).flatten().tolist() == list(range(13, 24))  # class 1 is 12 to 23, and 12 is held out
    assert set(first[13:24].tolist()) <= {0, 2, 3}


def test_an_item_s_label_does_not_depend_on_what_else_is_forgotten(tmp_path: Path) -> None:
    few = anchors(tmp_path / "few", forget_classes=(), forget_samples=("1", "13"))
    more = anchors(tmp_path / "more", forget_classes=(), forget_samples=("1", "2", "13", "25"))
    assert few[[1, 13]].tolist() == more[[1, 13]].tolist()
    assert few[1] != 0
    assert few[13] != 1


def test_a_generator_s_answer_moves_towards_that_under_the_other_label(tmp_path: Path) -> None:
    params = params_of("random_label") | {"learning_rate": 3e-3, "retain_weight": 0.0, "iterations": 20}
    method: Any = begin(make_job(tmp_path, method="random_label", params=params))

    def distance() -> float:
        part = method.objective.parts(99)[0]
        return float(part.rows(part.batch, method.run.module)[0].detach().mean())

    before = distance()
    for i in range(15):
        method.step(i)
    assert distance() < 0.7 * before


def test_the_weights_of_the_two_streams_scale_their_parts(tmp_path: Path) -> None:
    params = params_of("random_label") | {"forget_weight": 0.25, "retain_weight": 0.75}
    method: Any = begin(make_job(tmp_path, method="random_label", params=params))
    forget, retain = method.objective.parts(0)
    assert (forget.scale, retain.scale) == (0.25, 0.75)
    assert set(forget.batch.y_B.tolist()) == {1}
    assert 1 not in retain.batch.y_B.tolist()
