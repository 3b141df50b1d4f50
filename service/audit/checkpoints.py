"""The ledger's signed checkpoints: which there are, which of them are to be believed, and what is wrong with the others.

The application's role may insert checkpoints, so a row is no checkpoint until its note has been read. One that is not what its
row says is passed over by everybody who looks for the newest, is no part of an export, and is named by `problems`.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, reduce
from itertools import chain
from operator import add
from typing import Any

from sqlalchemy import ColumnElement, Select, case, select
from sqlalchemy.orm import Session as OrmSession

from service import db, tenancy
from service.audit import repository
from service.audit.leaves import KeyAdded, KeyRetired, rfc3339
from service.audit.ledger import LOG_ID
from service.tables import LedgerCheckpoint, LedgerEntry
from service.verifier.note import Checkpoint, Key, Malformed, Note, Policy, Refused

log = logging.getLogger("expunge.checkpoints")

EXAMINED = 64
"""Rows that `problems` looks at, of the largest and of the latest each: a status is asked for often, and a checkpoint is made
every minute. An export looks at all."""

EARLY = "it is dated later than now"


def _newest_first() -> Select[Any]:
    chosen = select(LedgerCheckpoint).where(LedgerCheckpoint.log_id == LOG_ID)
    return chosen.order_by(LedgerCheckpoint.size.desc(), LedgerCheckpoint.created_at.desc())


def keys(session: OrmSession, policy: Policy) -> list[Key]:
    """The keys that have signed this ledger: those of the policy, and those that its entries name, retired ones among them.

    A ledger that goes on under another origin has entries of the keys of both.
    """
    found = list(policy.logs)
    for action, vkey in told_of_keys(session):
        if action == KeyAdded.action:
            with suppress(Malformed):  # a key that nobody can read has signed nothing
                found.append(Key.parse(vkey))
    return found


def told_of_keys(session: OrmSession) -> Iterator[tuple[str, str]]:
    """(action, vkey) of every entry about the log's keys, oldest first. One that is none of ours says nothing here; whoever
    verifies the ledger is told of it.

    They are the first project's, and everybody's checkpoints are signed with them.
    """
    actions = LedgerEntry.action.in_((KeyAdded.action, KeyRetired.action))
    chosen = select(LedgerEntry.leaf).where(LedgerEntry.log_id == LOG_ID, actions, LedgerEntry.leaf.is_not(None))
    with tenancy.acting(None):
        leaves = session.scalars(chosen.order_by(LedgerEntry.seq))
    for leaf in leaves:
        try:
            told = json.loads(leaf or b"")
            if told["public"]["use"] == "ledger":
                yield str(told["type"]), str(told["public"]["vkey"])
        except (ValueError, TypeError, KeyError):
            log.warning("key.unreadable")


def fault(row: LedgerCheckpoint, size: int, known: Sequence[Key] | None) -> str | None:
    """What is wrong with a stored checkpoint; None: it is one of this ledger. Whether witnesses have seen it is not asked.

    Args:
        size: entries that there are.
        known: keys that may have signed it; None: who signed it is not asked either.
    """
    try:
        note = Note.parse(row.note)
        told = Checkpoint.parse(note.text)
        if known is not None and not any(note.by(key) for key in known if key.name == told.origin):
            return f"no key of this ledger has signed it; its origin is {told.origin[:80]}"
    except (Malformed, Refused) as error:
        return str(error)
    if told.size != row.size:
        return f"its note is of {told.size} entries"
    if told.size > size:
        return f"it was signed, and the ledger has {size} entries: its end is missing" if known else "the ledger is shorter"
    return None


def _sound(session: OrmSession, policy: Policy, chosen: Select[Any]) -> Iterator[LedgerCheckpoint]:
    """Those that have no fault; the log names the others, each once a process."""
    known, size = keys(session, policy), repository.size(session)
    with session.scalars(chosen.execution_options(yield_per=16)) as rows:
        for row in rows:
            if sound(row, size, known):
                yield row


def sound(row: LedgerCheckpoint, size: int, known: Sequence[Key] | None) -> bool:
    """Has it no `fault`? Else the log says which."""
    if (why := fault(row, size, known)) is not None:
        _say(row.size, row.created_at, why)
    return why is None


@lru_cache(maxsize=1024)
def _say(size: int, at: datetime, why: str) -> None:
    log.error("checkpoint.skipped", extra={"size": size, "at": at.isoformat(), "why": why})


def problems(session: OrmSession, policy: Policy) -> list[str]:
    """What is wrong with the stored checkpoints, and with the tree that the newest sound one signs; empty: nothing."""
    known, size = keys(session, policy), repository.size(session)
    latest = _newest_first().order_by(None).order_by(LedgerCheckpoint.created_at.desc())
    rows = chain.from_iterable(session.scalars(chosen.limit(EXAMINED)) for chosen in (_newest_first(), latest))
    at = db.now(session)
    found = {(row.size, row.created_at): fault(row, size, known) or (EARLY if row.created_at > at else None) for row in rows}
    told = [f"the checkpoint of size {key[0]}, stored at {rfc3339(key[1])}: {why}" for key, why in found.items() if why]
    if (last := newest(session, policy)) is not None and not _is_root(session, Checkpoint.parse(Note.parse(last.note).text)):
        told.append(f"the ledger's first {last.size} entries are not those that were signed")
    return told


def _is_root(session: OrmSession, told: Checkpoint) -> bool:
    try:
        return repository.root(session, told.size) == told.root
    except LookupError:  # a stored hash is gone
        return False


def newest(session: OrmSession, policy: Policy) -> LedgerCheckpoint | None:
    """The newest that a key of the policy's log signed, whoever has seen it.

    One that is dated later than now is passed over: such a copy would keep the next signature waiting.
    """
    chosen = _newest_first().where(LedgerCheckpoint.created_at <= db.now(session))
    return next((row for row in _sound(session, policy, chosen) if accepts(policy, row.note, quorum=False)), None)


def newest_stamped(session: OrmSession, policy: Policy) -> LedgerCheckpoint | None:
    """The newest with a time stamp of an authority; none that is dated later than now, or no new one would be asked for."""
    stamped = LedgerCheckpoint.time_stamp.is_not(None), LedgerCheckpoint.created_at <= db.now(session)
    return next(_sound(session, policy, _newest_first().where(*stamped)), None)


def beyond(session: OrmSession, policy: Policy) -> LedgerCheckpoint | None:
    """One that the log did sign and that knows of more entries than there are: the ledger's end was cut off."""
    chosen = _newest_first().where(LedgerCheckpoint.size > repository.size(session))
    with session.scalars(chosen.execution_options(yield_per=16)) as rows:
        return next((row for row in rows if accepts(policy, row.note, quorum=False, size=row.size)), None)


