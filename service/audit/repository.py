"""Reading the ledger. Nothing here writes; `ledger.append` is the only writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, func, or_, select, text
from sqlalchemy.orm import Session as OrmSession

from service.audit import merkle
from service.audit.ledger import LOG_ID
from service.audit.merkle import Parts
from service.audit.schemas import EntryFilters
from service.tables import (
    Checkpoint,
    LedgerEntry,
    LedgerHead,
    LedgerNode,
    ModelVersion,
    RequestCompliance,
    UnlearnRequest,
)
from service.verifier.merkle import EMPTY


def size(session: OrmSession) -> int:
    """Number of entries; the next one gets this sequence number."""
    return session.scalars(select(LedgerHead.size).where(LedgerHead.log_id == LOG_ID)).one()


def hashes(session: OrmSession, wanted: Sequence[Parts]) -> list[bytes]:
    """Hashes of the tree, read in one query. Raises: LookupError: the ledger is not so long, or a stored hash is missing."""
    places = sorted(merkle.places(wanted))
    return merkle.hashes(wanted, _stored(session, places) if places else {})


def _stored(session: OrmSession, places: list[merkle.Place]) -> dict[merkle.Place, bytes]:
    """Of these hashes, the ones that are there.

    The places go in as one parameter, so that the statement is one that both sides have seen before, and stand first in the
    join: each is looked up in the primary key. Given as lists to be in, SQLite tries every level with every idx.
    """
    connection = session.connection()
    chosen = _STORED[connection.dialect.name]
    rows = connection.execute(chosen, {"log": LOG_ID, "places": json.dumps(places)})
    return {(level, idx): value for level, idx, value in rows}


_STORED = {
    "sqlite": text(
        "SELECT n.level, n.idx, n.hash FROM json_each(:places) AS place CROSS JOIN ledger_node AS n "
        "WHERE n.log_id = :log AND n.level = json_extract(place.value, '$[0]') AND n.idx = json_extract(place.value, '$[1]')"
    ),
    "postgresql": text(
        "SELECT n.level, n.idx, n.hash FROM jsonb_array_elements(CAST(:places AS jsonb)) AS place(value) JOIN ledger_node AS n "
        "ON n.log_id = :log AND n.level = CAST(place.value ->> 0 AS integer) AND n.idx = CAST(place.value ->> 1 AS bigint)"
    ),
}


def root(session: OrmSession, size: int) -> bytes:
    """The root of the first `size` entries. Raises: LookupError."""
    return hashes(session, [merkle.root(size)])[0] if size else EMPTY


def inclusion(session: OrmSession, seq: int, size: int) -> list[bytes]:
    """That an entry is in the tree of that size: RFC 6962 §2.1.1. Raises: LookupError, ValueError."""
    return hashes(session, merkle.inclusion(seq, size))


def consistency(session: OrmSession, old: int, new: int) -> list[bytes]:
    """That the tree of one size begins with that of another: RFC 6962 §2.1.2. Raises: LookupError, ValueError."""
    return hashes(session, merkle.consistency(old, new))


def filtered(filters: EntryFilters) -> Select[Any]:
    """Entries that pass the filters, in no order yet."""
    exact = {
        LedgerEntry.model_id: filters.model_id,
        LedgerEntry.request_id: filters.request_id,
        LedgerEntry.actor: filters.actor,
        LedgerEntry.outcome: filters.outcome,
        LedgerEntry.tenant: filters.tenant,
    }
    # there is one log: as a term of an index it only tempts SQLite to pass over what a filter's own index would find
    narrowed = any(value is not None for value in exact.values())
    statement = select(LedgerEntry).where((LedgerEntry.log_id + 0 if narrowed else LedgerEntry.log_id) == LOG_ID)
    for column, value in exact.items():
        if value is not None:
            statement = statement.where(column == value)
    if filters.action:
        statement = statement.where(or_(*map(_action, filters.action)))
    if filters.type is not None:
        statement = statement.where(LedgerEntry.action.startswith(filters.type, autoescape=True))
    for since in filter(None, (filters.since, filters.first)):
        statement = statement.where(LedgerEntry.seq >= _first_at(since))
    for until in filter(None, (filters.until, filters.last)):
        statement = statement.where(LedgerEntry.seq < func.coalesce(_first_at(until), _length()))
    return statement.where(*_about(filters))


def _first_at(moment: datetime) -> ScalarSelect[Any]:
    """The first entry of this time or a later one; null: there is none.

    Times never fall along the ledger (the database refuses an entry that is older than the one before), so a span of time is a
    span of sequence numbers, and a page in their order begins where it does rather than passing over all that was before.
    """
    entries: Any = LedgerEntry.__table__  # whoever's the entry is: another project's one is as good a milestone
    at = entries.c.at, entries.c.seq
    return select(entries.c.seq).where(entries.c.at >= moment).order_by(*at).limit(1).scalar_subquery()


def _length() -> ScalarSelect[Any]:
    return select(LedgerHead.size).where(LedgerHead.log_id == LOG_ID).scalar_subquery()


def _about(filters: EntryFilters) -> Iterator[ColumnElement[bool]]:
    """Conditions on what an entry is about, which other tables know."""
    if filters.model_digest is not None:
        models = select(ModelVersion.model_id).where(ModelVersion.digest == filters.model_digest)
        yield LedgerEntry.model_id.in_(models)
    if filters.certificate is not None:
        yield LedgerEntry.request_id.in_(select(Checkpoint.request_id).where(Checkpoint.id == filters.certificate))
    if filters.state is not None:
        yield LedgerEntry.request_id.in_(select(UnlearnRequest.id).where(UnlearnRequest.status == filters.state))
    law = select(RequestCompliance.request_id)
    if filters.jurisdiction is not None:
        yield LedgerEntry.request_id.in_(law.where(RequestCompliance.jurisdiction == filters.jurisdiction))
    if filters.ground is not None:
        yield LedgerEntry.request_id.in_(law.where(RequestCompliance.ground == filters.ground))
    if filters.overdue is not None:
        late = RequestCompliance.due_at < func.current_timestamp(), RequestCompliance.answered_at.is_(None)
        late_ones = LedgerEntry.request_id.in_(law.where(*late))
        yield late_ones if filters.overdue else and_(LedgerEntry.request_id.is_not(None), ~late_ones)


def _action(wanted: str) -> Any:
    if wanted.endswith("*"):
        return LedgerEntry.action.startswith(wanted[:-1], autoescape=True)
    return LedgerEntry.action == wanted


def batch(session: OrmSession, filters: EntryFilters, *, after: int, below: int, limit: int) -> list[LedgerEntry]:
    """At most `limit` entries with after < seq < below, in order."""
    query = filtered(filters).where(LedgerEntry.seq > after, LedgerEntry.seq < below)
    return list(session.scalars(query.order_by(LedgerEntry.seq).limit(limit)))


def range_of(session: OrmSession, first: int, count: int) -> list[LedgerEntry]:
    """Neighbouring entries in order, fewer than `count` where the ledger ends."""
    within = LedgerEntry.log_id == LOG_ID, LedgerEntry.seq >= first, LedgerEntry.seq < first + count
    return list(session.scalars(select(LedgerEntry).where(*within).order_by(LedgerEntry.seq)))


def nodes(session: OrmSession, level: int, first: int, count: int) -> list[bytes]:
    """Hashes of neighbouring perfect subtrees of 2**level entries, fewer than `count` where the ledger ends."""
    within = LedgerNode.log_id == LOG_ID, LedgerNode.level == level, LedgerNode.idx >= first, LedgerNode.idx < first + count
    return list(session.scalars(select(LedgerNode.hash).where(*within).order_by(LedgerNode.idx)))
