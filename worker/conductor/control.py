"""The sweeper: every so often it rings for what is due, takes back what is lost, and clears what dead workers left.

It runs as a thread of every worker. Many sweepers are as good as one: a ring too many finds nothing to claim, and a lost
request is taken back under its row's lock. It also says that its worker is there, and reminds the notary, who has the ledger
signed.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta

from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session as OrmSession

from service import db, garbage, outbox
from service.audit import retention, vault
from service.audit.leaves import Actor
from service.compliance import deadlines
from service.outbox import Due, Held
from service.requests import endings, leases
from service.storage import StoreError
from service.workers import repository as workers
from worker.conductor import app as bell
from worker.conductor import purging, workspace
from worker.conductor.heart import database_is_away
from worker.conductor.identity import is_dead_here
from worker.conductor.pipeline import Room

log = logging.getLogger("expunge.sweeper")

SLOTS = 1
"""Runs at a time of one worker: a run has all of its GPUs."""
RING_AGAIN_SECONDS = 5.0
"""A ring that nobody answered is repeated after so long, then ever more slowly: bells must not pile up in a broker."""
SLOWEST_RING_SECONDS = 60.0
DIRECTORIES_SECONDS = 60.0
CACHES_SECONDS = 60.0
DEADLINE_SECONDS = 60.0
RETENTION_SECONDS = 3600.0
GARBAGE_SECONDS = 6 * 3600.0


@dataclass
class Bells:
    """When each waiting request was last rung for, and how long to leave it alone now."""

    rung: dict[Due, tuple[float, float]] = field(default_factory=dict)

    def choose(self, due: list[Due], now: float) -> list[Due]:
        """Those that may be rung for at `now` (seconds, monotonic); forgets what is no longer due."""
        self.rung = {wait: known for wait, known in self.rung.items() if wait in set(due)}
        return [wait for wait in due if wait not in self.rung or now >= sum(self.rung[wait])]

    def note(self, wait: Due, now: float) -> None:
        """It was rung for at `now`."""
        pause = self.rung[wait][1] * 2 if wait in self.rung else RING_AGAIN_SECONDS
        self.rung[wait] = (now, min(pause, SLOWEST_RING_SECONDS))


@dataclass
class Sweeper:
    """One worker's sweeper."""

    app: Celery
    room: Room
    bells: Bells = field(default_factory=Bells)
    healthy_since: float | None = None
    """Since when (seconds, monotonic) the database has answered without a gap, and this sweeper has been awake."""
    awake_at: tuple[float, float] | None = None
    """When it was last seen to be awake: monotonic, which stands still while a machine sleeps, and the wall's clock."""
    directories_at: float = 0.0
    caches_at: float = 0.0
    deadlines_at: float = 0.0
    retention_at: float = 0.0
    garbage_at: float = 0.0
    collecting: threading.Thread | None = None
    touch_at: float = 0.0

    def run(self, stop: threading.Event) -> None:
        """Sweep until `stop` is set."""
        while not stop.wait(self.room.settings.sweep_seconds):
            self.sweep()

    def sweep(self) -> None:
        """One round. A database or a broker that does not answer spoils a round, never the sweeper."""
        self._notice_sleep()
        try:
            with db.reading() as session:
                held, due = outbox.held(session), self._due(session)
            self._touch()
            self.healthy_since = self.healthy_since if self.healthy_since is not None else time.monotonic()
            self._take_back(held)
            self._clear_directories()
            self._purge_caches()
            if self.room.notary is not None:
                self.room.notary.look()
            self._watch_deadlines()
            self._shred_what_is_over()
            self._collect_garbage()
        except Exception as error:
            self.healthy_since = None
            known = database_is_away(error)
            log.warning("sweep.failed", extra={"kind": type(error).__name__}, exc_info=None if known else error)
            return
        self._ring(due)

    def _touch(self) -> None:
        """Say that this worker is there. Not at every sweep of an impatient one: each is a write."""
        if time.monotonic() < self.touch_at:
            return
        room, host = self.room, self.room.owner.partition("|")[0]
        sign = workers.Sign(
            id=leases.digest(room.owner),
            host=leases.digest(host),
            gpu_classes=room.settings.gpu_classes,
            state="draining" if room.draining.is_set() else "active",
            request_id=room.request_id,
        )
        with db.transaction() as session:
            workers.touch(session, sign)
        self.touch_at = time.monotonic() + workers.SHORTEST_PAUSE_SECONDS

    def leave(self) -> None:
        """Say that this worker is not there any more. One that cannot say so is soon seen to be gone."""
        try:
            with db.transaction() as session:
                workers.leave(session, leases.digest(self.room.owner))
        except Exception as error:
            if not database_is_away(error):
                raise
            log.warning("leave.failed", extra={"kind": type(error).__name__})

    def _due(self, session: OrmSession) -> list[Due]:
        settings = self.room.settings
        most = settings.max_active_requests
        return outbox.due(session, limit=SLOTS, classes=settings.gpu_classes, most_active=most)

    # ------------------------------------------------------------------------------------------------------ the doorbell

    def _ring(self, due: list[Due]) -> None:
        """At most one bell a free slot, or a long queue would fill the broker with bells."""
        if self.room.busy.is_set() or self.room.draining.is_set() or self.room.still_here():
            return
        now = time.monotonic()
        for wait in self.bells.choose(due, now):
            try:
                bell.ring(self.app, wait.request_id, wait.gpu_class)
            except (KombuError, OSError) as error:
                log.warning("bell.failed", extra={"kind": type(error).__name__})
                return
            self.bells.note(wait, now)

    # -------------------------------------------------------------------------------------------------------- the reaper

    def _take_back(self, held: list[Held]) -> None:
        still_here = self.room.still_here()
        for one in held:
            if (one.request_id, one.fence) in still_here:
                continue  # ours, and its processes are still here: nobody may be told that it has ended
            if is_dead_here(one.owner):
                self._reap(one, "its worker's process is gone", only_expired=False)
            elif one.owner == self.room.owner and not self.room.busy.is_set():
                # ours, and we are not at it: the attempt ended while the database was away
                self._reap(one, "its worker ended the attempt and could not say so", only_expired=False)
            elif one.expired and self._may_judge():
                self._reap(one, "its worker fell silent and the lease ran out", only_expired=True)

    def _may_judge(self) -> bool:
        """After a database outage every lease looks expired: their holders get one lease's time to renew.

        So it is after a sleep of this process, of its machine with the laptop's lid closed, or a jump of the clock: the holder
        may be this very worker, whose heart beats again in a moment.
        """
        self._notice_sleep()  # it may have slept since the leases were read
        healthy = self.healthy_since
        return healthy is not None and time.monotonic() - healthy >= self.room.settings.lease_seconds

    def _notice_sleep(self) -> None:
        settings, now, last = self.room.settings, (time.monotonic(), time.time()), self.awake_at
        self.awake_at = now
        # A lease that was renewed up to the moment it fell asleep may be over after any longer sleep.
        longest = max(settings.lease_seconds - 2 * settings.renew_seconds, settings.lease_seconds / 2)
        if last is not None and max(now[0] - last[0], now[1] - last[1]) > longest:
            self.healthy_since = None

    def _reap(self, one: Held, reason: str, *, only_expired: bool) -> None:
        with db.transaction() as session:
            status = endings.reap(
                session,
                one.request_id,
                one.fence,
                max_attempts=self.room.settings.max_attempts,
                reason=reason,
                only_expired=only_expired,
            )
        if status is not None:
            extra = {"request": one.request_id, "fence": one.fence, "why": reason, "status": status}
            log.warning("request.taken_back", extra=extra)
            self.directories_at = 0.0

    def _clear_directories(self) -> None:
        """On this host: the directories of requests that are over, and what dead attempts left of the others."""
        if time.monotonic() < self.directories_at:
            return

        def standing(request_ids: list[str]) -> dict[str, tuple[str, int]]:
            with db.reading() as session:
                return outbox.standing(session, request_ids)

        workspace.sweep(self.room.settings, standing)
        self.directories_at = time.monotonic() + DIRECTORIES_SECONDS

    def _purge_caches(self) -> None:
        """On this host: what was computed from data that a lineage has forgotten by now, wherever that was published."""
        if time.monotonic() < self.caches_at:
            return
        purging.sweep(self.room.settings, Actor(kind="worker", id=leases.digest(self.room.owner)))
        self.caches_at = time.monotonic() + CACHES_SECONDS

    def _watch_deadlines(self) -> None:
        """Say which legal deadlines come near, or have passed."""
        if time.monotonic() < self.deadlines_at:
            return
        with db.reading() as session:
            found = deadlines.candidates(session)
        for request_id, kind in found:
            with db.transaction() as session:
                if deadlines.say(session, request_id, kind):
                    log.warning("request.deadline", extra={"request": request_id, "event": kind})
        self.deadlines_at = time.monotonic() + DEADLINE_SECONDS

    def _shred_what_is_over(self) -> None:
        """Private data that were kept long enough. Every worker looks; what one has done, the next finds done."""
        if time.monotonic() < self.retention_at:
            return
        self.retention_at = time.monotonic() + RETENTION_SECONDS
        settings = self.room.settings
        try:
            retention.sweep(vault.get_keys(settings), settings.retain_private_months)
        except OSError as error:  # of the keys' folder: no reason to leave requests unattended
            log.error("retention.failed", extra={"kind": type(error).__name__})

    def _collect_garbage(self) -> None:
        """What nobody names in the store. In a thread of its own: listing a bucket takes long, and bells must not wait."""
        if time.monotonic() < self.garbage_at or (self.collecting is not None and self.collecting.is_alive()):
            return
        self.garbage_at = time.monotonic() + GARBAGE_SECONDS
        self.collecting = threading.Thread(target=self._collect, name="garbage", daemon=True)
        self.collecting.start()

    def _collect(self) -> None:
        try:
            garbage.collect(self.room.store, older=timedelta(days=self.room.settings.store_grace_days))
        except (StoreError, OperationalError) as error:  # it can wait for the next time
            log.error("garbage.failed", extra={"kind": type(error).__name__, "why": _plain(error)})


def _plain(error: Exception) -> str:
    return str(error) if isinstance(error, StoreError) else "the database did not answer"
