"""Shredding what was kept long enough, and destroying a month's key once nothing needs it. Every worker's sweeper runs it.

The clock of a request's private data runs from its end, or from the answer to the person where the law asks for one; what
belongs to no request is kept from the day of its entry. A hold stops it. A run may stop half way; the next one, here or on
another host, takes it up.
"""

from __future__ import annotations

import calendar
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, func, or_, select

from service.audit import ledger, shredding
from service.audit.leaves import Actor
from service.audit.ledger import LOG_ID
from service.audit.legal import KekDestroyed
from service.audit.shredding import Ground
from service.audit.vault import KeyStore, month_of
from service.compliance.rules import add_months
from service.db import now, reading, transaction
from service.errors import InvalidTransition, KekNotFound, LegalHold
from service.tables import LedgerEntry, LedgerPrivate, RequestCompliance, UnlearnRequest

log = logging.getLogger("expunge.retention")

RETENTION = Actor(kind="service", id="retention")
OPERATOR = Actor(kind="user", id="operator")
"""Whoever may run commands beside the database; until there are logins, nobody knows more of them."""
BATCH = 100
MOST = 500
"""Rows shredded in one run: the sweeper has other work, and the next run is an hour away at most."""
PAGES_FORGOTTEN = timedelta(days=1)
"""For so long after a shred every run empties SQLite's write-ahead log again."""
SLACK = timedelta(days=1)
"""A month's key is destroyed this long after the month at the earliest: no host's clock may still write under it."""


@dataclass
class Swept:
    """What one run did."""

    scheduled: int = 0
    shredded: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def sweep(keys: KeyStore, months: int) -> Swept:
    """One run. Raises: OSError: a key could not be destroyed; the next run tries again."""
    swept = Swept()
    while found := _schedule(months):
        swept.scheduled += found
    for seq in _due():
        swept.shredded += _shred(seq, RETENTION, "retention_ended")
    if _shredded_lately():  # here just now, or by anybody who could not empty the log
        shredding.forget_pages()
    for kek_id, said in _idle_keys():
        # said and not done: a run that stopped between the two is finished by this one
        if not (said and keys.is_destroyed(kek_id)) and destroy_key(keys, kek_id, actor=RETENTION):
            swept.keys.append(kek_id)
    if swept != Swept():
        log.info("retention.swept", extra={"shredded": len(swept.shredded), "keys": swept.keys})
    return swept


def _schedule(months: int) -> int:
    """Give rows whose clock has begun the day on which it ends; the setting of that day counts. Returns how many."""
    query = (
        select(LedgerPrivate, LedgerEntry.at, UnlearnRequest.finished_at, RequestCompliance.answered_at)
        .join(LedgerEntry, and_(LedgerEntry.log_id == LedgerPrivate.log_id, LedgerEntry.seq == LedgerPrivate.seq))
        .outerjoin(UnlearnRequest, UnlearnRequest.id == LedgerEntry.request_id)
        .outerjoin(RequestCompliance, RequestCompliance.request_id == LedgerEntry.request_id)
        .where(
            LedgerPrivate.log_id == LOG_ID,
            LedgerPrivate.retain_until.is_(None),
            LedgerPrivate.shredded_at.is_(None),
            or_(LedgerEntry.request_id.is_(None), UnlearnRequest.finished_at.is_not(None)),
            or_(RequestCompliance.due_at.is_(None), RequestCompliance.answered_at.is_not(None)),
        )
        .order_by(LedgerPrivate.seq)
        .limit(BATCH)
        .with_for_update(of=LedgerPrivate)
    )
    with transaction() as session:
        rows = session.execute(query).all()
        for row, entered, ended, answered in rows:
            row.retain_until = add_months(max(filter(None, (ended, answered)), default=entered), months)
    return len(rows)


