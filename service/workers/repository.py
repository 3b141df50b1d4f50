"""Worker rows: who is there, since when, and what they serve.

A row is a sign of life and nothing more. Nobody's lease is judged by it (`requests.endings.reap` has the lease for that), so a
row that is late costs a wrong line in a list, never a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import bindparam, delete, select
from sqlalchemy.orm import Session as OrmSession

from service.config import Settings
from service.db import now
from service.tables import Worker

SWEEPS = 3
"""A worker that was silent for so many sweeps is not there."""
SHORTEST_PAUSE_SECONDS = 1.0
"""Between two signs of life, however often the worker sweeps: each is a write."""
KEPT = timedelta(hours=1)
"""So long a dead worker stays in the list."""

State = Literal["active", "draining"]


@dataclass(frozen=True)
class Sign:
    """What a worker says of itself. `id` and `host` are digests: names say too much of where machines stand."""

    id: str
    host: str
    gpu_classes: tuple[str, ...]
    state: State
    request_id: str | None


def touch(session: OrmSession, sign: Sign) -> None:
    """A sign of life, at the database's time; rows of workers that are long gone are cleared."""
    at = now(session)
    session.execute(delete(Worker).where(Worker.seen_at < at - KEPT, Worker.id != sign.id))
    row = session.get(Worker, sign.id)
    if row is None:
        row = Worker(id=sign.id, started_at=at)
        session.add(row)
    row.host, row.gpu_classes = sign.host, list(sign.gpu_classes)
    row.state, row.request_id, row.seen_at = sign.state, sign.request_id, at


def leave(session: OrmSession, worker_id: str) -> None:
    """The worker ends as it should: it is not there any more."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def silent_since(at: datetime, settings: Settings) -> datetime:
    """A worker whose last word is older than this is not there at that time."""
    return at - timedelta(seconds=SWEEPS * max(settings.sweep_seconds, SHORTEST_PAUSE_SECONDS))


def everyone(session: OrmSession) -> Sequence[Worker]:
    """All rows, the oldest worker first."""
    return session.scalars(select(Worker).order_by(Worker.started_at, Worker.id)).all()


def taking(session: OrmSession, settings: Settings, at: datetime) -> Sequence[Worker]:
    """Those that take requests at that time of the database's clock: they are there, and not about to leave."""
    return session.scalars(_TAKING, {"since": silent_since(at, settings)}).all()


_TAKING = select(Worker).where(Worker.seen_at >= bindparam("since"), Worker.state == "active")
