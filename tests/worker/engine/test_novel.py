"""Which class stands in for one that no model has seen: by what a judge takes its turned images for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from worker.engine.errors import BadInput
from worker.engine.judge import Judged
from worker.engine.novel import novel_class
from worker.engine.verifier import Env

K, N, FORGOTTEN = 10, 20, 0


def env(taken_for: dict[int, dict[int, int]]) -> Env:
    """Images that are all of one grey, their class's number; the judge takes so many turned images of a class for others.

    A class that is not named is taken for itself. Class k lies k from the forgotten one.
    """

    def look(images_NCHW: Tensor) -> Judged:
        k = int(images_NCHW[0, 0, 0, 0])
        names = [name for name, count in taken_for.get(k, {k: N}).items() for _ in range(count)]
        assert len(names) == len(images_NCHW) == N
        features_ND = torch.full((N, 2), float(k), dtype=torch.float64)
        return Judged(torch.nn.functional.one_hot(torch.tensor(names), K).double(), features_ND)

    images_NCHW = torch.arange(K).repeat_interleave(N).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).to(torch.uint8)
    rows = {k: torch.arange(k * N, (k + 1) * N) for k in range(K)}
    data = SimpleNamespace(
        images_NCHW=images_NCHW, train_of=lambda ks: torch.cat([rows[k] for k in ks]), held_out_of=lambda ks: rows[ks[0]][:5]
    )
    spec = SimpleNamespace(class_names=tuple(map(str, range(K))), retain_classes=tuple(range(1, K)))
    return cast(Env, SimpleNamespace(dataset=data, spec=spec, kind="generator", judge=SimpleNamespace(look=look)))


def spread(forgotten: int = 0) -> dict[int, int]:
    """Taken for many classes, and so many times for the forgotten one."""
    third = (N - forgotten) // 3
    return {FORGOTTEN: forgotten, 7: third, 8: third, 9: N - forgotten - 2 * third}


def source(taken_for: dict[int, Any]) -> int:
    return novel_class(env(taken_for), FORGOTTEN).source


def test_the_nearest_class_that_is_no_longer_itself_stands_in() -> None:
    assert source({2: spread(), 3: spread()}) == 2


def test_one_that_passes_for_the_forgotten_class_gives_way_to_a_farther_one() -> None:
    assert source({1: spread(4), 5: spread(1)}) == 5


def test_where_a_judge_takes_everything_for_the_forgotten_class_a_fifth_is_borne_and_a_third_is_not() -> None:
    assert source({1: spread(8), 4: spread(4)}) == 4
    with pytest.raises(BadInput, match="found none"):
        source({1: spread(8), 4: spread(7)})


def test_a_class_that_looks_like_itself_when_it_is_turned_is_not_novel() -> None:
    with pytest.raises(BadInput, match="found none"):
        source({})


def test_one_that_is_taken_for_a_single_other_class_comes_after_one_that_is_taken_for_many() -> None:
    assert source({1: {6: N}, 4: spread()}) == 4
    assert source({1: {6: N}}) == 1
