"""Where a request's one transaction begins and ends: inside its endpoint, in one thread, before the answer is built.

A dependency would hold the transaction across several hops between threads, and with it the locks; under load the threads
that wait for a lock would be those that its holder needs to let go.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.db import get_engine, transaction
from service.errors import ConcurrentChange, Unavailable

PATIENCE_SECONDS = 10.0
DECISIONS = frozenset({"checkpoint_revocation", "version_disposition", "ledger_redaction"})
"""Tables where the same key twice means two people at the same moment, and no mistake of ours. Whoever writes them locks first
what the decision is about; this is for those whom a lock does not hold."""
_SQLITE_UNIQUE = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_TRIGGER"})
_SQLITE_TABLE = re.compile(r"(?:UNIQUE constraint failed: (\w+)\.|(\w+) rows are not replaced$)")
_turn = threading.Lock()


@contextmanager
def writing() -> Iterator[Session]:
    """One write transaction; committed when the block ends, rolled back on any error.

    On SQLite the writers of this process take turns first. SQLite itself makes them poll with growing pauses, and under load
    some of them lose every time, for seconds.

    Raises:
        Unavailable: no turn within 10 s.
        ConcurrentChange: somebody else decided the same at the same moment.
    """
    try:
        if get_engine().dialect.name != "sqlite":
            with transaction() as session:
                yield session
            return
        with _one_at_a_time(), transaction() as session:
            yield session
    except IntegrityError as error:
        if _taken(error) in DECISIONS:
            raise ConcurrentChange from error
        raise


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    if not _turn.acquire(timeout=PATIENCE_SECONDS):
        raise Unavailable("too many writers are waiting")
    try:
        yield
    finally:
        _turn.release()


def _taken(error: IntegrityError) -> str | None:
    """The table that holds this key already; None: something else is wrong."""
    if getattr(error.orig, "sqlstate", None) == "23505":  # PostgreSQL's unique_violation
        return str(error.orig.diag.table_name)  # type: ignore[union-attr]
    if getattr(error.orig, "sqlite_errorname", None) not in _SQLITE_UNIQUE:
        return None
    found = _SQLITE_TABLE.match(str(error.orig))
    return found and (found[1] or found[2])
