"""What is to be sent: written with the event, taken under a lease, settled under the same. Queries of one transaction each.

    put -> take -> settle (delivered | failed | again later)

A sender that dies between sending and settling leaves its lease to run out, and the message is sent again, under the same
`webhook-id`: at least once, never by two senders at the same time. Attempts are counted before they are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import and_, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit import ledger
from service.audit.leaves import Actor
from service.db import now
from service.tables import UnlearnRequest, WebhookDelivery, WebhookEndpoint, new_id
from service.webhooks import messages
from service.webhooks.facts import WebhookDisabled

SENDER = Actor(kind="service", id="webhooks")
_MINUTE, _HOUR = 60, 3600
PAUSES = (0, 5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR)
"""Seconds before each attempt, counted from the one before. Source: Standard Webhooks 1.0, "Deliverability"."""
JITTER = 0.1
"""A pause is up to so much longer: endpoints that came back are not all called at the same moment."""
LEASE = timedelta(seconds=60)
"""Longer than a name takes to resolve and a message to be sent."""
KEPT = timedelta(days=30)
CHANGES = {"key_share": True}
"""The lock of whoever changes an endpoint: events are written meanwhile. Only who deletes one waits for them."""
Reason = Literal["asked", "gone", "failing"]


@dataclass(frozen=True)
class Taken:
    """A delivery that this sender alone may attempt until the lease runs out."""

    id: str
    fence: int
    project_id: str
    endpoint_id: str
    url: str
    message_id: str
    body: str
    secrets: tuple[bytes, ...]
    """Wrapped; the newest first."""
    at: datetime


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `error` is a code; None: it was delivered."""

    status: int | None = None
    error: str | None = None

    @classmethod
    def of(cls, status: int) -> Outcome:
        """Of an answer's status: 2xx is good, and a redirect is no answer."""
        if 200 <= status < 300:
            return cls(status)
        return cls(status, "gone" if status == 410 else "redirect" if 300 <= status < 400 else "status")


def put(session: OrmSession, request_id: str, event: str, data: dict[str, Any], at: datetime) -> None:
    """Write what is to be sent of an event, in the event's own transaction. Flushes nothing: the caller may not be done."""
    kind = messages.type_of(event)
    if kind is None:
        return
    with session.no_autoflush:
        project_id = session.get_one(UnlearnRequest, request_id).project_id
        listening = session.execute(_LISTENING, {"project": project_id})
        wanted = [endpoint for endpoint, types in listening if not types or kind in types]
    if not wanted:
        return
    body = messages.body(kind, at, messages.data_of(request_id, data))
    message_id = new_id("msg")
    session.add_all(fresh(endpoint, project_id, message_id, kind, body, at) for endpoint in wanted)


_LISTENING = (
    select(WebhookEndpoint.id, WebhookEndpoint.event_types)
    .where(WebhookEndpoint.project_id == bindparam("project"), WebhookEndpoint.disabled_at.is_(None))
    .with_for_update(read=True, key_share=True)
)
"""None is deleted before what refers to it is written."""


def fresh(endpoint_id: str, project_id: str, message_id: str, kind: str, body: str, at: datetime) -> WebhookDelivery:
    """A delivery that is due at once."""
    return WebhookDelivery(
        id=new_id("whd"),
        project_id=project_id,
        endpoint_id=endpoint_id,
        message_id=message_id,
        type=kind,
        body=body,
        status="pending",
        attempts=0,
        next_attempt_at=at,
        fence=0,
        created_at=at,
    )


def due(session: OrmSession, *, limit: int, busy: Mapping[str, str] | None = None) -> list[str]:
    """Deliveries that may be attempted now, one an endpoint: a slow one has one sender waiting. The projects take turns, and in
    each the longest due comes first: neither many messages nor many endpoints of one keep those of another waiting.

    Args:
        busy: endpoints that are being sent to, and their projects.
    """
    busy = busy or {}
    mine = WebhookDelivery.endpoint_id == WebhookEndpoint.id, _may_be_taken(now(session))
    order = WebhookDelivery.next_attempt_at, WebhookDelivery.id
    since, first = (select(column).where(*mine).order_by(*order).limit(1).scalar_subquery() for column in order)
    chosen = select(since, first, WebhookEndpoint.project_id).where(WebhookEndpoint.id.not_in(sorted(busy)))
    turns, found = Counter(busy.values()), []
    for at, delivery, project in sorted(row for row in map(tuple, session.execute(chosen)) if row[1] is not None):
        found.append((turns[project], at, delivery))
        turns[project] += 1
    return [delivery for _, _, delivery in sorted(found)[:limit]]


