"""Holding a request: claim it, keep it, write down what happens meanwhile. How an attempt ends is in `endings`.

A lease is (request, fence, owner). The claim raises the fence, and every later write names all three, so a worker that was
thought dead and comes back changes nothing. Times are the database's. Each function is one short transaction of its caller;
business rows first, the ledger last.

    claim -> renew* -> publish | fail | retry | give_back | pause | cancelled
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import (
    Actor,
    EvaluationFinished,
    EvaluationRejected,
    Fact,
    RunStarted,
)
from service.db import now
from service.outbox import claimable, due
from service.requests import quotas, repository
from service.requests.events import tell
from service.requests.lifecycle import HOLDS_LINEAGE, Phase, Wish
from service.requests.rungs import REJECTED, SPENT, ladder_of, rung_after
from service.tables import Attempt, LedgerEntry, Model, ModelVersion, UnlearnRequest
from service.values import sha256_of

BEFORE = "rejected_before"
"""In the detail of a run with a report: other requests for the same that had been rejected by then."""


PHASES = "phases"
"""In the detail of a run: when it entered which phase."""
CANDIDATES = 8
"""A worker that finds this many of the best requests taken before its eyes looks again at the next bell."""


def digest(name: str) -> str:
    """A machine or a worker as others may see it: its name says too much of where it stands."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Lease:
    """The right to work on a request until somebody else raises its fence."""

    request_id: str
    fence: int
    owner: str
    rung: int = 1
    """Which of the request's recipes is worked on, from 1."""
    rungs: int = 1
    """How many it has."""
    traceparent: str | None = None
    """The trace that the request was made in."""

    @property
    def last_rung(self) -> bool:
        return self.rung >= self.rungs

    @property
    def shown_rung(self) -> dict[str, int]:
        """What followers of a request see of it; nothing where there is but one."""
        return {"rung": self.rung, "rungs": self.rungs} if self.rungs > 1 else {}

    @property
    def actor(self) -> Actor:
        """The worker as audit entries name it: a digest, since an owner's name holds that of its machine."""
        return Actor(kind="worker", id=digest(self.owner))


@dataclass(frozen=True)
class Progress:
    """How far a phase has come. `unit` is the engine's word (iteration, image); the estimate is in seconds."""

    completed: int | None = None
    total: int | None = None
    unit: str | None = None
    estimated_remaining_seconds: float | None = None

    @property
    def percent(self) -> int | None:
        return None if self.completed is None or not self.total else 100 * self.completed // self.total


class LeaseLost(Exception):
    """Somebody else holds the request, or it has ended: stop at once and write nothing."""


class NoRoom(Exception):
    """As many requests run as may run at once: roll back, for the claim has been written."""


# --------------------------------------------------------------------------------------------------- taking and keeping


def claim_next(
    session: OrmSession, *, owner: str, lease_seconds: float, classes: Collection[str], most_active: int = 0
) -> Lease | None:
    """Take the request that comes first among those that this worker may run. None: there is none.

    Args:
        classes: GPU classes that the worker serves.
        most_active: requests of a project that may run at once, those of one with so many are left out; 0: any number.

    Raises:
        NoRoom: another worker took the project's last place meanwhile; the next call leaves that project out.
    """
    for one in due(session, limit=CANDIDATES, classes=classes, most_active=most_active):
        lease = claim(session, one.request_id, owner=owner, lease_seconds=lease_seconds, most_active=most_active)
        if lease is not None:
            return lease
    return None


