"""Appending to the ledger, in the same transaction as the change it describes.

The head row is the last lock a transaction takes: appenders queue there for the shortest time, no two of them can deadlock,
and a rolled-back transaction leaves neither an entry nor a gap in the sequence.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, event, insert, literal_column, select, true, update
from sqlalchemy.orm import ORMExecuteState, UOWTransaction
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit.leaves import SALT_BYTES, Actor, Fact, commitment, leaf, private_digest
from service.audit.vault import Key, fresh_key, get_keys
from service.db import UtcDateTime
from service.tables import LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerNode, LedgerPrivate, Model
from service.verifier.merkle import HASH_BYTES, Frontier, leaf_hash

LOG_ID = 1
SEALED = ("kek_id", "salt", "dek_wrapped", "ciphertext")
_LEDGER_ROWS = (LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerNode, LedgerPrivate)
REQUEST_DATA = "request"
"""Class of what somebody said about a request: retained until some time after its end."""
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
        private: values that may be personal; only their salted commitment and the digest of their ciphertext enter the entry.
            Salt, wrapped key and ciphertext go to an erasable row.

    Raises:
        KekGone, OSError: the key that private values are sealed with cannot be had.
        LockOrderViolation: at a later flush or statement that writes anything but ledger rows.
    """
    session.flush()
    tenant = _tenant(session, model_id)
    key = fresh_key(get_keys(), tenant) if private is not None else None  # before the head: it may take a disk's time
    session.info[_CLOSED] = True
    connection = session.connection()  # plain statements: this is on the path of every request, and no row is ever updated
    database = _DATABASES[connection.dialect.name]
    head = database.lock(connection, request_id)
    at = max(head.clock, head.last_at) if head.last_at else head.clock
    kept = _kept(key, private, head.size) if key is not None and private is not None else None
    data = leaf(
        fact,
        at=at,
        tenant=tenant,
        actor=actor,
        request=None if request_id is None else (request_id, head.ordinal, head.previous),
        model_id=model_id,
        subject_commitment=commitment(kept["salt"], private) if kept and private is not None else None,
        private_sha256=private_digest(*(kept[name] for name in SEALED)) if kept else None,
    )
    row = {
        "log_id": LOG_ID,
        "seq": head.size,
        "leaf": data,
        "action": fact.action,
        "outcome": fact.outcome,
        "at": at,
        "tenant": tenant,
        "actor": str(actor),
        "request_id": request_id,
        "request_ordinal": None if request_id is None else head.ordinal,
        "model_id": model_id,
    }
    database.append(connection, head, row, kept)
    return head.size


def _tenant(session: OrmSession, model_id: str | None) -> str:
    """The project that is acted in; where nobody's is, as on a worker, the model's."""
    mine = tenancy.project()
    if mine is None and model_id is not None and (model := session.get(Model, model_id)) is not None:
        mine = model.project_id
    return tenancy.tenant(mine or tenancy.HOME)


def _kept(key: Key, private: dict[str, Any], seq: int) -> dict[str, Any]:
    """The erasable row."""
    sealed = key.seal(private, log_id=LOG_ID, seq=seq)
    return {
        "log_id": LOG_ID,
        "seq": seq,
        "salt": os.urandom(SALT_BYTES),
        "kek_id": sealed.kek_id,
        "dek_wrapped": sealed.dek_wrapped,
        "ciphertext": sealed.ciphertext,
        "kind": REQUEST_DATA,
        "retain_until": None,
        "legal_hold": False,
        "shredded_at": None,
        "kek_destroyed_at": None,
    }


@dataclass(frozen=True)
class _Head:
    """What an appender sees once it holds the head."""

    size: int
    last_at: datetime | None
    clock: datetime
    ordinal: int
    """The next one of the request."""
    previous: bytes | None
    """Leaf hash of the request's previous entry."""
    frontier: bytes = b""


class _PostgreSQL:
    """Two calls of functions that the application's role may execute; the tables it may only read."""

    @staticmethod
    def lock(connection: Connection, request_id: str | None) -> _Head:
        found = connection.exec_driver_sql(_PG_LOCK, {"log": LOG_ID, "request": request_id}).one()
        size, last_at, clock, ordinal, previous = found
        return _Head(
            size, last_at and last_at.astimezone(UTC), clock.astimezone(UTC), 0 if ordinal is None else ordinal + 1, previous
        )

    @staticmethod
    def append(connection: Connection, _head: _Head, row: dict[str, Any], kept: dict[str, Any] | None) -> None:
        connection.exec_driver_sql(_PG_APPEND if kept is None else _PG_APPEND_KEPT, row | (kept or {}))


