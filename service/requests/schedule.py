"""When a request has to start so that its answer comes in time, and what keeps a waiting one from starting.

    latest start = legal deadline - expected run - margin

The expected run is the median of past runs of the same method on models of the same family, of those that ended with a result.
It is written down with the request when it is made, resumed, or its deadline is extended, so that the order of a queue can be
explained from its rows alone, and does not change under its readers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service import outbox
from service.config import Settings
from service.db import now
from service.requests import quotas
from service.requests.repository import Waiting
from service.requests.responses import StatusReason
from service.tables import Attempt, Model, RequestCompliance, UnlearnRequest
from service.workers import repository as workers

BEHIND: dict[str, Literal["behind_paused", "behind_approval"]] = {
    "paused": "behind_paused",
    "pending_approval": "behind_approval",
}
RUNS = 51
"""So many past runs are looked at, the newest ones."""


def latest_start(due_at: datetime, *, expected_seconds: float, margin_seconds: float) -> datetime:
    """See the module's first lines. It may lie in the past: then every minute counts."""
    return due_at - timedelta(seconds=expected_seconds + margin_seconds)


def expected_run_seconds(session: OrmSession, settings: Settings, *, family: str, method: str) -> float:
    """Median time of past runs that succeeded, in seconds; the setting where there is none."""
    chosen = (
        select(Attempt.started_at, Attempt.ended_at)
        .join(UnlearnRequest, UnlearnRequest.id == Attempt.request_id)
        .join(Model, Model.id == UnlearnRequest.model_id)
        .where(
            UnlearnRequest.status == "succeeded",
            UnlearnRequest.method == method,
            Model.family == family,
            Attempt.outcome == "succeeded",
            Attempt.ended_at.is_not(None),
        )
        .order_by(Attempt.started_at.desc())
        .limit(RUNS)
    )
    seconds = [(ended - started).total_seconds() for started, ended in session.execute(chosen) if ended is not None]
    return statistics.median(seconds) if seconds else settings.expected_run_seconds


def refresh(session: OrmSession, settings: Settings, request: UnlearnRequest, law: RequestCompliance | None) -> None:
    """Write down when a request has to start, as it stands now. Only of one that has not ended."""
    if law is None or law.due_at is None:
        request.expected_run_seconds = request.latest_start_at = None
        return
    family = session.scalars(select(Model.family).where(Model.id == request.model_id)).one()
    expected = expected_run_seconds(session, settings, family=family, method=request.method)
    request.expected_run_seconds = expected
    margin = settings.deadline_margin_seconds
    request.latest_start_at = latest_start(law.due_at, expected_seconds=expected, margin_seconds=margin)


@dataclass(frozen=True)
class Floor:
    """What is the same for all that wait, at one moment."""

    at: datetime
    served: frozenset[str]
    """GPU classes that some worker takes requests of."""
    most_active: int
    """So many requests of a project may run at once; 0: any number."""
    active: Mapping[str, int]
    """How many run, by project."""


def look(session: OrmSession, settings: Settings, at: datetime | None = None) -> Floor:
    """As it stands now; `at`: by the database's clock, where the caller has just read it."""
    at, most = at or now(session), settings.max_active_requests
    served = frozenset(name for one in workers.taking(session, settings, at) for name in one.gpu_classes)
    return Floor(at, served, most, quotas.active(session) if most else {})


def why_waiting(session: OrmSession, request: UnlearnRequest, floor: Floor) -> StatusReason | None:
    """What keeps a request that waits from starting; None: only that other requests come first, or it does not wait."""

    def in_front() -> InFront | None:
        # and no second one joined to it: a project's rule does not reach into a join's condition
        other = aliased(UnlearnRequest)
        chosen = select(other.id, other.status).where(outbox.blocks(other, request))
        found = session.execute(chosen.order_by(other.created_at, other.id).limit(1)).first()
        return None if found is None else InFront(found.id, found.status)

    return reason(request, floor, in_front)


@dataclass(frozen=True)
class InFront:
    """The request of the model that must end, or be taken up, first."""

    id: str
    status: str


def first_of(waiting: Sequence[Waiting]) -> InFront | None:
    """Of what has not ended, oldest first: each of it is in front of a request that is made now (`outbox.blocks`)."""
    return InFront(waiting[0].id, waiting[0].status) if waiting else None


def reason(request: UnlearnRequest, floor: Floor, ask: Callable[[], InFront | None]) -> StatusReason | None:
    """The rule of `why_waiting`; `ask` only where it matters."""
    if request.status == "pending_approval":
        return StatusReason(code="approval", message="others must approve it first; see `approvals`")
    if request.status != "queued":
        return None
    if request.gpu_class not in floor.served:
        return StatusReason(code="no_worker", message=f"no worker that is there serves the GPU class {request.gpu_class}")
    in_front = ask()
    if in_front is not None:
        code = BEHIND.get(in_front.status, "behind")
        message = f"an older request of the model comes first, and it is {in_front.status}"
        return StatusReason(code=code, message=message, request_id=in_front.id)
    if request.not_before > floor.at:
        return StatusReason(code="resting", message="its last attempt died; it rests before the next one")
    if floor.most_active and floor.active.get(request.project_id, 0) >= floor.most_active:
        return StatusReason(code="quota", message=f"{floor.most_active} requests run, and no more may at once")
    return None
