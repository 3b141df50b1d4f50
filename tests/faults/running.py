"""Running scenarios: on one stack after the other, counting after each, and the controls that must fail."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from tests.faults import invariants
from tests.faults.scenarios import SCENARIOS, Scenario, Size
from tests.faults.scenarios.brokers import broker_half_open
from tests.faults.scenarios.databases import database_away_under_a_run
from tests.faults.scenarios.processes import control_ranks_outlive_their_agent
from tests.faults.stack import Kind, Servers, Stack, opened


@dataclass(frozen=True)
class Row:
    """What became of one test."""

    number: int
    name: str
    kind: str
    seed: int
    seconds: float
    why: str = ""
    """Empty: it passed."""

    @property
    def passed(self) -> bool:
        return not self.why

    def __str__(self) -> str:
        end = "passed" if self.passed else f"FAILED: {self.why}"
        return f"{self.number:>2}  {self.name:<34} {self.kind:<10} seed {self.seed}  {self.seconds:6.1f} s  {end}"


def run(kind: Kind, servers: Servers, scenarios: Iterable[Scenario], seed: int, size: Size, **settings: str) -> Iterator[Row]:
    """Each of these on one installation; on a new one after a failure."""
    with ExitStack() as open_now:
        stack: Stack | None = None
        for one in scenarios:
            if kind not in one.kinds:
                continue
            began = time.monotonic()
            try:
                if stack is None:
                    stack = open_now.enter_context(opened(kind, servers, **settings))
                once(stack, one, seed, size)
            except Exception as error:
                traceback.print_exc()
                open_now.close()
                stack = None
                yield Row(one.number, one.name, kind, seed, time.monotonic() - began, _plain(error))
            else:
                yield Row(one.number, one.name, kind, seed, time.monotonic() - began)


def once(stack: Stack, one: Scenario, seed: int, size: Size) -> None:
    """A scenario and the global rule. Raises: AssertionError."""
    one.run(stack, random.Random(f"{seed} {one.name} {stack.kind}"), size)
    invariants.require(stack)


def chosen(names: Iterable[str]) -> list[Scenario]:
    """By name or number; all where nothing is said."""
    wanted = set(names)
    return [s for s in SCENARIOS if not wanted or s.name in wanted or str(s.number) in wanted]


def _plain(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ----------------------------------------------------------------------------------------------------------- the controls


@dataclass(frozen=True)
class Control:
    """A test without the safeguard that it is there to prove. It must fail, and for that reason."""

    name: str
    kind: Kind
    off: tuple[str, ...]
    run: Callable[[Stack], None]
    expected: str


def controls(size: Size) -> list[Control]:
    return [
        Control(
            "reaper hold off", "production", ("reaper_hold",),
            lambda stack: database_away_under_a_run(stack, random.Random(0), size), "a healthy run was taken away",
        ),
        Control(
            "socket_timeout unset", "production", ("socket_timeout",),
            lambda stack: broker_half_open(stack, random.Random(0), size), "not within",
        ),
        Control("rank death signal removed", "embedded", (), control_ranks_outlive_their_agent, "not within"),
    ]  # fmt: skip


def failed_as_it_must(control: Control, servers: Servers) -> bool:
    """True when the test failed, and with the words that the missing safeguard makes it fail with."""
    with opened(control.kind, servers, off=control.off) as stack:
        try:
            control.run(stack)
        except AssertionError as error:
            return control.expected in str(error)
    return False
