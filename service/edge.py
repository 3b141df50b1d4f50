"""Where a request's one transaction begins and ends: inside its endpoint, in one thread, before the answer is built.

A dependency would hold the transaction across several hops between threads, and with it the locks; under load the threads
that wait for a lock would be those that its holder needs to let go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from service.db import get_engine, transaction
from service.errors import Unavailable

PATIENCE_SECONDS = 10.0
_turn = threading.Lock()


@contextmanager
def writing() -> Iterator[Session]:
    """One write transaction; committed when the block ends, rolled back on any error.

    On SQLite the writers of this process take turns first. SQLite itself makes them poll with growing pauses, and under load
    some of them lose every time, for seconds.

    Raises:
        Unavailable: no turn within 10 s.
    """
    if get_engine().dialect.name != "sqlite":
        with transaction() as session:
            yield session
        return
    if not _turn.acquire(timeout=PATIENCE_SECONDS):
        raise Unavailable("too many writers are waiting")
    try:
        with transaction() as session:
            yield session
    finally:
        _turn.release()
