"""A PostgreSQL database as it is after years: a million entries of the ledger, and the requests that they are of.

Rows are copied in, past the triggers that want them one by one: what appending costs, `bench_ledger` measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session as OrmSession

from service import db
from service.audit.ledger import LOG_ID
from service.files import FileEntry, tree_digest
from service.storage import get_store
from service.tables import Checkpoint, CheckpointFile, RequestEvent, UnlearnRequest, new_id
from service.verifier.merkle import Frontier
from tests.benchmarks.ledger import history

ENTRY = "log_id, seq, leaf, leaf_hash, action, outcome, at, tenant, actor, request_id, request_ordinal, model_id"
GUARDED = ("ledger_entry", "ledger_node", "ledger_head", "unlearn_request", "checkpoint", "checkpoint_file")
A_REQUEST = len(history.facts())
"""Entries."""
MEGABYTE = b"w" * 2**20


def ledger(size: int) -> None:
    """The process's own PostgreSQL database, whose ledger is empty, with `size` entries and their tree."""
    tree, last = Frontier(), None
    with _unguarded() as session:
        cursor = session.connection().connection.driver_connection.cursor()
        for batch in history.batches(history.entries(size)):
            with cursor.copy(f"COPY ledger_entry ({ENTRY}) FROM STDIN") as copy:
                for e in batch:
                    copy.write_row(
                        (LOG_ID, e.seq, e.leaf, e.leaf_hash, e.action, e.outcome, e.at, e.tenant, e.actor, e.request_id,
                         e.request_ordinal, e.model_id)
                    )  # fmt: skip
                    last = e.at
            with cursor.copy("COPY ledger_node (log_id, level, idx, hash) FROM STDIN") as copy:
                for e in batch:
                    for node in tree.append(e.leaf_hash):
                        copy.write_row((LOG_ID, *node))
        said = text("UPDATE ledger_head SET size = :size, last_at = :at, frontier = :frontier")
        session.execute(said, {"size": size, "at": last, "frontier": b"".join(tree.hashes)})


def requests(count: int, model_ids: list[str]) -> None:
    """As many requests that were cancelled, spread over the models, a second between them; ids as in the ledger."""
    one = new_id("ureq")
    with _unguarded() as session:
        at = history.BEGIN
        session.add(_request(one, model_ids[0], at))
        session.flush()
        columns = [column.name for column in UnlearnRequest.__table__.columns]
        own = {
            "id": "'ureq_' || lpad(to_hex(n), 32, '0')",
            "model_id": "(CAST(:models AS text[]))[1 + n % :spread]",
            "created_at": "CAST(:begin AS timestamptz) + n * interval '1 second'",
            "external_id": "'case-' || n",
        }
        chosen = ", ".join(own.get(name, f"r.{name}") for name in columns)
        session.execute(
            text(
                f"INSERT INTO unlearn_request ({', '.join(columns)}) SELECT {chosen} "
                "FROM unlearn_request r, generate_series(0, :last) AS n WHERE r.id = :one"
            ),
            {"models": model_ids, "spread": len(model_ids), "begin": at, "last": count - 1, "one": one},
        )


def analyse() -> None:
    """The planner's statistics, as autovacuum keeps them."""
    with db.get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def checkpoint(folder: Path, model_id: str, megabytes: int) -> str:
    """A published checkpoint of one file of this size; its id."""
    source = folder / "weights.tmp"
    with source.open("wb") as file:
        for _ in range(megabytes):
            file.write(MEGABYTE)
    kept = get_store().put(source)
    file_entry = FileEntry("model.safetensors", kept.size, kept.sha256)
    at, request_id, checkpoint_id = history.BEGIN, new_id("ureq"), new_id("ckpt")
    with _unguarded() as session:
        session.add(_request(request_id, model_id, at, status="succeeded", checkpoint_id=checkpoint_id))
        session.flush()
        session.add(
            Checkpoint(
                id=checkpoint_id, request_id=request_id, model_id=model_id, fence=1, digest=tree_digest([file_entry]),
                certificate={}, created_at=at,
            )
        )  # fmt: skip
        session.flush()
        session.add(CheckpointFile(checkpoint_id=checkpoint_id, **file_entry.row()))
    return checkpoint_id


def running(count: int, model_ids: list[str]) -> list[str]:
    """Requests that some worker is at work on, one a model; their ids."""
    ids = [new_id("ureq") for _ in range(count)]
    with _unguarded() as session:
        for request_id, model_id in zip(ids, model_ids, strict=False):
            session.add(_request(request_id, model_id, history.BEGIN, status="running"))
    return ids


def event(request_id: str, data: dict[str, Any]) -> None:
    """One event more of a request."""
    with db.transaction() as session:
        row = RequestEvent(request_id=request_id, type="unlearning_request.progress", data=data, at=db.now(session))
        session.add(row)


def _request(request_id: str, model_id: str, at: datetime, **columns: Any) -> UnlearnRequest:
    known: dict[str, Any] = {
        "method": "sfron", "params": {}, "seed": 7, "on_conflict": "queue_after", "forget_classes": [1], "forget_samples": [],
        "policy": {"name": "none"}, "client_metadata": {}, "status": "cancelled", "not_before": at, "created_at": at,
        "created_by": "user:local",
    }  # fmt: skip
    return UnlearnRequest(id=request_id, model_id=model_id, **(known | columns))


@contextmanager
def _unguarded() -> Iterator[OrmSession]:
    """A transaction that no trigger looks at, and after which all of them do again, as they did."""
    guards = text(
        "SELECT tgrelid::regclass::text, tgname, tgenabled = 'A' FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgrelid::regclass::text = ANY(:tables)"
    )
    with db.transaction() as session:
        found = session.execute(guards, {"tables": list(GUARDED)}).all()
        for table, name, _ in found:
            session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER {name}"))
        yield session
        session.flush()
        session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))  # a table with events to come is not altered
        for table, name, always in found:
            session.execute(text(f"ALTER TABLE {table} ENABLE {'ALWAYS ' if always else ''}TRIGGER {name}"))