def every(session: OrmSession, policy: Policy) -> Iterator[LedgerCheckpoint]:
    """All of them, oldest first."""
    chosen = select(LedgerCheckpoint).where(LedgerCheckpoint.log_id == LOG_ID)
    yield from _sound(session, policy, chosen.order_by(LedgerCheckpoint.size, LedgerCheckpoint.created_at))


def accepted(session: OrmSession, policy: Policy, *, above: int = 0, size: int | None = None) -> LedgerCheckpoint | None:
    """The newest that a key of the policy's log signed and enough of its witnesses cosigned.

    Args:
        above: with more entries than that: the sequence number of an entry that it must cover.
        size: with exactly so many.
    """
    chosen = _newest_first().where(LedgerCheckpoint.size > above)
    if size is not None:
        chosen = chosen.where(LedgerCheckpoint.size == size)
    return next((row for row in _sound(session, policy, _likely(policy, chosen)) if accepts(policy, row.note)), None)


def _likely(policy: Policy, chosen: Select[Any]) -> Select[Any]:
    """Those of them that may reach the quorum."""
    return chosen if policy.quorum in (None, "none") else chosen.where(_may_reach(policy, str(policy.quorum)))


def _may_reach(policy: Policy, name: str) -> ColumnElement[bool]:
    """True for every note that reaches a quorum: it has a line of each witness that it takes, whatever that line is worth.

    While a witness is away the newest ones lack its line, a thousand and more a day. Left to the signatures, each of them would
    be checked again whenever somebody asks.
    """
    if (key := policy.witnesses.get(name)) is not None:
        begins = base64.b64encode(key.id).decode()[:5]  # the sixth is of the signature, too
        return LedgerCheckpoint.note.contains(f"— {key.name} {begins}", autoescape=True)
    k, members = policy.groups[name]
    lines = [case((_may_reach(policy, member), 1), else_=0) for member in members]
    return reduce(add, lines) >= k


def of_origin(session: OrmSession, policy: Policy, origin: str, *, above: int) -> LedgerCheckpoint | None:
    """The newest of a name that the ledger had before it went on under another, seen by enough witnesses if one was.

    Its certificates of that time name that origin, and are proved by no other tree.

    Args:
        above: with more entries than that: the sequence number of an entry that it must cover.
    """
    believed = replace(policy, logs=[key for key in keys(session, policy) if key.name == origin])
    chosen = _newest_first().where(
        LedgerCheckpoint.size > above, LedgerCheckpoint.note.startswith(f"{origin}\n", autoescape=True)
    )
    for quorum in (True, False):
        for row in _sound(session, policy, _likely(believed, chosen) if quorum else chosen):
            if accepts(believed, row.note, quorum=quorum) and _is_root(session, Checkpoint.parse(Note.parse(row.note).text)):
                return row
    return None


def accepts(policy: Policy, note: str, *, quorum: bool = True, size: int | None = None) -> bool:
    """Does the policy accept this checkpoint?

    Args:
        quorum: must enough witnesses have seen it?
        size: which it must be of; None: any.
    """
    try:
        found = policy.checkpoint(note, quorum=quorum)
    except (Malformed, Refused):
        return False
    return size in (None, found.size)
