"""A writer of the ledger that is a process of its own."""

from __future__ import annotations

import os

from service import db
from service.audit import ledger
from service.audit.leaves import LOCAL, RequestClosed

SHARED = "ureq_shared"
ROLLED_BACK = 10
"""One in so many."""


def own(number: int) -> str:
    """The request that a writer alone writes of."""
    return f"ureq_{number}"


def work(url: str, number: int, count: int) -> int:
    """Append to a database, by turns to an own request and to one that all share; every tenth is rolled back.

    Returns:
        The process that did it.
    """
    os.environ["EXPUNGE_DATABASE_URL"] = url
    db.reset()
    for n in range(count):
        try:
            with db.transaction() as session:
                request_id = SHARED if n % 2 else own(number)
                ledger.append(session, RequestClosed(status="failed"), actor=LOCAL, request_id=request_id, private={"n": n})
                if n % ROLLED_BACK == number % ROLLED_BACK:
                    raise KeyError("roll back")
        except KeyError:
            pass
    db.reset()
    return os.getpid()
