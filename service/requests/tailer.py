"""One reader of new events for all who follow: the rows are read once, and handed to as many listeners as there are.

A listener is a queue of the event loop: it holds no thread and no connection. The reader is one task, which borrows one thread
and one connection for a short read every so often, and it is there only while somebody listens.

Ids are drawn before their transactions commit, so on PostgreSQL 12 may be visible while 11 still is to come: whoever was handed
12 and asked for "after 12" later would never hear of 11. So nothing after a missing id is handed on until that id is there, or
nobody is left who could bring it: every transaction that was running when it was missed has ended. (SQLite has one writer at a
time; what is missing there was rolled back.)
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.db import now, reading
from service.requests.responses import ProjectEventRead
from service.tables import RequestEvent, UnlearnRequest

log = logging.getLogger("expunge.events")

POLL_SECONDS = 0.3
BATCH = 200
QUEUE = 1000
"""Events that a listener may be behind. One that is further is dropped: it comes back and resumes by its last id."""
SETTLE_SECONDS = 1.0
"""A missing id is waited for at least so long: it is drawn an instant before its transaction has a number."""
GIVE_UP_SECONDS = 30.0
"""And at most so long. Our own transactions do not live half of it; somebody else's, in the same server, may live for hours."""
RECENT = timedelta(seconds=60)
"""An id that is missing below an event of this age is not coming any more."""


@dataclass(frozen=True)
class Gap:
    """Ids that were missed, `first` to `last`."""

    first: int
    last: int
    noticed: float
    """Seconds, monotonic."""
    horizon: int
    """The next transaction's number when they were missed."""