class _SQLite:
    """The same in plain statements: there are no roles, and no way to the network."""

    @staticmethod
    def lock(connection: Connection, request_id: str | None) -> _Head:
        found = connection.execute(_LOCK, {"request_id": request_id}).one()
        ordinal = 0 if found.ordinal is None else found.ordinal + 1
        clock = datetime.fromisoformat(found.clock).replace(tzinfo=UTC)
        return _Head(found.size, found.last_at, clock, ordinal, found.previous, found.frontier)

    @staticmethod
    def append(connection: Connection, head: _Head, row: dict[str, Any], kept: dict[str, Any] | None) -> None:
        if kept is not None:
            connection.execute(_INSERT_KEPT, kept)
        edge = [head.frontier[i : i + HASH_BYTES] for i in range(0, len(head.frontier), HASH_BYTES)]
        tree = Frontier(head.size, edge)
        value = leaf_hash(row["leaf"])
        connection.execute(_INSERT_ENTRY, {**row, "leaf_hash": value})
        nodes = [{"log_id": LOG_ID, "level": level, "idx": idx, "hash": made} for level, idx, made in tree.append(value)]
        connection.execute(_INSERT_NODES, nodes)
        # last, for the insert guard wants seq = size
        moved = {"new_size": tree.size, "new_last_at": row["at"], "new_frontier": b"".join(tree.hashes)}
        connection.execute(_MOVE_HEAD, moved)


_DATABASES: dict[str, type[_PostgreSQL] | type[_SQLite]] = {"postgresql": _PostgreSQL, "sqlite": _SQLite}

# Written as the driver wants them: what SQLAlchemy adds to a statement's cost is time that the head is held.
_PG_LOCK = "SELECT size, last_at, clock, ordinal, prev FROM expunge_ledger_lock(%(log)s, CAST(%(request)s AS text))"
_PG_APPEND = (
    "SELECT expunge_ledger_append(%(log_id)s, CAST(%(seq)s AS bigint), %(leaf)s, %(action)s, %(outcome)s, %(at)s, %(tenant)s, "
    "%(actor)s, CAST(%(request_id)s AS text), CAST(%(request_ordinal)s AS integer), CAST(%(model_id)s AS text))"
)
_PG_APPEND_KEPT = (
    "WITH kept AS (INSERT INTO ledger_private "
    '(log_id, seq, salt, kek_id, dek_wrapped, ciphertext, "class", retain_until, legal_hold, shredded_at, kek_destroyed_at) '
    "VALUES (%(log_id)s, CAST(%(seq)s AS bigint), %(salt)s, %(kek_id)s, %(dek_wrapped)s, %(ciphertext)s, %(kind)s, "
    "CAST(%(retain_until)s AS timestamptz), %(legal_hold)s, CAST(%(shredded_at)s AS timestamptz), "
    "CAST(%(kek_destroyed_at)s AS timestamptz))) " + _PG_APPEND
)
"""One way to the server less while the head is held."""
_OF_REQUEST = (
    select(LedgerEntry.request_ordinal, LedgerEntry.leaf_hash)
    .where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == bindparam("request_id"))
    .order_by(LedgerEntry.request_ordinal.desc())
    .limit(1)
    .subquery()
)
_LOCK = (
    select(
        LedgerHead.size,
        LedgerHead.last_at,
        LedgerHead.frontier,
        literal_column("strftime('%Y-%m-%d %H:%M:%f', 'now')").label("clock"),
        _OF_REQUEST.c.request_ordinal.label("ordinal"),
        _OF_REQUEST.c.leaf_hash.label("previous"),
    )
    .select_from(LedgerHead)
    .outerjoin(_OF_REQUEST, true())
    .where(LedgerHead.log_id == LOG_ID)
)
"""On SQLite the transaction itself is the lock: it began as BEGIN IMMEDIATE."""
_INSERT_ENTRY, _INSERT_NODES, _INSERT_KEPT = insert(LedgerEntry), insert(LedgerNode), insert(LedgerPrivate)
_MOVE_HEAD = (
    update(LedgerHead)
    .where(LedgerHead.log_id == LOG_ID)
    .values(
        size=bindparam("new_size"), last_at=bindparam("new_last_at", type_=UtcDateTime()), frontier=bindparam("new_frontier")
    )
)


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