def due_since(session: OrmSession) -> datetime | None:
    """Since when the delivery that has waited longest for a sender might have been attempted; None: there is none."""
    return session.scalars(select(func.min(WebhookDelivery.next_attempt_at)).where(_may_be_taken(now(session)))).one()


def take(session: OrmSession, delivery_id: str) -> Taken | None:
    """Take a delivery for one attempt. None: another sender has it, or it is not due any more. One UPDATE decides."""
    at = now(session)
    taken = session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, _may_be_taken(at))
        .values(fence=WebhookDelivery.fence + 1, attempts=WebhookDelivery.attempts + 1, lease_expires_at=at + LEASE)
        .returning(WebhookDelivery.fence)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if taken is None:
        return None
    row = session.get_one(WebhookDelivery, delivery_id)
    endpoint = session.get_one(WebhookEndpoint, row.endpoint_id)
    if endpoint.disabled_at is not None:
        end(row, "failed", at, "endpoint_disabled")
        return None
    return Taken(
        row.id, taken, endpoint.project_id, endpoint.id, endpoint.url, row.message_id, row.body, secrets_of(endpoint, at), at
    )


def secrets_of(endpoint: WebhookEndpoint, at: datetime) -> tuple[bytes, ...]:
    """Those that sign at a moment, wrapped."""
    earlier = endpoint.previous_secret
    if earlier is None or endpoint.previous_until is None or endpoint.previous_until <= at:
        return (endpoint.secret,)
    return (endpoint.secret, earlier)


def settle(session: OrmSession, taken: Taken, outcome: Outcome, *, jitter: float) -> bool:
    """Write down how an attempt ended. False: the lease ran out, and another sender has it.

    Args:
        jitter: in [0, 1), how much of `JITTER` is added to the next pause.
    """
    at = now(session)
    endpoint = session.get(WebhookEndpoint, taken.endpoint_id, with_for_update=CHANGES)
    row = session.scalars(
        select(WebhookDelivery)
        .where(WebhookDelivery.id == taken.id, WebhookDelivery.fence == taken.fence, WebhookDelivery.status == "pending")
        .with_for_update()
    ).one_or_none()
    if row is None or endpoint is None:
        return False
    row.lease_expires_at = None
    row.last_status, row.last_error = outcome.status, outcome.error
    if outcome.error is None:
        end(row, "delivered", at, None)
        endpoint.delivered_at = at
    elif outcome.error == "gone":
        end(row, "failed", at, outcome.error)
        disable(session, endpoint, "gone", SENDER)
    elif row.attempts >= len(PAUSES):
        end(row, "failed", at, outcome.error)
        if endpoint.delivered_at is None or endpoint.delivered_at < row.created_at:
            disable(session, endpoint, "failing", SENDER)  # three days, and nothing arrived
    else:
        row.next_attempt_at = at + timedelta(seconds=PAUSES[row.attempts] * (1 + JITTER * jitter))
    return True


def disable(session: OrmSession, endpoint: WebhookEndpoint, reason: Reason, actor: Actor) -> None:
    """Send nothing there any more; what waits has failed. The last write of its transaction, for the ledger hears of it."""
    if endpoint.disabled_at is not None:
        return
    at = now(session)
    endpoint.disabled_at, endpoint.disabled_reason = at, reason
    session.flush()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.status == "pending")
        .values(status="failed", ended_at=at, last_error="endpoint_disabled", lease_expires_at=None)
        .execution_options(synchronize_session=False)
    )
    with tenancy.acting(endpoint.project_id):  # a sender acts for all, and the entry is the project's
        ledger.append(session, WebhookDisabled(endpoint_id=endpoint.id, reason=reason), actor=actor)


def end(row: WebhookDelivery, status: str, at: datetime, error: str | None) -> None:
    """No further attempt is made."""
    row.status, row.ended_at, row.last_error, row.lease_expires_at = status, at, error, None


def prune(session: OrmSession) -> int:
    """Forget deliveries that ended long ago. Returns how many."""
    old = and_(WebhookDelivery.status != "pending", WebhookDelivery.created_at < now(session) - KEPT)
    gone = session.execute(delete(WebhookDelivery).where(old).execution_options(synchronize_session=False))
    return int(gone.rowcount)  # type: ignore[attr-defined]  # of a DELETE it is the number of rows


def _may_be_taken(at: datetime) -> Any:
    free = or_(WebhookDelivery.lease_expires_at.is_(None), WebhookDelivery.lease_expires_at < at)
    return and_(WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= at, free)
