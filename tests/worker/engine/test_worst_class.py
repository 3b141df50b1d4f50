"""All classes must be shown to have kept what they had: how many there are is no excuse, and neither is one of few items."""

from __future__ import annotations

import pytest

from worker.engine.errors import BadInput
from worker.engine.worst_class import Drop, hold

LIMIT = 0.08
ALPHA = 0.05 / 3


def kept(k: int, n: int = 400) -> Drop:
    return Drop(k, 0, 0, n)


def test_one_class_of_ninety_nine_that_is_lost_is_refuted() -> None:
    held = hold([*(kept(k) for k in range(98)), Drop(98, 100, 0, 100)], ALPHA, LIMIT)
    assert (held.worst.class_index, held.gates, held.refuted) == (98, True, True)
    assert 0.8 < held.worst.lower(held.level) < 0.917  # an exact bound of 100 of 100 at alpha / 99 is .00017^(1/100) = .917


def test_ninety_nine_classes_that_were_kept_pass() -> None:
    held = hold([kept(k) for k in range(99)], ALPHA, LIMIT)
    assert (held.gates, held.refuted, held.of, held.rest) == (True, False, 99, ())
    assert (
        0.0215 < held.worst.upper(held.level) < 0.03
    )  # an exact bound of 0 of 400 at alpha / 99 is 1 - .00017^(1/400) = .0215


def test_a_class_of_few_items_does_not_excuse_what_a_large_one_lost_in_part() -> None:
    """40 of 400 gone is not refuted, 7 points at the least; and the four items of another are bounded by nothing."""
    held = hold([kept(0), Drop(1, 40, 0, 400), kept(2, 4)], ALPHA, LIMIT)
    assert (held.gates, held.refuted, held.worst.class_index) == (True, False, 1)
    assert held.worst.upper(held.level) > LIMIT
    assert [drop.class_index for drop in held.rest] == [2]
    assert hold([kept(0), kept(1), kept(2, 4)], ALPHA, LIMIT).gates


def test_a_class_of_few_items_that_is_lost_is_refuted_all_the_same() -> None:
    held = hold([kept(0), kept(1), Drop(2, 12, 0, 12)], ALPHA, LIMIT)
    assert (held.gates, held.refuted, held.worst.class_index) == (True, True, 2)
    assert held.rest == ()


def test_of_two_that_were_kept_no_order_makes_the_smaller_one_fail() -> None:
    """Of 100 items none lost is at most .0518 at 1 %: at .0167 / 2 it passes in either place beside one that lost a little."""
    held = hold([Drop(0, 5, 0, 400), kept(1, 100)], ALPHA, LIMIT)
    assert (held.gates, held.of) == (True, 2)
    assert held.worst.upper(held.level) < LIMIT


def test_where_no_class_could_pass_nothing_gates() -> None:
    held = hold([kept(0, 10), kept(1, 12)], ALPHA, LIMIT)
    assert (held.gates, held.refuted, held.of, held.rest) == (False, False, 2, ())


def test_no_class_is_refused() -> None:
    with pytest.raises(BadInput, match="expected a retained class"):
        hold([], ALPHA, LIMIT)