def _due() -> list[int]:
    """The first rows whose time is over and that nobody holds."""
    with reading() as session:
        query = select(LedgerPrivate.seq).where(
            LedgerPrivate.log_id == LOG_ID,
            LedgerPrivate.shredded_at.is_(None),
            LedgerPrivate.retain_until <= now(session),
            LedgerPrivate.legal_hold.is_(False),
        )
        return list(session.scalars(query.order_by(LedgerPrivate.seq).limit(MOST)))


def _shredded_lately() -> bool:
    with reading() as session:
        recent = LedgerPrivate.shredded_at >= now(session) - PAGES_FORGOTTEN
        return session.scalars(select(LedgerPrivate.seq).where(recent).limit(1)).first() is not None


def _shred(seq: int, actor: Actor, ground: Ground) -> list[int]:
    """One row in one transaction, so that a hold on one request keeps no other from being shredded."""
    try:
        with transaction() as session:
            return shredding.shred(session, shredding.private_rows(session, seq=seq, lock=True), actor=actor, ground=ground)
    except LegalHold:  # on another row of the same request, or set a moment ago
        log.info("retention.held", extra={"seq": seq})
        return []


def _idle_keys() -> list[tuple[str, bool]]:
    """Keys of months that are over and of which every row was shredded, and whether the ledger says that they are destroyed."""
    with reading() as session:
        at = now(session)
        alive = select(LedgerPrivate.kek_id).where(LedgerPrivate.shredded_at.is_(None), LedgerPrivate.kek_id.is_not(None))
        unsaid = func.count().filter(LedgerPrivate.kek_destroyed_at.is_(None))
        known = select(LedgerPrivate.kek_id, unsaid).where(
            LedgerPrivate.kek_id.is_not(None), LedgerPrivate.kek_id.not_in(alive)
        )
        rows = session.execute(known.group_by(LedgerPrivate.kek_id).order_by(LedgerPrivate.kek_id))
        return [(name, not count) for name, count in rows if name is not None and _is_over(name, at)]


def _is_over(kek_id: str, at: datetime) -> bool:
    year, month = month_of(kek_id)
    days = calendar.monthrange(year, month)[1]
    return at >= datetime(year, month, days, tzinfo=UTC) + timedelta(days=1) + SLACK


def destroy_key(keys: KeyStore, kek_id: str, *, actor: Actor) -> bool:
    """Destroy a month's key; what it still seals is shredded first, each row with its entry.

    The entry that says so comes before the deed: a crash in between is taken up by the next run.

    Returns:
        False: it was destroyed before.

    Raises:
        ValueError: no key can have such a name.
        KekNotFound: none has, and nothing was ever sealed under it.
        InvalidTransition: the month is not over; something is still being written under it.
        LegalHold: a row that it seals is held.
        OSError: the key could not be destroyed.
    """
    month_of(kek_id)
    with reading() as session:
        used = session.scalars(select(LedgerPrivate.seq).where(LedgerPrivate.kek_id == kek_id).limit(1)).first() is not None
        if not used and not keys.holds(kek_id):
            if keys.is_destroyed(kek_id):
                return False
            raise KekNotFound
        if not _is_over(kek_id, now(session)):
            raise InvalidTransition("the key's month is not over", current_status="in_use")
        sealed = LedgerPrivate.kek_id == kek_id, LedgerPrivate.shredded_at.is_(None)
        alive = list(session.scalars(select(LedgerPrivate.seq).where(*sealed).order_by(LedgerPrivate.seq)))
    for seq in alive:
        with transaction() as session:
            rows = shredding.private_rows(session, seq=seq, lock=True)
            shredding.shred(session, rows, actor=actor, ground="operator")
    if alive:
        shredding.forget_pages()
    with transaction() as session:
        rows = session.scalars(select(LedgerPrivate).where(LedgerPrivate.kek_id == kek_id).with_for_update()).all()
        if rows and all(row.kek_destroyed_at is not None for row in rows):
            return keys.destroy(kek_id)  # again: the deed may have failed after the word
        at = now(session)
        for row in rows:
            row.kek_destroyed_at = at
        ledger.append(session, KekDestroyed(kek_id=kek_id), actor=actor)
    keys.destroy(kek_id)
    return True
