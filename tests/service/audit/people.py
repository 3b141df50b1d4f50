"""A request that says things about a person, and who acts in a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import select

from service import db
from service.audit.leaves import Actor
from service.auth import current_actor
from service.tables import LedgerEntry, LedgerPrivate
from service.verifier.merkle import Frontier, leaf_hash
from tests.support import ask, move, register

NAME = "Wilhelmina Zuckerkandl"
SAID: dict[str, Any] = {"reason": f"{NAME} wants it", "external_id": f"case {NAME}", "metadata": {"who": NAME, "n": 1}}


def ask_about(client: TestClient, folder: Path, *, key: str | None = None, **more: Any) -> str:
    """A request about the person; returns its id."""
    made = ask(client, register(client, folder), 1, key=key, **SAID, **more)
    assert made.status_code == 202, made.text
    return str(made.json()["id"])


def finish(request_id: str) -> None:
    """The request ends, as one that a worker carried out."""
    with db.transaction() as session:
        at = db.now(session)
    move(request_id, "running")
    move(request_id, "succeeded", finished_at=at)


@contextmanager
def acting(client: TestClient, name: str) -> Iterator[None]:
    """Somebody else is at the keyboard."""
    overrides = client.app.dependency_overrides  # type: ignore[attr-defined]
    overrides[current_actor] = lambda: Actor(kind="user", id=name)
    try:
        yield
    finally:
        del overrides[current_actor]


def entries(action: str = "") -> list[LedgerEntry]:
    """Entries whose action begins so."""
    with db.reading() as session:
        found = session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq))
        return [entry for entry in found if entry.action.startswith(action)]


def said(entry: LedgerEntry) -> dict[str, Any]:
    """The public part of an entry."""
    assert entry.leaf is not None
    public: dict[str, Any] = json.loads(entry.leaf)["public"]
    return public


def private(seq: int) -> LedgerPrivate:
    """An entry's private row."""
    with db.reading() as session:
        return session.get_one(LedgerPrivate, (1, seq))


def received(request_id: str) -> int:
    """Sequence number of the entry that a request begins with."""
    (seq,) = (e.seq for e in entries("unlearning.request.received") if e.request_id == request_id)
    return seq


def require_clean() -> None:
    """What an offline verifier asks: every text hashes to its leaf hash, the tree is that of these, chains hold, and what is
    missing is said to be."""
    from service.audit import repository

    found = entries()
    tree, chains, redacted, shredded = Frontier(), {}, set(), set()  # type: ignore[var-annotated]
    for seq, entry in enumerate(found):
        assert entry.seq == seq
        tree.append(entry.leaf_hash)
        if entry.leaf is None:
            redacted.add((seq, entry.redacted_by))
        else:
            assert leaf_hash(entry.leaf) == entry.leaf_hash
        if entry.request_id is not None:
            ordinal, before = chains.get(entry.request_id, (0, None))
            assert entry.request_ordinal == ordinal
            if entry.leaf is not None:
                assert json.loads(entry.leaf)["request"]["prev"] == before
            chains[entry.request_id] = (ordinal + 1, entry.leaf_hash.hex())
        if entry.action == "private.shredded":
            shredded.update(said(entry)["seqs"])
    with db.reading() as session:
        assert repository.root(session, len(found)) == tree.root()
        gone = session.scalars(select(LedgerPrivate.seq).where(LedgerPrivate.shredded_at.is_not(None)))
        assert set(gone) == shredded
    assert redacted == {(said(e)["seq"], e.seq) for e in found if e.action == "entry.redacted"}
