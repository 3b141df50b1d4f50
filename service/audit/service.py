"""Entries as clients see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from service.audit import repository
from service.audit.schemas import EntryFilters, EntryRead
from service.audit.shredding import NOTHING, Opened
from service.db import reading
from service.tables import LedgerEntry

EXPORT_BATCH = 500


def read(row: LedgerEntry, private: Opened = NOTHING) -> EntryRead:
    """One entry, with what it commits to where that was opened."""
    return EntryRead(
        seq=row.seq,
        action=row.action,
        outcome=row.outcome,
        at=row.at,
        actor=row.actor,
        request_id=row.request_id,
        model_id=row.model_id,
        leaf_hash=row.leaf_hash.hex(),
        leaf=None if row.leaf is None else json.loads(row.leaf),
        redacted_by=row.redacted_by,
        private=private.values,
        private_fault=private.fault,
    )


def entries(filters: EntryFilters, below: int) -> Iterator[LedgerEntry]:
    """Entries before `below`, however many: a batch at a time, no connection held between."""
    after = -1
    while True:
        with reading() as session:
            rows = repository.batch(session, filters, after=after, below=below, limit=EXPORT_BATCH)
        yield from rows
        if len(rows) < EXPORT_BATCH:
            return
        after = rows[-1].seq


def export(filters: EntryFilters, below: int) -> Iterator[bytes]:
    """Entries before `below`, one JSON object a line.

    `leaf` is the canonical text itself, so that `leaf_hash` can be checked byte for byte; where it was redacted there is
    `redacted_by` instead.
    """
    return map(_line, entries(filters, below))


def _line(row: LedgerEntry) -> bytes:
    entry: dict[str, Any] = {"seq": row.seq, "leaf_hash": row.leaf_hash.hex()}
    entry |= {"redacted_by": row.redacted_by} if row.leaf is None else {"leaf": row.leaf.decode()}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
