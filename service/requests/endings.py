"""Every way an attempt can end but the good one (`service.checkpoints.publish`), and where that leaves its request.

Each function is one short transaction of its caller; the request's last change is a single UPDATE, for the database refuses a
second one to a request that has ended. Every automatic decision is written down with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, Fact, RequestClosed, RequestPaused, RunFailed, RunLost, RunStopped
from service.db import now
from service.requests.leases import Lease, Progress, announce, locked, set_progress
from service.requests.lifecycle import HOLDS_LINEAGE, TERMINAL, Status, after_lost_lease, at_rest
from service.requests.rungs import CODES, FINAL, REJECTED, SPENT, ladder_of, rung_after
from service.tables import Attempt, UnlearnRequest

LONGEST_PAUSE_SECONDS = 300.0
LONGEST_SUMMARY = 1_000
SWEEPER = Actor(kind="service", id="sweeper")


@dataclass(frozen=True)
class Problem:
    """Why an attempt ended without a result. `code` is stable, `message` is one plain sentence, `extra` is JSON."""

    code: str
    category: str
    message: str
    extra: tuple[tuple[str, Any], ...] = ()
    log_tail: str = ""

    def shown(self, attempt: int) -> dict[str, Any]:
        """The request's `error`."""
        return {
            "code": self.code,
            "category": self.category,
            "message": self.message,
            "attempt": attempt,
            **dict(self.extra),
        }


def pause_after(attempts: int) -> timedelta:
    """How long a request rests after its n-th dead attempt: 2, 4, 8, … seconds, 5 minutes at most."""
    return timedelta(seconds=min(2.0 ** min(attempts, 16), LONGEST_PAUSE_SECONDS))


def fail(session: OrmSession, lease: Lease, problem: Problem) -> Status:
    """End the request: another attempt would end the same way. Raises: LeaseLost."""
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, problem)
    shown = problem.shown(row.attempts_charged)
    _close(session, row, "failed", error=shown)
    _end_attempt(session, lease, "failed", {**shown, "log_tail": problem.log_tail})
    announce(session, row.id, "failed", {"error": shown})
    facts = (RunFailed(fence=lease.fence, code=problem.code), RequestClosed(status="failed"))
    return _written(session, row, lease.actor, facts)


def reject(session: OrmSession, lease: Lease, problem: Problem) -> Status:
    """A recipe's result will not do, or it has none: put the request back for the next recipe, or end it after the last.

    Nobody died, so the attempt is not charged: how often workers may die is counted over the whole request, and how many
    results may be verified is the ladder's length. Raises: LeaseLost.
    """
    if lease.last_rung:
        return fail(session, lease, problem if lease.rungs == 1 else _none_will_do(lease, problem))
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, problem)
    shown = problem.shown(row.attempts_charged)
    row.attempts_charged -= 1
    _end_attempt(session, lease, "failed", {**shown, SPENT: True, "log_tail": problem.log_tail})
    next_up = ladder_of(row.method, row.params, row.policy)[lease.rung]
    said = {"rung": lease.rung + 1, "rungs": lease.rungs, "method": next_up.method}
    resting = _let_go(session, row, pause=timedelta(0), reason=shown, next=said)
    return _written(session, row, lease.actor, (RunFailed(fence=lease.fence, code=problem.code), *resting))


def retry(session: OrmSession, lease: Lease, problem: Problem, *, max_attempts: int) -> Status:
    """Put a request back whose attempt died, after a pause; fail it once its attempts are used up, or where the report that it
    kept has decided. Raises: LeaseLost."""
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, problem)
    if decided := _decided(session, row):
        return fail(session, lease, decided)
    shown = problem.shown(row.attempts_charged)
    _end_attempt(session, lease, "failed", {**shown, "log_tail": problem.log_tail})
    facts: list[Fact] = [RunFailed(fence=lease.fence, code=problem.code)]
    if row.attempts_charged >= max_attempts:
        error = _exhausted(row.attempts_charged, problem)
        _close(session, row, "failed", error=error)
        announce(session, row.id, "failed", {"error": error})
        facts.append(RequestClosed(status="failed"))
    else:
        facts += _let_go(session, row, pause=pause_after(row.attempts_charged), reason=shown)
    return _written(session, row, lease.actor, facts)


