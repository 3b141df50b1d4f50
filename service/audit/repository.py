"""Reading the ledger. Nothing here writes; `ledger.append` is the only writer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session as OrmSession

from service.audit.ledger import LOG_ID
from service.audit.schemas import EntryFilters
from service.tables import LedgerEntry, LedgerHead


def size(session: OrmSession) -> int:
    """Number of entries; the next one gets this sequence number."""
    return session.scalars(select(LedgerHead.size).where(LedgerHead.log_id == LOG_ID)).one()


def filtered(filters: EntryFilters) -> Select[Any]:
    """Entries that pass the filters, in no order yet."""
    statement = select(LedgerEntry).where(LedgerEntry.log_id == LOG_ID)
    exact = {
        LedgerEntry.model_id: filters.model_id,
        LedgerEntry.request_id: filters.request_id,
        LedgerEntry.actor: filters.actor,
        LedgerEntry.outcome: filters.outcome,
    }
    for column, value in exact.items():
        if value is not None:
            statement = statement.where(column == value)
    if filters.action:
        statement = statement.where(or_(*map(_action, filters.action)))
    if filters.since is not None:
        statement = statement.where(LedgerEntry.at >= filters.since)
    if filters.until is not None:
        statement = statement.where(LedgerEntry.at < filters.until)
    return statement


def _action(wanted: str) -> Any:
    if wanted.endswith("*"):
        return LedgerEntry.action.startswith(wanted[:-1], autoescape=True)
    return LedgerEntry.action == wanted


def batch(session: OrmSession, filters: EntryFilters, *, after: int, below: int, limit: int) -> list[LedgerEntry]:
    """At most `limit` entries with after < seq < below, in order."""
    query = filtered(filters).where(LedgerEntry.seq > after, LedgerEntry.seq < below)
    return list(session.scalars(query.order_by(LedgerEntry.seq).limit(limit)))
