"""Refusals in the ledger, which nobody must be able to grow at will: entries stay for ever.

Time runs in windows. In each, the first refusal of a kind is an entry at once; the next ones are counted, and are one more
entry when the window ends. A kind is who, which key, why and for which scope. After `KINDS` of them, all further kinds share
one count. So a process adds at most 2 * KINDS + 1 entries a window, whatever it is sent; and it takes a key that there is, or
a known caller, to add any. A process that is killed takes the counts of one window with it, never a first entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from service import tenancy
from service.access.errors import Attempt
from service.access.facts import AccessDenied
from service.audit import ledger
from service.audit.leaves import Actor, rfc3339
from service.edge import writing

WINDOW_SECONDS = 600.0
KINDS = 20
ACCESS = Actor(kind="service", id="access")
"""Who says so where it is not known who tried."""
_MANY = Attempt(ACCESS, tenancy.HOME, "many")


@dataclass
class _Tally:
    count: int
    since: datetime


class Denials:
    """One process's refusals."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._tallies: dict[Attempt, _Tally] = {}

    def note(self, attempt: Attempt) -> None:
        """Write it down, or count it. Blocks for a transaction. Raises: what the database raises."""
        self.flush()
        at = datetime.now(UTC)
        with self._lock:
            known = self._tallies.get(attempt)
            if known is None and len(self._tallies) >= KINDS:
                attempt = _MANY
                known = self._tallies.setdefault(_MANY, _Tally(0, at))
            if known is not None:
                if known.count == 0:
                    known.since = at
                known.count += 1
                return
            self._tallies[attempt] = _Tally(0, at)
        try:
            _write({attempt: _Tally(1, at)})
        except BaseException:
            with self._lock:
                self._tallies.pop(attempt, None)
            raise

    def flush(self, *, at_once: bool = False) -> None:
        """When the window has ended, or at once: write what was counted, and begin the next. Raises: as the database does."""
        with self._lock:
            now = self._clock()
            if not at_once and now - self._began < WINDOW_SECONDS:
                return
            self._began = now
            done, self._tallies = self._tallies, {}
        counted = {attempt: tally for attempt, tally in done.items() if tally.count}
        try:
            _write(counted)
        except BaseException:
            with self._lock:
                for attempt, tally in counted.items():
                    self._tallies.setdefault(attempt, _Tally(0, tally.since)).count += tally.count
            raise


def _write(tallies: dict[Attempt, _Tally]) -> None:
    for attempt, tally in tallies.items():
        fact = AccessDenied(
            reason=attempt.reason, key_id=attempt.key_id, scope=attempt.scope, count=tally.count, since=rfc3339(tally.since)
        )
        with tenancy.acting(attempt.project), writing() as session:
            ledger.append(session, fact, actor=attempt.actor)
