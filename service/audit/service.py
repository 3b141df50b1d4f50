"""Entries as clients see them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session as OrmSession

from service.audit import repository
from service.audit.schemas import EntryFilters, EntryRead
from service.audit.shredding import NOTHING, Opened
from service.compliance import formats
from service.db import snapshot
from service.tables import LedgerEntry

EXPORT_BATCH = 500
COLUMNS = ("seq", "at", "action", "outcome", "actor", "tenant", "request_id", "request_ordinal", "model_id", "redacted_by")


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


def entries(session: OrmSession, filters: EntryFilters) -> Iterator[LedgerEntry]:
    """Entries that pass the filters, however many, a batch at a time. Give it a snapshot, or they are of several moments."""
    after, below = -1, repository.size(session)
    while True:
        rows = repository.batch(session, filters, after=after, below=below, limit=EXPORT_BATCH)
        yield from rows
        if len(rows) < EXPORT_BATCH:
            return
        after = rows[-1].seq


def export(filters: EntryFilters, kind: Literal["csv", "jsonl"], scratch: Path | None = None) -> tuple[Path, int]:
    """The entries that pass, as of one moment, in a temporary file that its caller removes; and how many they are.

    In a file, for a slow reader must hold neither a connection nor the moment. JSON lines: `leaf` is the canonical text itself,
    so that `leaf_hash` can be checked byte for byte; where it was redacted there is `redacted_by` instead. CSV: `COLUMNS`.

    Raises:
        OSError: no room.
    """
    count = 0

    def counted(rows: Iterator[LedgerEntry]) -> Iterator[LedgerEntry]:
        nonlocal count
        for count, row in enumerate(rows, 1):  # noqa: B007 — the caller's
            yield row

    with tempfile.NamedTemporaryFile(prefix="expunge-export-", dir=scratch, delete=False) as file:
        try:
            with snapshot() as session:
                rows = counted(entries(session, filters))
                file.writelines(_table(rows) if kind == "csv" else map(_line, rows))
        except BaseException:
            Path(file.name).unlink()
            raise
    return Path(file.name), count


def _table(rows: Iterator[LedgerEntry]) -> Iterator[bytes]:
    return formats.lines(COLUMNS, ({name: getattr(row, name) for name in COLUMNS} for row in rows), "csv", name="audit")


def _line(row: LedgerEntry) -> bytes:
    entry: dict[str, Any] = {"seq": row.seq, "leaf_hash": row.leaf_hash.hex()}
    entry |= {"redacted_by": row.redacted_by} if row.leaf is None else {"leaf": row.leaf.decode()}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
