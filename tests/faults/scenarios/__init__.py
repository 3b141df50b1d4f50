"""The fifteen tests, by what they break. Each is a function of a stack, a seeded generator and sizes; it drains nothing itself.

Whoever calls one afterwards drains the stack and counts (`tests.faults.invariants`): that is every scenario's other half.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.stack import KINDS, Kind, Stack


@dataclass(frozen=True)
class Size:
    """How much of everything. FULL is the design's, but for the hours."""

    posts: int = 200
    kills: int = 10
    queued: int = 200
    moments: int = 20
    behind: int = 20
    ranks_seconds: float = 20.0
    outages: tuple[float, ...] = (2.0, 60.0)
    """Seconds that a broker is down."""
    soak_seconds: float = 120.0


FULL = Size()
SHORT = Size(
    posts=8, kills=1, queued=4, moments=2, behind=3, ranks_seconds=8.0, outages=(1.0,), soak_seconds=8.0
)  # fmt: skip

Run = Callable[[Stack, random.Random, Size], None]


@dataclass(frozen=True)
class Scenario:
    """One of the fifteen."""

    number: int
    name: str
    run: Run
    kinds: tuple[Kind, ...] = KINDS


SCENARIOS: list[Scenario] = []


def scenario(number: int, *kinds: Kind) -> Callable[[Run], Run]:
    """Register a scenario under the number that it has in the design."""

    def register(run: Run) -> Run:
        SCENARIOS.append(Scenario(number, run.__name__, run, kinds or KINDS))
        SCENARIOS.sort(key=lambda s: (s.number, s.name))
        return run

    return register


from tests.faults.scenarios import brokers, databases, people, processes, submitting, workers  # noqa: E402, F401
