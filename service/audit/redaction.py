"""Taking the text of an entry away. The hash stays, and so the tree; an entry of its own says who did it and why.

Part of the caller's one transaction. The database lets exactly this through: the leaf of one entry becomes null after an
`entry.redacted` that names it.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger, shredding
from service.audit.leaves import Actor, EntryRedacted
from service.audit.ledger import LOG_ID
from service.audit.legal import RedactionRequested
from service.db import now
from service.errors import InvalidTransition, NotFound, SelfApproval
from service.tables import LedgerEntry, LedgerRedaction, UnlearnRequest, new_id
from service.values import is_id

Ground = Literal["personal_data", "court_order", "security", "third_party_right"]
WITNESSES = frozenset(
    {"entry.redacted", "private.shredded", "redaction.requested", "kek.destroyed", "plan.committed"}
    | {"certificate.issued", "certificate.superseded", "certificate.revoked", "key.added", "key.retired"}
)
"""Entries that explain why others are not what they were, and those that a certificate stands on. They hold ids and digests."""


def request(session: OrmSession, *, seq: int, ground: Ground, actor: Actor, four_eyes: str) -> LedgerRedaction:
    """Ask for a redaction; where one person is enough, it is done at once. Asking again finds the first one.

    Raises:
        NotFound: there is no such entry.
        InvalidTransition: the entry explains others and stays.
    """
    entry = session.get(LedgerEntry, (LOG_ID, seq))
    if entry is None:
        raise NotFound("no entry has this number")
    if entry.action in WITNESSES:
        raise InvalidTransition("an entry that other records stand on stays", current_status=entry.action)
    chosen = select(LedgerRedaction).where(LedgerRedaction.log_id == LOG_ID, LedgerRedaction.seq == seq)
    if (first := session.scalars(chosen.with_for_update()).one_or_none()) is not None:
        session.expire(entry)  # it may have lost its text while this waited
        return first
    at, who, alone = now(session), str(actor), four_eyes == "solo"
    row = LedgerRedaction(
        id=new_id("redact"),
        log_id=LOG_ID,
        seq=seq,
        ground=ground,
        four_eyes=four_eyes,
        requested_by=who,
        requested_at=at,
        approved_by=who if alone else None,
        approved_at=at if alone else None,
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # somebody else asked at the same moment: theirs is the first one
        first = session.scalars(chosen.with_for_update()).one_or_none()
        if first is None:
            raise
        session.expire(entry)
        return first
    if alone:
        _take_away(session, row, actor)
    else:
        ledger.append(session, RedactionRequested(seq=seq, ground=ground), actor=actor)
    return row


def approve(session: OrmSession, redaction_id: str, *, actor: Actor) -> LedgerRedaction:
    """Approve what somebody else asked for. Approving what is done changes nothing.

    Raises:
        NotFound.
        SelfApproval: the one who asked cannot be the second person; the database refuses it, too.
    """
    chosen = select(LedgerRedaction).where(LedgerRedaction.id == redaction_id).with_for_update()
    row = session.scalars(chosen).one_or_none() if is_id(redaction_id) else None
    if row is None:
        raise NotFound("no redaction has this id")
    if row.approved_by is not None:
        return row
    if row.requested_by == str(actor):
        raise SelfApproval
    row.approved_by, row.approved_at = str(actor), now(session)
    _take_away(session, row, actor)
    return row


def _take_away(session: OrmSession, row: LedgerRedaction, actor: Actor) -> None:
    alone = row.approved_by == row.requested_by
    seq, asked = row.seq, None if alone else row.requested_by
    fact = EntryRedacted(seq=seq, ground=row.ground, requested_by=asked, self_approved=alone)
    owner = session.get_one(LedgerEntry, (LOG_ID, seq)).request_id
    if owner is not None:  # the request's row first, as everywhere: it may be publishing just now
        session.execute(select(UnlearnRequest.id).where(UnlearnRequest.id == owner).with_for_update())
        if not shredding.held_among(session, {owner}):  # a hold outlives this, and the shred that follows it erases it
            shredding.erase_commitment(session, owner)
    by = ledger.append(session, fact, actor=actor)
    # a ledger row of its own: plain SQL, for no business row may be written after the head was locked
    gone = update(LedgerEntry.__table__).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.seq == seq)  # type: ignore[arg-type]
    session.connection().execute(gone.values(leaf=None, redacted_by=by))
    session.expire_all()
