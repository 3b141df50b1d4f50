"""Keeping a lease alive: a thread that renews it, carries progress to the row, and hears of cancellation.

A thread of its own, so that neither a slow disk nor a long file copy lets a lease run out, and a database that does not
answer stops nobody from supervising.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session as OrmSession

from service import db
from service.config import Settings
from service.requests import leases
from service.requests.leases import Lease, LeaseLost, Progress
from service.requests.lifecycle import Phase, Wish
from worker.conductor.outcomes import Cancelled, Drained, Paused

log = logging.getLogger("expunge.conductor")

LOOK_SECONDS = 1.0
"""At most so long after a cancellation or an advance somebody else can see it, whatever the pause between renewals."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
NEEDS_NO_GPU: frozenset[Phase] = frozenset({"certifying", "publishing"})
"""Phases that a pause lets go on: the result has been verified, and to stop now would only mean to verify it again."""
T = TypeVar("T")


def database_is_away(error: Exception) -> bool:
    """True for errors that pass when the database comes back; a violated rule never does."""
    lost_connection = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost_connection or isinstance(error, OperationalError | PoolTimeout)


class Heart:
    """Beats for one lease, from `with` to the end of the block."""

    def __init__(self, lease: Lease, settings: Settings, draining: threading.Event) -> None:
        self.lease = lease
        self.lost = threading.Event()
        self.cancel = threading.Event()
        self.pause = threading.Event()
        self.draining = draining
        self._settings = settings
        self._phase: Phase | None = None
        self._progress: Progress | None = None
        self._written: Progress | None = None
        self._renewed = time.monotonic()
        self._stop = threading.Event()
        self._turn = threading.Lock()  # a phase and its progress are written one after the other
        context = contextvars.copy_context()  # its log lines name the request and the trace, as the others do
        self._thread = threading.Thread(target=context.run, args=(self._beat,), name=f"heart-{lease.fence}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    # ------------------------------------------------------------------------------------------------ for the pipeline

    def report(self, progress: Progress) -> None:
        """Tell how far the phase has come; the row hears of it at the next beat."""
        self._progress = progress

    def check(self, *, may_drain: bool = True) -> None:
        """Call it between two steps of anything long. Raises: LeaseLost, Cancelled, Paused, Drained."""
        if self.lost.is_set():
            raise LeaseLost(self.lease.request_id)
        if self.cancel.is_set():
            raise Cancelled
        if self.pause.is_set() and self._phase not in NEEDS_NO_GPU:
            raise Paused
        if may_drain and self.draining.is_set():
            raise Drained

    def enter(self, phase: Phase, *, may_drain: bool = True) -> None:
        """Cross into a phase: the row says so, and a cancellation that came before stops here. Raises: as `check`."""
        with self._turn:
            self._progress = self._written = None
            asked = self.write(
                lambda session: leases.renew(session, self.lease, lease_seconds=self._settings.lease_seconds, phase=phase)
            )
            self._phase = phase
        self._heed(asked)
        self.check(may_drain=may_drain)
        log.info("phase.entered", extra={"request": self.lease.request_id, "fence": self.lease.fence, "phase": phase})

    def write(self, change: Callable[[OrmSession], T]) -> T:
        """Run one short transaction, again and again until the database has answered.

        Gives up only when the worker is draining and its grace is over; then the lease recovers the request.

        Raises:
            LeaseLost: the answer.
            Exception: whatever else `change` raises.
        """
        pause, deadline = FIRST_PAUSE, None
        while True:
            try:
                with db.transaction() as session:
                    return change(session)
            except Exception as error:
                if not database_is_away(error):
                    raise
                log.warning("database.away", extra={"request": self.lease.request_id, "kind": type(error).__name__})
                if self.draining.is_set():
                    deadline = deadline or time.monotonic() + self._settings.stop_grace_seconds
                    if time.monotonic() > deadline:
                        raise
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    # ----------------------------------------------------------------------------------------------------- the thread

    def _beat(self) -> None:
        pause = min(self._settings.renew_seconds, LOOK_SECONDS)
        wait = pause
        while not self._stop.wait(wait):
            try:
                with self._turn:
                    asked = self._once()
                wait = pause
            except LeaseLost:
                log.info("lease.gone", extra={"request": self.lease.request_id, "fence": self.lease.fence})
                self.lost.set()
                return
            except Exception as error:
                # Not a reason to stop: publishing is fenced, and a worker that gives up at every hiccup loses hours.
                fields = {"request": self.lease.request_id, "kind": type(error).__name__}
                log.warning("renewal.failed", extra=fields, exc_info=None if database_is_away(error) else error)
                wait = min(max(wait, FIRST_PAUSE) * 2, LONGEST_PAUSE)
                continue
            self._heed(asked)

    def _heed(self, asked: Wish | None) -> None:
        match asked:
            case "cancel":
                self.cancel.set()
            case "pause":
                self.pause.set()

    def _once(self) -> Wish | None:
        progress = self._progress
        is_news = progress is not None and progress != self._written
        if not is_news and time.monotonic() - self._renewed < self._settings.renew_seconds:
            with db.reading() as session:
                return leases.asked(session, self.lease)
        with db.transaction() as session:
            asked = leases.renew(session, self.lease, lease_seconds=self._settings.lease_seconds, progress=progress)
        self._renewed, self._written = time.monotonic(), progress
        return asked
