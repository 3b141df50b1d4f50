"""The database takes an entry for nothing but what it says, and a redaction for nothing but what was approved.

Whoever holds the application's login can call `expunge_ledger_append`, or on SQLite write the tables, with values of their own.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from service import db
from service.audit import ledger, redaction
from service.audit.leaves import LOCAL, Actor, EntryRedacted, Fact, RequestClosed, canonical, leaf
from service.audit.ledger import _DATABASES, LOG_ID
from service.audit.legal import RedactionRequested
from service.tables import LedgerRedaction
from tests.service.audit.logs import grow
from tests.service.audit.people import entries, require_clean

OF = "ureq_1"
TIME = "neither older than the last one nor of the future"
TEXT = "is what its text says, next in its request"
ANNA, BEN = Actor(kind="user", id="anna"), Actor(kind="user", id="ben")


def forged(
    session: Any,
    *,
    said: dict[str, Any] | None = None,
    by: timedelta = timedelta(0),
    at: datetime | None = None,
    chain: dict[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Append an entry of a request as the service does, but for what a test puts in another's place.

    Args:
        said: instead of what the text says.
        by: from the database's clock; `at`: at this time.
        chain: instead of the request's place in its chain, in text and column alike.
    """
    connection = session.connection()
    database = _DATABASES[connection.dialect.name]
    head = database.lock(connection, OF)
    at = at or head.clock + by
    place = {"ordinal": head.ordinal, "prev": head.previous} | (chain or {})
    fact = RequestClosed(status="failed")
    data = leaf(
        fact, at=at, tenant="default", actor=LOCAL, request=(OF, place["ordinal"], place["prev"]), model_id="mdl_1",
        subject_commitment=None,
    )  # fmt: skip
    row = {
        "log_id": LOG_ID, "seq": head.size, "leaf": canonical(json.loads(data) | (said or {})), "action": fact.action,
        "outcome": fact.outcome, "at": at, "tenant": "default", "actor": str(LOCAL), "request_id": OF,
        "request_ordinal": place["ordinal"], "model_id": "mdl_1",
    }  # fmt: skip
    database.append(connection, head, row | columns, None)


def last_at() -> datetime:
    return entries()[-1].at


def test_an_honest_entry_passes(database: str) -> None:
    """Alone, after others of its request, and among those of another."""
    for _ in range(3):
        with db.transaction() as session:
            forged(session)
        grow(1)
        grow(1, request_id="ureq_2")
    with db.transaction() as session:
        forged(session, chain={"ordinal": 3})
    assert [e.request_ordinal for e in entries() if e.request_id == OF] == [0, 1, 2, 3]
    require_clean()


def test_the_time_is_between_the_last_entry_and_the_databases_clock(database: str) -> None:
    with db.transaction() as session:
        forged(session)
    last = last_at()
    for lie in ({"by": timedelta(minutes=1)}, {"by": timedelta(days=-1)}, {"at": last - timedelta(milliseconds=1)}):
        with pytest.raises(DBAPIError, match=TIME), db.transaction() as session:
            forged(session, **lie)
    with db.transaction() as session:
        forged(session, at=last)  # as after the clock was set back
    assert len(entries()) == 2


def test_an_entry_is_not_of_before_its_transaction(database: str) -> None:
    """A ledger that slept takes no entry of the time between."""
    if "postgresql" not in database:
        pytest.skip("SQLite does not know when a transaction began")
    with pytest.raises(DBAPIError, match=TIME), db.transaction() as session:
        forged(session, by=timedelta(seconds=-30))


LIES: list[dict[str, Any]] = [
    {"said": {"type": "run.lost"}},
    {"said": {"outcome": "failed"}},
    {"said": {"at": "2026-01-01T00:00:00.000000Z"}},
    {"said": {"tenant": "other"}},
    {"said": {"actor": {"kind": "user", "id": "somebody"}}},
    {"said": {"actor": {"kind": "worker", "id": "local"}}},
    {"said": {"actor": None}},
    {"said": {"model": None}},
    {"said": {"model": "mdl_2"}},
    {"said": {"request": None}},
    {"said": {"request": {"id": "ureq_2", "ordinal": 1, "prev": "0" * 64}}},
    {"action": "run.lost"},
    {"outcome": "failed"},
    {"tenant": "other"},
    {"actor": "user:somebody"},
    {"model_id": None},
    {"request_id": None, "request_ordinal": None},
    {"request_id": "ureq_2"},
    {"request_id": "ureq_2", "request_ordinal": 0},
    {"request_ordinal": 2},
    {"chain": {"ordinal": 2}},
    {"chain": {"ordinal": 0, "prev": None}},
    {"chain": {"prev": None}},
    {"chain": {"prev": b"\1" * 32}},
    {"chain": {"ordinal": None, "prev": None}},
]


