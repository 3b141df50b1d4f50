"""Appending to the ledger, in the same transaction as the change it describes.

The head row is the last lock a transaction takes: appenders queue there for the shortest time, no two of them can deadlock,
and a rolled-back transaction leaves neither an entry nor a gap in the sequence.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Connection, bindparam, event, insert, select, update
from sqlalchemy.orm import ORMExecuteState, UOWTransaction
from sqlalchemy.orm import Session as OrmSession

from service.audit.leaves import SALT_BYTES, Actor, Fact, commitment, leaf, leaf_hash
from service.config import get_settings
from service.db import UtcDateTime, now
from service.tables import LedgerEntry, LedgerHead, LedgerPrivate

LOG_ID = 1
_LEDGER_ROWS = (LedgerEntry, LedgerHead, LedgerPrivate)
_CLOSED = "ledger.head.locked"


class LockOrderViolation(RuntimeError):
    """A business row was written after the ledger's head was locked."""


def append(
    session: OrmSession,
    fact: Fact,
    *,
    actor: Actor,
    request_id: str | None = None,
    model_id: str | None = None,
    private: dict[str, Any] | None = None,
) -> int:
    """Record a fact. Call it after every other write of the transaction. Returns its sequence number.

    Args:
        private: values that may be personal; only their salted commitment enters the entry, the salt goes to an erasable row.

    Raises:
        LockOrderViolation: at a later flush or statement that writes anything but ledger rows.
    """
    session.flush()
    session.info[_CLOSED] = True
    connection = session.connection()  # plain statements: this is on the path of every request, and no row is ever updated
    seq, last_at = connection.execute(_LOCK_HEAD).one()
    clock = now(session)
    at = max(clock, last_at) if last_at else clock
    request = None if request_id is None else (request_id, *_link(connection, request_id))
    salt = os.urandom(SALT_BYTES) if private is not None else None
    tenant = get_settings().tenant
    data = leaf(
        fact,
        at=at,
        tenant=tenant,
        actor=actor,
        request=request,
        model_id=model_id,
        subject_commitment=commitment(salt, private) if salt and private is not None else None,
    )
    connection.execute(
        insert(LedgerEntry),
        {
            "log_id": LOG_ID,
            "seq": seq,
            "leaf": data,
            "leaf_hash": leaf_hash(data),
            "action": fact.action,
            "outcome": fact.outcome,
            "at": at,
            "tenant": tenant,
            "actor": str(actor),
            "request_id": request_id,
            "request_ordinal": request[1] if request else None,
            "model_id": model_id,
        },
    )
    if salt:
        connection.execute(insert(LedgerPrivate), {"log_id": LOG_ID, "seq": seq, "salt": salt, "shredded_at": None})
    # last, for the insert guard wants seq = size
    connection.execute(_MOVE_HEAD, {"new_size": seq + 1, "new_last_at": at})
    return int(seq)


_LOCK_HEAD = select(LedgerHead.size, LedgerHead.last_at).where(LedgerHead.log_id == LOG_ID).with_for_update()
_MOVE_HEAD = (
    update(LedgerHead)
    .where(LedgerHead.log_id == LOG_ID)
    .values(size=bindparam("new_size"), last_at=bindparam("new_last_at", type_=UtcDateTime()))
)
_LAST_OF_REQUEST = (
    select(LedgerEntry.request_ordinal, LedgerEntry.leaf_hash)
    .where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == bindparam("request_id"))
    .order_by(LedgerEntry.request_ordinal.desc())
    .limit(1)
)


def _link(connection: Connection, request_id: str) -> tuple[int, bytes | None]:
    """The request's next ordinal, and the leaf hash of its previous entry."""
    previous = connection.execute(_LAST_OF_REQUEST, {"request_id": request_id}).one_or_none()
    return (0, None) if previous is None else (previous.request_ordinal + 1, previous.leaf_hash)


@event.listens_for(OrmSession, "before_flush")
def _head_is_last_lock(session: OrmSession, _context: UOWTransaction, _instances: Any) -> None:
    if session.info.get(_CLOSED):
        late = [row for row in (*session.new, *session.dirty, *session.deleted) if not isinstance(row, _LEDGER_ROWS)]
        if any(session.is_modified(row) or row in session.new for row in late):
            raise LockOrderViolation(f"{type(late[0]).__name__} was written after the ledger's head was locked")


@event.listens_for(OrmSession, "do_orm_execute")
def _no_late_statement(state: ORMExecuteState) -> None:
    writes = state.is_update or state.is_delete or state.is_insert
    if writes and state.session.info.get(_CLOSED):
        raise LockOrderViolation("a statement wrote rows after the ledger's head was locked")


@event.listens_for(OrmSession, "after_transaction_end")
def _unlocked(session: OrmSession, transaction: Any) -> None:
    if transaction.parent is None:
        session.info.pop(_CLOSED, None)