@dataclass
class Frontier:
    """Up to `id` every event was seen, or will never be. Pure: clock and transaction numbers are arguments."""

    id: int
    gaps: list[Gap] = field(default_factory=list)

    def missing(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """The gaps below these ascending ids that nobody has noticed yet."""
        return [(a, b) for a, b in self._between(ids) if self._known(a, b) is None]

    def notice(self, missing: list[tuple[int, int]], *, at: float, horizon: int) -> None:
        """Remember gaps."""
        self.gaps += [Gap(first, last, at, horizon) for first, last in missing]

    def advance(self, ids: list[int], *, at: float, oldest: int) -> int:
        """How many of these ascending ids may be handed on; the frontier moves behind them.

        Args:
            oldest: the number of the oldest transaction that still ran before the ids were read.
        """
        passed = 0
        for number in ids:
            if number > self.id + 1 and not self._settled(self.id + 1, number - 1, at, oldest):
                break
            self.id = number
            passed += 1
        self.gaps = [gap for gap in self.gaps if gap.last > self.id]
        return passed

    def _settled(self, first: int, last: int, at: float, oldest: int) -> bool:
        gap = self._known(first, last)
        if gap is None:
            return False
        if at - gap.noticed >= GIVE_UP_SECONDS:
            return True
        return oldest >= gap.horizon and at - gap.noticed >= SETTLE_SECONDS

    def _known(self, first: int, last: int) -> Gap | None:
        return next((gap for gap in self.gaps if gap.first <= first and last <= gap.last), None)

    def _between(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        found, before = [], self.id
        for number in ids:
            if number > before + 1:
                found.append((before + 1, number - 1))
            before = number
        return found


def begin() -> Frontier:
    """Where a reader starts that knows nothing: behind it nothing is coming any more. One short read."""
    with reading() as session:
        since = now(session) - RECENT
        rows = session.execute(select(RequestEvent.id, RequestEvent.at).order_by(RequestEvent.id.desc()).limit(BATCH * 5)).all()
    if not rows:
        return Frontier(0)
    old = next((number for number, at in rows if at <= since), rows[-1][0] - 1)
    frontier = Frontier(old)
    frontier.advance([number for number, _ in reversed(rows) if number > old], at=time.monotonic(), oldest=0)
    return frontier


@dataclass(frozen=True)
class Told:
    """An event, and the project that it belongs to."""

    project_id: str
    event: ProjectEventRead


def look(frontier: Frontier) -> tuple[list[Told], bool]:
    """The next events, and whether more are there already. Moves the frontier. One short read."""
    with reading() as session:
        sqlite = session.get_bind().dialect.name == "sqlite"
        oldest = 0 if sqlite or not frontier.gaps else _snapshot(session, "xmin")  # before the rows are read
        chosen = select(RequestEvent, UnlearnRequest.project_id).join(
            UnlearnRequest, UnlearnRequest.id == RequestEvent.request_id
        )
        rows = session.execute(chosen.where(RequestEvent.id > frontier.id).order_by(RequestEvent.id).limit(BATCH)).all()
        ids = [row.id for row, _ in rows]
        if sqlite:
            frontier.id = ids[-1] if ids else frontier.id
            return [Told(project, shown(row)) for row, project in rows], len(rows) == BATCH
        at = time.monotonic()
        if missing := frontier.missing(ids):
            frontier.notice(missing, at=at, horizon=_snapshot(session, "xmax"))
        passed = frontier.advance(ids, at=at, oldest=oldest)
        return [Told(project, shown(row)) for row, project in rows[:passed]], passed == BATCH


def _snapshot(session: OrmSession, what: str) -> int:
    return int(session.execute(text(f"SELECT pg_snapshot_{what}(pg_current_snapshot())::text")).scalar_one())


def shown(row: RequestEvent) -> ProjectEventRead:
    """As clients see it."""
    return ProjectEventRead(id=row.id, request_id=row.request_id, type=row.type, data=row.data, at=row.at)


@dataclass(eq=False)
class Listener:
    """Somebody who follows a request, or all (None), of a project, or of all (None).

    `since`: what it is handed comes after this id.
    """

    request_id: str | None
    project_id: str | None
    since: int
    queue: asyncio.Queue[ProjectEventRead] = field(default_factory=lambda: asyncio.Queue(QUEUE))
    dropped: bool = False

    def hand(self, told: Told) -> None:
        """Never waits."""
        wanted = self.request_id in (None, told.event.request_id) and self.project_id in (None, told.project_id)
        if self.dropped or not wanted:
            return
        try:
            self.queue.put_nowait(told.event)
        except asyncio.QueueFull:
            self.dropped = True

    async def next(self, seconds: float) -> ProjectEventRead | None:
        """The next event; None: none came in time. Raises: Dropped."""
        if self.dropped and self.queue.empty():
            raise Dropped
        try:
            return await asyncio.wait_for(self.queue.get(), seconds)
        except TimeoutError:
            return None


class Dropped(Exception):
    """The listener was too slow, or the reader broke: end the stream, so that its client comes back."""


class Tailer:
    """The one reader of a process, and its listeners. All of it happens in one event loop."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._starting = asyncio.Lock()
        self._frontier: Frontier | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @asynccontextmanager
    async def listening(self, request_id: str | None) -> AsyncIterator[Listener]:
        """Hear of every event after the listener's `since`, until the block ends. What came before is in the table."""
        async with self._starting:
            if self._frontier is None or not self.running:
                # in a context of its own: what the first listener may see is no limit to what is read for the others
                self._frontier = await asyncio.create_task(_borrowed(), context=contextvars.Context())
                self._task = asyncio.create_task(self._run(self._frontier), context=contextvars.Context())
            listener = Listener(request_id, tenancy.project(), self._frontier.id)
            self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners and self._task is not None and not self._starting.locked():
                self._task.cancel()
                self._task = self._frontier = None

    async def _run(self, frontier: Frontier) -> None:
        thread = CapacityLimiter(1)  # not one of those that requests wait for
        try:
            while True:
                try:
                    events, more = await run_sync(look, frontier, limiter=thread)
                except OperationalError as error:  # the listeners keep hearing pings, and nothing is lost
                    log.warning("events.waiting", extra={"kind": type(error).__name__})
                    events, more = [], False
                for event in events:
                    for listener in self._listeners:
                        listener.hand(event)
                if not more:
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            for listener in self._listeners:
                listener.dropped = True


async def _borrowed() -> Frontier:
    return await run_sync(begin)
