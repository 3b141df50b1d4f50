"""A rate held against a threshold: too few items prove nothing, and refute what they refute."""

from __future__ import annotations

from typing import Any

import pytest

from worker.engine.rates import at_most

ABOUT: dict[str, Any] = {"check": "c", "metric": "m", "detail": ""}


@pytest.mark.parametrize(
    ("hits", "n", "gating", "passed", "is_open", "weak"),
    [
        (0, 200, True, True, False, False),  # bounded by .015
        (1, 100, True, True, False, False),  # by .047
        (3, 100, True, False, True, False),  # by .08, and above .008
        (50, 100, True, False, False, False),
        (0, 20, False, None, False, True),  # none of 20 bounds it by .14
        (1, 20, False, None, False, True),  # at least .003
        (5, 20, True, False, False, False),  # at least .10: refuted, be they few
    ],
)
def test_what_few_items_refute_is_not_excused(
    hits: int, n: int, gating: bool, passed: bool | None, is_open: bool, weak: bool
) -> None:
    found = at_most(hits, n, 0.05, alpha=0.05, **ABOUT)
    assert (found.gating, found.passed, found.open, found.underpowered) == (gating, passed, is_open, weak)


def test_a_control_that_few_items_refute_has_failed_as_it_must() -> None:
    found = at_most(20, 20, 0.05, alpha=0.05, subject="original", control=True, **ABOUT)
    assert (found.control, found.passed, found.underpowered) == (True, False, False)