def claim(session: OrmSession, request_id: str, *, owner: str, lease_seconds: float, most_active: int = 0) -> Lease | None:
    """Take a queued request. None: it is not due, or another worker was quicker.

    One conditional UPDATE decides. Two requests of one model that both pass the condition (PostgreSQL, two snapshots) meet
    at the unique index, and the second one waits. How many run is counted last, under the ledger's lock: whoever else claims
    has been counted by then, or will count this one.

    Raises:
        NoRoom: see there.
    """
    at = now(session)
    base = (
        select(ModelVersion.id)
        .join(Model, Model.id == ModelVersion.model_id)
        .where(Model.id == UnlearnRequest.model_id, ModelVersion.number == Model.current_version)
        .scalar_subquery()
    )
    statement = (
        update(UnlearnRequest)
        .where(UnlearnRequest.id == request_id, claimable(at))
        .values(
            status="running",
            phase="staging",
            fence=UnlearnRequest.fence + 1,
            attempts_charged=UnlearnRequest.attempts_charged + 1,
            version=UnlearnRequest.version + 1,
            lease_owner=owner,
            lease_expires_at=at + timedelta(seconds=lease_seconds),
            base_version_id=base,
        )
        .returning(UnlearnRequest.id)
        .execution_options(synchronize_session=False)
    )
    try:
        with session.begin_nested():
            if session.execute(statement).scalar_one_or_none() is None:
                return None
    except IntegrityError:
        return None
    row = session.get_one(UnlearnRequest, request_id, populate_existing=True)
    row.started_at = row.started_at or at
    recipes = ladder_of(row.method, row.params, row.policy)
    # a row that says otherwise than its runs do is not the claim's to judge: the last recipe once more, and it ends
    rung = min(rung_after(details(session, request_id)), len(recipes))
    lease = Lease(request_id, row.fence, owner, rung, len(recipes), row.traceparent)
    session.add(Attempt(request_id=request_id, fence=lease.fence, worker=owner, started_at=at, detail={"rung": rung}))
    started: dict[str, Any] = {"fence": lease.fence, "attempt": row.attempts_charged, **lease.shown_rung}
    if lease.shown_rung:
        started["method"] = recipes[rung - 1].method
    announce(session, request_id, "started", started, at)
    fact = RunStarted(fence=lease.fence, base_version_id=str(row.base_version_id))
    ledger.append(session, fact, actor=lease.actor, request_id=request_id, model_id=row.model_id)
    if most_active and quotas.usage(session, row.project_id).active > most_active:
        raise NoRoom(f"{most_active} requests run already")
    return lease


