"""The ledger's signed checkpoints: which there are, and the newest that the policy accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session as OrmSession

from service.audit.ledger import LOG_ID
from service.tables import LedgerCheckpoint
from service.verifier.note import Malformed, Policy, Refused


def _newest_first() -> Select[Any]:
    chosen = select(LedgerCheckpoint).where(LedgerCheckpoint.log_id == LOG_ID)
    return chosen.order_by(LedgerCheckpoint.size.desc(), LedgerCheckpoint.created_at.desc())


def newest(session: OrmSession) -> LedgerCheckpoint | None:
    """The newest there is, whoever has seen it."""
    found: LedgerCheckpoint | None = session.scalars(_newest_first().limit(1)).first()
    return found


def newest_stamped(session: OrmSession) -> LedgerCheckpoint | None:
    """The newest with a time stamp of an authority."""
    stamped = _newest_first().where(LedgerCheckpoint.time_stamp.is_not(None))
    found: LedgerCheckpoint | None = session.scalars(stamped.limit(1)).first()
    return found


def every(session: OrmSession) -> Iterator[LedgerCheckpoint]:
    """All of them, oldest first."""
    chosen = select(LedgerCheckpoint).where(LedgerCheckpoint.log_id == LOG_ID)
    ordered = chosen.order_by(LedgerCheckpoint.size, LedgerCheckpoint.created_at)
    yield from session.scalars(ordered.execution_options(yield_per=256))


def accepted(session: OrmSession, policy: Policy, *, above: int = 0, size: int | None = None) -> LedgerCheckpoint | None:
    """The newest that a key of the policy's log signed and enough of its witnesses cosigned.

    Args:
        above: with more entries than that: the sequence number of an entry that it must cover.
        size: with exactly so many.
    """
    chosen = _newest_first().where(LedgerCheckpoint.size > above)
    if size is not None:
        chosen = chosen.where(LedgerCheckpoint.size == size)
    with session.scalars(chosen.execution_options(yield_per=16)) as rows:
        return next((row for row in rows if accepts(policy, row.note)), None)


def accepts(policy: Policy, note: str) -> bool:
    """Does the policy accept this checkpoint?"""
    try:
        policy.checkpoint(note)
    except (Malformed, Refused):
        return False
    return True