def test_columns_and_chain_are_what_the_text_says(database: str) -> None:
    with db.transaction() as session:
        forged(session)
    for lie in LIES:
        with pytest.raises(DBAPIError, match=rf"{TEXT}|uq_ledger_entry|UNIQUE"), db.transaction() as session:
            forged(session, **lie)
    for data in (b"no JSON", b"\xff\xfe", b"[]", b"7", b"null"):
        with pytest.raises(DBAPIError), db.transaction() as session:
            forged(session, leaf=data)
    assert len(entries()) == 1


def test_the_clock_that_was_set_back_stops_no_entry(database: str) -> None:
    """Then entries are as old as the last one, until the clock has caught up."""
    with db.transaction() as session:
        forged(session, by=timedelta(seconds=4))
    ahead = last_at()
    grow(2)
    assert [e.at for e in entries()] == [ahead] * 3


# ----------------------------------------------------------------------------------------------------------- redactions


def refused(seq: int, fact: Fact | None = None, actor: Actor = LOCAL) -> None:
    """The text stays, whatever entry is put forward."""
    with pytest.raises(DBAPIError, match="append-only"), db.transaction() as session:  # noqa: PT012 — one transaction
        by = ledger.append(session, fact or EntryRedacted(seq=seq, ground="security"), actor=actor)
        session.execute(text(f"UPDATE ledger_entry SET leaf = NULL, redacted_by = {by} WHERE seq = {seq}"))
    assert entries()[seq].leaf is not None


def row(session: Any, seq: int, four_eyes: str, *, by: Actor, approved: Actor | None = None) -> None:
    at = db.now(session)
    told = {"id": f"r{seq}", "log_id": 1, "seq": seq, "ground": "security", "four_eyes": four_eyes, "requested_by": str(by)}
    done = {"approved_by": str(approved), "approved_at": at} if approved else {}
    session.execute(insert(LedgerRedaction), [{**told, "requested_at": at, **done}])


def approve(seq: int, by: Actor) -> None:
    with db.transaction() as session:
        session.execute(
            text("UPDATE ledger_redaction SET approved_by = :by, approved_at = requested_at WHERE seq = :seq"),
            {"by": str(by), "seq": seq},
        )


def test_an_entry_that_names_another_redacts_nothing_by_itself(database: str) -> None:
    grow(3)
    refused(1)
    with db.transaction() as session:
        row(session, 2, "solo", by=LOCAL, approved=LOCAL)
    refused(1)  # another one's approval
    refused(2, EntryRedacted(seq=2, ground="court_order"))  # on another ground
    refused(2, EntryRedacted(seq=2, ground="security"), actor=ANNA)  # by somebody else than who approved it


def test_a_redaction_that_takes_two_people_takes_both(database: str) -> None:
    grow(2)
    with pytest.raises(DBAPIError, match="asked for first and approved later"), db.transaction() as session:
        row(session, 1, "two", by=ANNA, approved=BEN)
    with db.transaction() as session:
        row(session, 1, "two", by=ANNA)
    done = EntryRedacted(seq=1, ground="security", requested_by=str(ANNA), self_approved=False)
    for actor in (ANNA, BEN):
        refused(1, done, actor)  # nobody has approved it
    approve(1, BEN)
    refused(1, done, BEN)  # the ledger does not know that Anna asked
    with db.transaction() as session:
        ledger.append(session, RedactionRequested(seq=1, ground="security"), actor=BEN)
    refused(1, done, BEN)  # nor does it now
    with db.transaction() as session:
        ledger.append(session, RedactionRequested(seq=0, ground="security"), actor=ANNA)
    refused(1, done, BEN)
    with db.transaction() as session:
        ledger.append(session, RedactionRequested(seq=1, ground="security"), actor=ANNA)
    refused(1, done, ANNA)  # she is not the one who approved it
    with db.transaction() as session:
        by = ledger.append(session, done, actor=BEN)
        session.execute(text(f"UPDATE ledger_entry SET leaf = NULL, redacted_by = {by} WHERE seq = 1"))
    assert entries()[1].leaf is None


@pytest.mark.parametrize("four_eyes", ["solo", "two"])
def test_what_the_service_does_passes(database: str, four_eyes: str) -> None:
    grow(2)
    with db.transaction() as session:
        asked = redaction.request(session, seq=1, ground="security", actor=ANNA, four_eyes=four_eyes).id
    if four_eyes == "two":
        with db.transaction() as session:
            redaction.approve(session, asked, actor=BEN)
    assert [e.leaf is None for e in entries()[:2]] == [False, True]
    require_clean()