def locked(session: OrmSession, lease: Lease) -> UnlearnRequest:
    """The request's row, locked, while the lease holds.

    Raises:
        LeaseLost: the fence has moved on, the owner has changed, or the request has ended.
    """
    row = session.execute(
        select(UnlearnRequest)
        .where(
            UnlearnRequest.id == lease.request_id,
            UnlearnRequest.fence == lease.fence,
            UnlearnRequest.lease_owner == lease.owner,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if row is None:
        raise LeaseLost(f"request {lease.request_id} is no longer held under fence {lease.fence}")
    return row


def renew(
    session: OrmSession,
    lease: Lease,
    *,
    lease_seconds: float,
    progress: Progress | None = None,
    phase: Phase | None = None,
) -> Wish | None:
    """Extend the lease; write what has changed. Returns what somebody wants of the request, as `asked` does.

    Args:
        progress: written when it differs from the row's; followers hear of whole percents.
        phase: entering a phase; it starts without progress.

    Raises:
        LeaseLost: stop, and write nothing.
    """
    row = locked(session, lease)
    at = now(session)
    row.lease_expires_at = at + timedelta(seconds=lease_seconds)
    before = _progress_of(row)
    if phase is not None and phase != row.phase:
        row.phase = phase
        attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
        entered = {**((attempt.detail or {}).get(PHASES) or {}), phase: at.isoformat()}
        attempt.detail = {**(attempt.detail or {}), PHASES: entered}
        set_progress(row, progress or Progress(), at)
        row.version += 1
        announce(session, row.id, "progress", _shown(row, lease), at)
    elif progress is not None and progress != before:
        set_progress(row, progress, at)
        row.version += 1
        if progress.percent != before.percent:
            announce(session, row.id, "progress", _shown(row, lease), at)
    return _wish(row.status, row.cancel_requested_at)


def asked(session: OrmSession, lease: Lease) -> Wish | None:
    """Whether somebody asked to cancel the request, or to pause it; a read, without a lock. Raises: LeaseLost."""
    found = session.execute(
        select(UnlearnRequest.status, UnlearnRequest.cancel_requested_at).where(
            UnlearnRequest.id == lease.request_id,
            UnlearnRequest.fence == lease.fence,
            UnlearnRequest.lease_owner == lease.owner,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
    ).one_or_none()
    if found is None:
        raise LeaseLost(f"request {lease.request_id} is no longer held under fence {lease.fence}")
    return _wish(*found)


def _wish(status: str, cancel_requested_at: datetime | None) -> Wish | None:
    """A cancellation that reached the row before its status did is still a cancellation."""
    if cancel_requested_at is not None:
        return "cancel"
    return "pause" if status == "pausing" else None


def record(session: OrmSession, lease: Lease, fact: Fact, *, detail: dict[str, Any] | None = None) -> None:
    """Write a fact about the running attempt, and remember `detail` with it. Raises: LeaseLost.

    An attempt says each kind once: repeating it after an answer that got lost on the way changes nothing.
    """
    row = locked(session, lease)
    if _has_said(session, lease, fact.action):
        return
    if detail:
        attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
        attempt.detail = {**(attempt.detail or {}), **detail}
        row.version += 1  # it is shown
    ledger.append(session, fact, actor=lease.actor, request_id=row.id, model_id=row.model_id)


def _has_said(session: OrmSession, lease: Lease, action: str) -> bool:
    """Whether the running attempt has written an entry of this kind: all since the request's latest claim are its own."""
    mine = LedgerEntry.request_id == lease.request_id
    claimed = select(func.max(LedgerEntry.seq)).where(mine, LedgerEntry.action == RunStarted.action).scalar_subquery()
    return bool(session.scalar(select(exists().where(mine, LedgerEntry.action == action, LedgerEntry.seq > claimed))))


def keep_report(
    session: OrmSession,
    lease: Lease,
    *,
    report: dict[str, Any],
    report_sha256: str,
    evidence: list[dict[str, Any]],
    verification_seed: int,
) -> None:
    """Keep what verification saw with the attempt, pass or fail, and say so in the ledger. Raises: LeaseLost.

    A rejected result spends its rung here and now: a worker that dies right after it gets no second look at it. How many
    requests for the same had been rejected by now is kept, too, so that certificate and report say the same of it. Repeating
    it after an answer that got lost on the way changes nothing.

    Args:
        verification_seed: of this rung; it is no secret any more.
    """
    row = locked(session, lease)
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    if attempt.report is not None:
        return
    attempt.report = report
    attempt.evidence = evidence
    row.version += 1
    verdict = str(report["verdict"])
    findings_sha256 = sha256_of(report["findings"])
    seen = {"verification_seed": verification_seed, "report_sha256": report_sha256, "findings_sha256": findings_sha256}
    before = {BEFORE: repository.rejected_alike(session, row)}
    attempt.detail = {**(attempt.detail or {}), **seen, **before, **({SPENT: True} if verdict in REJECTED else {})}
    kind = EvaluationFinished if verdict == "PASS" else EvaluationRejected
    fact = kind(
        fence=lease.fence,
        verdict=verdict,
        report_sha256=report_sha256,
        findings_sha256=findings_sha256,
        rung=lease.rung,
        rungs=lease.rungs,
    )
    ledger.append(session, fact, actor=lease.actor, request_id=row.id, model_id=row.model_id)


def rejected_before(session: OrmSession, lease: Lease) -> int:
    """How many requests for the same had been rejected when this lease's report was kept."""
    return int((session.get_one(Attempt, (lease.request_id, lease.fence)).detail or {}).get(BEFORE, 0))


def details(session: OrmSession, request_id: str) -> list[dict[str, Any] | None]:
    """What is written down about each run of a request, oldest first."""
    chosen = select(Attempt.detail).where(Attempt.request_id == request_id).order_by(Attempt.fence)
    return list(session.scalars(chosen))


def earlier(session: OrmSession, lease: Lease) -> list[dict[str, Any]]:
    """The spent rungs below a lease's own, first to last: what each was, and why it would not do.

    A rung that was not spent is left out: the certificate's reader notices, and so does the signer.
    """
    chosen = select(Attempt).where(Attempt.request_id == lease.request_id, Attempt.fence < lease.fence).order_by(Attempt.fence)
    spent = [a for a in session.scalars(chosen) if (a.detail or {}).get(SPENT)]
    return [{**(a.detail or {}), "fence": a.fence, "verdict": a.report["verdict"] if a.report else None} for a in spent]


def announce(session: OrmSession, request_id: str, what: str, data: dict[str, Any], at: datetime | None = None) -> None:
    """Tell the request's followers: one row of its event stream."""
    tell(session, request_id, f"unlearning_request.{what}", data, at)


def _progress_of(row: UnlearnRequest) -> Progress:
    return Progress(row.progress_completed, row.progress_total, row.progress_unit, row.estimated_remaining_seconds)


def set_progress(row: UnlearnRequest, progress: Progress, at: datetime) -> None:
    """Write how far the phase has come, at the time `at`."""
    row.progress_completed = progress.completed
    row.progress_total = progress.total
    row.progress_unit = progress.unit
    row.estimated_remaining_seconds = progress.estimated_remaining_seconds
    row.progress_at = at if progress.completed is not None else None


def _shown(row: UnlearnRequest, lease: Lease) -> dict[str, Any]:
    return {
        **lease.shown_rung,
        "phase": row.phase,
        "completed": row.progress_completed,
        "total": row.progress_total,
        "unit": row.progress_unit,
        "estimated_remaining_seconds": row.estimated_remaining_seconds,
    }
