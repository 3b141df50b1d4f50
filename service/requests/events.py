"""Telling what happens: a row of the event stream, and with it, in the same transaction, what webhooks are to be sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session as OrmSession

from service.db import now
from service.tables import RequestEvent
from service.webhooks import deliveries


def tell(session: OrmSession, request_id: str, kind: str, data: dict[str, Any], at: datetime | None = None) -> None:
    """Tell whoever follows the request, or its project, and whoever has events sent. Flushes nothing.

    Args:
        kind: `unlearning_request.…` or `checkpoint.…`.
        at: of the database's clock; None: now.
    """
    at = at or now(session)
    session.add(RequestEvent(request_id=request_id, type=kind, data=data, at=at))
    deliveries.put(session, request_id, kind, data, at)
