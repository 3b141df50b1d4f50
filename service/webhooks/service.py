"""Making and changing webhook endpoints. Each function is part of its caller's one transaction; the ledger comes last."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger, vault
from service.audit.leaves import Actor
from service.config import Settings
from service.db import now
from service.errors import Conflict, NotFound, Unprocessable
from service.tables import WebhookDelivery, WebhookEndpoint, new_id
from service.values import is_id
from service.webhooks import deliveries, guard, messages, signing
from service.webhooks.facts import (
    Amendable,
    WebhookAmended,
    WebhookCreated,
    WebhookDeleted,
    WebhookEnabled,
    WebhookSecretRotated,
)
from service.webhooks.schemas import WebhookDeliveryRead, WebhookEndpointChange, WebhookEndpointCreate, WebhookEndpointRead

MOST_ENDPOINTS = 50
"""Of a project: each event is written once for each of them, in the event's own transaction."""


class WebhookEndpointNotFound(NotFound):
    """No webhook endpoint has this id."""

    code, title = "webhook_endpoint_not_found", "No webhook endpoint has this id"


class WebhookDeliveryNotFound(NotFound):
    """The endpoint has no delivery of this id."""

    code, title = "webhook_delivery_not_found", "The endpoint has no delivery of this id"


class BadWebhookUrl(Unprocessable):
    """Nothing may be sent to this URL."""

    code, title = "bad_webhook_url", "Nothing may be sent to this URL"


class EndpointDisabled(Conflict):
    """Nothing is sent to an endpoint that is switched off."""

    code, title = "webhook_endpoint_disabled", "Nothing is sent to an endpoint that is switched off"


class TooManyWebhookEndpoints(Conflict):
    """The project has as many webhook endpoints as may be: delete one first."""

    code, title = "too_many_webhook_endpoints", "The project has as many webhook endpoints as may be"


