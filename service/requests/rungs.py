"""The recipes that a request may try in turn: its ladder, rung by rung. Pure.

A rung is one of the results that may be verified at a request, and each of them is a chance to be lucky: the policy's
`attempts`, fixed when the request is made, says how many there are, and every test of every one is held to a share of the
error budget. `auto` brings a ladder of recipes; any other method is its own one recipe, with other seeds, as often as the
policy allows.

A rung is not a run: a run that dies says nothing of its recipe, and the next one works on the same rung, with the same seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

AUTO = "auto"
LADDER = "ladder"
"""Where the parameters of an `auto` request keep its recipes."""

REJECTED = frozenset({"FAIL", "INCONCLUSIVE"})
"""Verdicts that say that this result will not do, where that of another recipe might. ERROR and VOID speak of the measurement:
whatever it was held against, it would say so again."""

FINAL = frozenset({"VOID", "ERROR"})
"""Those verdicts: the request ends with them."""

CODES = {"FAIL": "verification_failed", "INCONCLUSIVE": "inconclusive", "VOID": "void", "ERROR": "verification_error"}
"""Verdicts that publish nothing, and the codes by which a request fails with them."""

SPENT = "spent"
"""In the detail of a run: its rung has had its result, or has shown that it cannot have one."""


@dataclass(frozen=True)
class Recipe:
    """A method with all of its parameters."""

    method: str
    params: Mapping[str, Any]


def ladder_of(method: str, params: Mapping[str, Any], policy: Mapping[str, Any]) -> tuple[Recipe, ...]:
    """A request's recipes, first to last.

    Args:
        method, params, policy: of the request's row. A policy that allows more attempts than there are recipes of `auto` leaves
            the rest unused.
    """
    if method == AUTO:
        return tuple(Recipe(one["method"], one["params"]) for one in params[LADDER])
    return (Recipe(method, params),) * int(policy.get("attempts", 1))


def rung_after(details: Iterable[Mapping[str, Any] | None]) -> int:
    """The rung that the next run works on, from 1: the one after the last that is spent. It may be beyond the ladder.

    Args:
        details: of the request's runs so far, in any order.
    """
    return 1 + max((int(d.get("rung", 1)) for d in details if d and d.get(SPENT)), default=0)


def seed_at(seed: int, rung: int) -> int:
    """The seed of a rung's training: the request's own on the first, and then others that follow from it."""
    if rung == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{rung}".encode()).digest(), "big") % 2**53