def give_back(session: OrmSession, lease: Lease, *, reason: str) -> Status:
    """Put a request back unharmed: its worker stops. The attempt is not charged. One that the kept report has decided fails.

    Raises: LeaseLost.
    """
    return _put_back(session, lease, "drained", reason)


def pause(session: OrmSession, lease: Lease) -> Status:
    """Say that the request is paused; as `give_back` else. Call it when no process of it is left. Raises: LeaseLost."""
    return _put_back(session, lease, "paused", "somebody asked to pause")


def _put_back(session: OrmSession, lease: Lease, outcome: str, reason: str) -> Status:
    row = locked(session, lease)
    if row.status == "cancelling":
        return _end_cancelled(session, row, lease, None)
    if decided := _decided(session, row):
        return fail(session, lease, decided)
    row.attempts_charged -= 1
    why = {"code": outcome, "message": reason}
    _end_attempt(session, lease, outcome, why)
    resting = _let_go(session, row, pause=timedelta(0), reason=why)
    return _written(session, row, lease.actor, (RunStopped(fence=lease.fence), *resting))


def cancelled(session: OrmSession, lease: Lease) -> Status:
    """Say that the request is cancelled. Call it when no process of it is left. Raises: LeaseLost."""
    return _end_cancelled(session, locked(session, lease), lease, None)