def get(session: OrmSession, endpoint_id: str, lock: dict[str, Any] | None = None) -> WebhookEndpoint:
    """One endpoint; `lock` holds it until the transaction ends. Raises: WebhookEndpointNotFound."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id)
    found = (
        session.scalars(query if lock is None else query.with_for_update(**lock)).one_or_none() if is_id(endpoint_id) else None
    )
    if found is None:
        raise WebhookEndpointNotFound
    return found


def create(session: OrmSession, settings: Settings, wanted: WebhookEndpointCreate, actor: Actor) -> tuple[WebhookEndpoint, str]:
    """The endpoint, and its secret as its owner is told it. Raises: BadWebhookUrl, TooManyWebhookEndpoints."""
    _require_url(settings, wanted.url)
    secret, wrapped = signing.draw(vault.get_keys(settings))
    row = WebhookEndpoint(
        id=new_id("whe"),
        url=wanted.url,
        description=wanted.description,
        event_types=sorted(set(wanted.event_types)),
        secret=wrapped,
        created_at=now(session),
        created_by=str(actor),
    )
    session.add(row)
    session.flush()
    ledger.append(session, WebhookCreated(endpoint_id=row.id), actor=actor)
    mine = select(func.count()).select_from(WebhookEndpoint).where(WebhookEndpoint.project_id == row.project_id)
    if session.scalars(mine).one() > MOST_ENDPOINTS:  # under the ledger's lock: no two take the last place
        raise TooManyWebhookEndpoints(f"a project has at most {MOST_ENDPOINTS} webhook endpoints", limit=MOST_ENDPOINTS)
    return row, secret


def change(
    session: OrmSession, settings: Settings, endpoint_id: str, wanted: WebhookEndpointChange, actor: Actor
) -> WebhookEndpoint:
    """Raises: WebhookEndpointNotFound, BadWebhookUrl."""
    row = get(session, endpoint_id, deliveries.CHANGES)
    if wanted.url is not None:
        _require_url(settings, wanted.url)
    changed = _amend(row, wanted)
    taken_up = bool(wanted.enabled) and row.disabled_at is not None
    if taken_up:
        row.disabled_at = row.disabled_reason = None
    session.flush()  # before the ledger's head is held
    if wanted.enabled is False:
        deliveries.disable(session, row, "asked", actor)
    if changed:
        ledger.append(session, WebhookAmended(endpoint_id=row.id, changed=changed), actor=actor)
    if taken_up:
        ledger.append(session, WebhookEnabled(endpoint_id=row.id), actor=actor)
    return row


def _amend(row: WebhookEndpoint, wanted: WebhookEndpointChange) -> tuple[Amendable, ...]:
    """Write what is wanted of the row; returns the names of what it changed."""
    types = None if wanted.event_types is None else sorted(set(wanted.event_types))
    given: dict[Amendable, Any] = {"description": wanted.description, "event_types": types, "url": wanted.url}
    changed = tuple(name for name, value in given.items() if value is not None and value != getattr(row, name))
    for name in changed:
        setattr(row, name, given[name])
    return changed


def remove(session: OrmSession, endpoint_id: str, actor: Actor) -> None:
    """With all that was ever sent there. Raises: WebhookEndpointNotFound."""
    row = get(session, endpoint_id, lock={})
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == row.id))
    session.delete(row)
    ledger.append(session, WebhookDeleted(endpoint_id=endpoint_id), actor=actor)


def rotate(
    session: OrmSession, settings: Settings, endpoint_id: str, overlap: timedelta, actor: Actor
) -> tuple[WebhookEndpoint, str]:
    """A new secret; the one before signs beside it until the overlap has passed. Raises: WebhookEndpointNotFound."""
    row = get(session, endpoint_id, deliveries.CHANGES)
    secret, wrapped = signing.draw(vault.get_keys(settings))
    if overlap > timedelta(0):
        row.previous_secret, row.previous_until = row.secret, now(session) + overlap
    else:
        row.previous_secret = row.previous_until = None
    row.secret = wrapped
    session.flush()
    ledger.append(session, WebhookSecretRotated(endpoint_id=row.id), actor=actor)
    return row, secret


def test(session: OrmSession, endpoint_id: str) -> WebhookDelivery:
    """A message that tells of nothing, whatever the endpoint asked for. Raises: WebhookEndpointNotFound, EndpointDisabled."""
    endpoint, at = _enabled(session, endpoint_id), now(session)
    body = messages.body(messages.TEST_TYPE, at, {"endpoint_id": endpoint.id})
    row = deliveries.fresh(endpoint.id, endpoint.project_id, new_id("msg"), messages.TEST_TYPE, body, at)
    session.add(row)
    return row


def redeliver(session: OrmSession, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    """Send a message once more from the beginning of the schedule, under its own `webhook-id`.

    Raises:
        WebhookEndpointNotFound, WebhookDeliveryNotFound, EndpointDisabled.
    """
    endpoint = _enabled(session, endpoint_id)
    before = session.get(WebhookDelivery, delivery_id) if is_id(delivery_id) else None
    if before is None or before.endpoint_id != endpoint.id:
        raise WebhookDeliveryNotFound
    row = deliveries.fresh(endpoint.id, endpoint.project_id, before.message_id, before.type, before.body, now(session))
    row.redelivery_of = before.id
    session.add(row)
    return row


def listed() -> Select[Any]:
    return select(WebhookEndpoint)


def deliveries_of(endpoint_id: str, status: str | None) -> Select[Any]:
    statement = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    return statement if status is None else statement.where(WebhookDelivery.status == status)


def read(row: WebhookEndpoint, at: datetime) -> WebhookEndpointRead:
    """As clients see it at a moment of the database's clock."""
    overlapping = row.previous_until is not None and row.previous_until > at
    return WebhookEndpointRead(
        id=row.id,
        url=row.url,
        description=row.description,
        event_types=row.event_types,
        enabled=row.disabled_at is None,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        previous_secret_until=row.previous_until if overlapping else None,
        delivered_at=row.delivered_at,
        created_at=row.created_at,
    )


def read_delivery(row: WebhookDelivery) -> WebhookDeliveryRead:
    """As clients see it."""
    return WebhookDeliveryRead(
        id=row.id,
        endpoint_id=row.endpoint_id,
        message_id=row.message_id,
        type=row.type,
        body=json.loads(row.body),
        status=row.status,
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at if row.status == "pending" else None,
        last_status=row.last_status,
        last_error=row.last_error,
        redelivery_of=row.redelivery_of,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


def _require_url(settings: Settings, url: str) -> None:
    try:
        guard.parse(url, loopback=settings.webhook_allow_loopback)
    except guard.BadAddress as error:
        raise BadWebhookUrl(str(error), pointer="/url") from error


def _enabled(session: OrmSession, endpoint_id: str) -> WebhookEndpoint:
    endpoint = get(session, endpoint_id)
    if endpoint.disabled_at is not None:
        raise EndpointDisabled
    return endpoint
