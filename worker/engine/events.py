"""Progress, one JSON line an event, appended to `events.jsonl` by the first rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from worker.contract import Event

MIN_INTERVAL_SECONDS = 0.2
"""Progress lines are no closer than this; the first and the last are always written."""


class Events:
    """A phase's narrator. On any rank but the first it is silent, so callers need not ask."""

    def __init__(self, path: Path, phase: str, *, speaks: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._phase, self._speaks, self._clock = path, phase, speaks, clock
        self._last = -float("inf")

    def begin(self) -> None:
        """The phase began."""
        self._write(Event(at=time.time(), kind="phase", phase=self._phase))

    def progress(self, completed: int, total: int, unit: str, *, remaining_seconds: float | None = None) -> None:
        """Work advanced to `completed` of `total` units; `remaining_seconds` is an estimate, None when unknown."""
        now = self._clock()
        if now - self._last < MIN_INTERVAL_SECONDS and completed not in (0, total):
            return
        self._last = now
        self._write(
            Event(
                at=time.time(),
                kind="progress",
                phase=self._phase,
                completed=completed,
                total=total,
                unit=unit,
                estimated_remaining_seconds=remaining_seconds,
            )
        )

    def note(self, values: Mapping[str, JsonValue]) -> None:
        """A fact worth keeping. Never an image, a path or a secret."""
        self._write(Event(at=time.time(), kind="note", phase=self._phase, values=dict(values)))

    def _write(self, event: Event) -> None:
        if self._speaks:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(event.model_dump_json(exclude_none=True) + "\n")


class Eta:
    """Seconds left, from the pace since this run began (a resumed run does not count what it did not do)."""

    def __init__(self, done_before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._done_before, self._clock, self._began = done_before, clock, clock()

    def remaining(self, completed: int, total: int) -> float | None:
        """None until one unit is done."""
        done = completed - self._done_before
        return (self._clock() - self._began) / done * (total - completed) if done > 0 else None


class Progress:
    """How many units of a phase's work are done of how many, told at every step. The pace counts from the first step on."""

    def __init__(self, events: Events, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._events, self._unit, self._clock = events, unit, clock
        self._done, self._wanted = 0, 0
        self._eta: Eta | None = None

    def foresee(self, left: int) -> None:
        """So many units are left, whatever was said before."""
        self._wanted = self._done + left

    def expect(self, more: int) -> None:
        """So many units more than was foreseen."""
        self._wanted += more

    def advance(self, units: int) -> None:
        """So many units are done; 0 is a sign of life."""
        if self._eta is None:  # not before: what came earlier, such as training a judge, says nothing of the pace
            self._eta = Eta(0, self._clock)
        self._done += units
        self._wanted = max(self._wanted, self._done)
        left = self._eta.remaining(self._done, self._wanted)
        self._events.progress(self._done, self._wanted, self._unit, remaining_seconds=left)
