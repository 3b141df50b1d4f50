"""Which classes are meant. Pure, so every corner is cheap."""

from __future__ import annotations

import pytest

from service.errors import AlreadyForgotten, NothingToRetain, UnknownClass
from service.requests.wishes import require_forgettable, resolve_classes

NAMES = ["cat", "dog", "café"]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ([1, "1", "dog"], [1]),
        ([2, 0], [0, 2]),
        (["cafe\u0301"], [2]),  # the same name, decomposed
        ([" dog "], [1]),
    ],
)
def test_spellings_of_a_class_meet(wanted: list[int | str], meant: list[int]) -> None:
    assert resolve_classes(wanted, NAMES) == meant


def test_a_name_wins_over_an_index_written_as_text() -> None:
    assert resolve_classes(["1"], ["1", "0"]) == [0]
    assert resolve_classes([1], ["1", "0"]) == [1]  # a number is an index


@pytest.mark.parametrize("wanted", [3, -1, "3", "-0", "00", "01", "1.0", "²", "Dog", "", 10**400])
def test_anything_else_is_unknown(wanted: int | str) -> None:
    with pytest.raises(UnknownClass) as caught:
        resolve_classes([wanted], NAMES)
    assert caught.value.extra["known_classes"] == NAMES


def test_forgotten_classes_are_named() -> None:
    with pytest.raises(AlreadyForgotten, match="dog"):
        require_forgettable([0, 1], forgotten=[1], pending=[], class_names=NAMES)


@pytest.mark.parametrize(
    ("wanted", "forgotten", "pending"), [([0, 1, 2], [], []), ([0], [1], [2]), ([0, 1], [], [2]), ([0, 1], [2], [])]
)
def test_one_class_must_stay(wanted: list[int], forgotten: list[int], pending: list[int]) -> None:
    with pytest.raises(NothingToRetain):
        require_forgettable(wanted, forgotten=forgotten, pending=pending, class_names=NAMES)


def test_all_but_one_may_go() -> None:
    require_forgettable([0], forgotten=[1], pending=[], class_names=NAMES)