def reap(
    session: OrmSession, request_id: str, fence: int, *, max_attempts: int, reason: str, only_expired: bool
) -> Status | None:
    """Take a request from a worker that fell silent. None: it has moved on meanwhile, or another sweeper has it.

    It is put back, or paused if somebody asked for that, unless somebody cancelled it, its attempts are used up, or a report
    that it kept has decided.

    Args:
        reason: how it was noticed; kept with the attempt.
        only_expired: the lease must have run out; False when the owner is known to be dead.
    """
    row = session.execute(
        select(UnlearnRequest)
        .where(
            UnlearnRequest.id == request_id,
            UnlearnRequest.fence == fence,
            UnlearnRequest.status.in_(sorted(HOLDS_LINEAGE)),
        )
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()
    if row is None:
        return None
    if only_expired and row.lease_expires_at is not None and row.lease_expires_at >= now(session):
        return None
    problem = Problem("worker_lost", "service", reason)
    lost = Lease(request_id, fence, row.lease_owner or "")
    _end_attempt(session, lost, "lost", problem.shown(row.attempts_charged))
    facts: list[Fact] = [RunLost(fence=fence)]
    row.fence += 1
    # a cancellation that reached the row before its status did is still a cancellation
    status: Status = "cancelling" if row.cancel_requested_at is not None else row.status  # type: ignore[assignment]
    end = after_lost_lease(status, attempts=row.attempts_charged, max_attempts=max_attempts)
    decided = _decided(session, row) if end != "cancelled" else None
    if decided is not None:
        end = "failed"
    if end not in TERMINAL:
        rest, shown = pause_after(row.attempts_charged), problem.shown(row.attempts_charged)
        facts += _let_go(session, row, pause=rest, reason=shown)
    else:
        error = _exhausted(row.attempts_charged, problem) if end == "failed" else None
        if decided is not None:
            error = decided.shown(row.attempts_charged)
        _close(session, row, end, error=error)
        announce(session, row.id, end, {"error": error})
        facts.append(RequestClosed(status=end))
    return _written(session, row, SWEEPER, facts)


def _decided(session: OrmSession, row: UnlearnRequest) -> Problem | None:
    """Why a request is over whose run kept a report and stopped before it could say so. None: it is not over.

    VOID and ERROR speak of the measurement, so a second one would be told the same. A rejected result is not looked at again,
    and after the last that may be verified there is no other.
    """
    chosen = select(Attempt).where(Attempt.request_id == row.id).order_by(Attempt.fence)
    runs = list(session.scalars(chosen))
    rungs = len(ladder_of(row.method, row.params, row.policy))
    used_up = rung_after(run.detail for run in runs) > rungs
    over = FINAL | REJECTED if used_up else FINAL
    last = next((run for run in reversed(runs) if _verdict(run) in over), None)
    if last is None or last.report is None:
        return None
    verdict, summary = last.report["verdict"], str(last.report.get("summary", ""))[:LONGEST_SUMMARY]
    message = f"verification ended with {verdict}, and the run stopped before it could say so: {summary or 'see its report'}"
    extra = (("rung", int((last.detail or {}).get("rung", 1))), ("rungs", rungs)) if rungs > 1 else ()
    return Problem(CODES[verdict], "verification", message, extra)


def _verdict(run: Attempt) -> str | None:
    return str(run.report["verdict"]) if run.report else None


def _end_cancelled(session: OrmSession, row: UnlearnRequest, lease: Lease, problem: Problem | None) -> Status:
    detail: dict[str, Any] = {"code": "cancelled", "message": "somebody asked to cancel"}
    if problem is not None:
        detail["meanwhile"] = problem.shown(row.attempts_charged)
    _close(session, row, "cancelled", error=None)
    _end_attempt(session, lease, "cancelled", detail)
    announce(session, row.id, "cancelled", {"phase": row.phase})
    return _written(session, row, lease.actor, (RunStopped(fence=lease.fence), RequestClosed(status="cancelled")))


def _none_will_do(lease: Lease, problem: Problem) -> Problem:
    message = f"none of {lease.rungs} results passed; the last one: {problem.message}"
    return replace(problem, message=message, extra=(*problem.extra, *lease.shown_rung.items()))


def _exhausted(attempts: int, problem: Problem) -> dict[str, Any]:
    message = f"all {attempts} attempts died; the last one: {problem.message}"
    extra = (("last_code", problem.code), *problem.extra)
    return Problem("attempts_exhausted", problem.category, message, extra).shown(attempts)


def _close(session: OrmSession, row: UnlearnRequest, status: Status, *, error: dict[str, Any] | None) -> None:
    """The row's last change, all of it in one UPDATE: the database refuses a second one."""
    assert status in TERMINAL
    at = now(session)
    row.status = status
    row.finished_at = at
    if error is not None:
        row.error = error
    row.estimated_remaining_seconds = None
    row.lease_owner = None
    row.lease_expires_at = None
    row.version += 1


def _let_go(session: OrmSession, row: UnlearnRequest, *, pause: timedelta, reason: dict[str, Any], **more: Any) -> list[Fact]:
    """Back into the queue, or to where it waits to be resumed. Returns what the ledger is to hear of it."""
    at = now(session)
    row.status = at_rest(row.status)  # type: ignore[arg-type]  # the database holds it to the same values
    row.phase = None
    row.not_before = at + pause
    row.lease_owner = None
    row.lease_expires_at = None
    row.version += 1
    set_progress(row, Progress(), at)
    if row.status == "paused":
        announce(session, row.id, "paused", {"reason": reason, **more}, at)
        return [RequestPaused(status="paused")]
    announce(session, row.id, "requeued", {"reason": reason, "pause_seconds": pause.total_seconds(), **more}, at)
    return []


def _end_attempt(session: OrmSession, lease: Lease, outcome: str, detail: dict[str, Any]) -> None:
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    attempt.outcome = outcome
    attempt.ended_at = now(session)
    attempt.detail = {**(attempt.detail or {}), **{k: v for k, v in detail.items() if v not in (None, "")}}


def _written(session: OrmSession, row: UnlearnRequest, actor: Actor, facts: Iterable[Fact]) -> Status:
    request_id, model_id, status = row.id, row.model_id, row.status
    for fact in facts:
        ledger.append(session, fact, actor=actor, request_id=request_id, model_id=model_id)
    return status  # type: ignore[return-value]  # the column is a plain string, its CHECK constraint is this Literal
