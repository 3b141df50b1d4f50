"""Entries as clients see them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from service.audit import repository
from service.audit.schemas import EntryFilters, EntryRead
from service.db import reading
from service.tables import LedgerEntry

EXPORT_BATCH = 500


def read(row: LedgerEntry) -> EntryRead:
    """One entry."""
    return EntryRead(
        seq=row.seq,
        action=row.action,
        outcome=row.outcome,
        at=row.at,
        actor=row.actor,
        request_id=row.request_id,
        model_id=row.model_id,
        leaf_hash=row.leaf_hash.hex(),
        leaf=json.loads(row.leaf),
    )


def export(filters: EntryFilters) -> Iterator[bytes]:
    """Every entry there is at the start, one JSON object a line, however many: a batch at a time, no connection held between.

    `leaf` is the canonical text itself, so that `leaf_hash` can be checked byte for byte.
    """
    with reading() as session:
        below = repository.size(session)
    after = -1
    while True:
        with reading() as session:
            rows = repository.batch(session, filters, after=after, below=below, limit=EXPORT_BATCH)
        yield b"".join(map(_line, rows))
        if len(rows) < EXPORT_BATCH:
            return
        after = rows[-1].seq


def _line(row: LedgerEntry) -> bytes:
    entry = {"seq": row.seq, "leaf_hash": row.leaf_hash.hex(), "leaf": row.leaf.decode()}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
