"""Proofs that can be checked without this service: an entry, its place in the tree, and a checkpoint of the tree."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import checkpoints, notes, repository, trust
from service.audit.ledger import LOG_ID
from service.config import get_settings
from service.tables import LedgerCheckpoint, LedgerEntry


def entry(session: OrmSession, seq: int) -> LedgerEntry | None:
    """The entry with this sequence number."""
    return session.get(LedgerEntry, (LOG_ID, seq))


def entry_of(session: OrmSession, request_id: str, action: str) -> int | None:
    """Sequence number of a request's first entry with this action."""
    chosen = select(LedgerEntry.seq).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == request_id)
    return session.scalars(chosen.where(LedgerEntry.action == action).order_by(LedgerEntry.seq).limit(1)).first()


def first_of(session: OrmSession, request_id: str) -> int | None:
    """Sequence number of the entry that a request begins with."""
    key = LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == request_id, LedgerEntry.request_ordinal == 0
    return session.scalars(select(LedgerEntry.seq).where(*key)).first()


def tlog_proof(session: OrmSession, seq: int, *, origin: str | None = None) -> str | None:
    """A C2SP tlog-proof of an entry in the newest checkpoint that the policy accepts; its `extra` is the entry's bytes.

    Args:
        origin: the ledger's name that whoever asks goes by. Where that was its name before, the newest checkpoint of then, if
            one covers the entry.

    Returns:
        None: no such checkpoint covers it yet, or there is no such entry. An entry that was redacted has no `extra`.

    Raises:
        OSError, Malformed: the operator's list of witnesses cannot be used.
    """
    try:
        policy = trust.policy(get_settings())
    except trust.NoLogKey:
        return None
    row = None
    if origin is not None and origin not in {key.name for key in policy.logs}:
        row = checkpoints.of_origin(session, policy, origin, above=seq)
    row = row or checkpoints.accepted(session, policy, above=seq)
    return None if row is None else in_checkpoint(session, seq, row)


def in_checkpoint(session: OrmSession, seq: int, row: LedgerCheckpoint) -> str | None:
    """The same, in a certain checkpoint of more than `seq` entries."""
    found = entry(session, seq)
    if found is None:
        return None
    return notes.proof(seq, repository.inclusion(session, seq, row.size), row.note, found.leaf)
