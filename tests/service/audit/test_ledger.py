"""The ledger: gapless, append-only in both databases, and silent about people."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from fastapi.testclient import TestClient
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError

from service import db
from service.audit import ledger
from service.audit.leaves import LOCAL, ModelRegistered
from service.audit.ledger import LockOrderViolation
from service.config import get_settings
from service.tables import Attempt, Checkpoint, CheckpointFile, Dataset, LedgerEntry, LedgerPrivate, ModelVersion
from service.verifier.merkle import leaf_hash
from tests.support import ask, attempt, code_of, publish, register

FACT = ModelRegistered(family="ddpm", dataset_id="d", version_id="v", digest="0" * 64)


def _entries() -> list[LedgerEntry]:
    with db.reading() as session:
        return list(session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq)))


def _append(count: int, **more: Any) -> None:
    for _ in range(count):
        with db.transaction() as session:
            ledger.append(session, FACT, actor=LOCAL, **more)


def test_an_entry_is_canonical_and_hashes_to_its_leaf_hash(database: str) -> None:
    _append(1, model_id="mdl_x")
    (entry,) = _entries()
    assert entry.leaf == rfc8785.dumps(json.loads(entry.leaf))
    assert entry.leaf_hash == hashlib.sha256(b"\x00" + entry.leaf).digest() == leaf_hash(entry.leaf)


@pytest.mark.parametrize("statement", ["UPDATE {t} SET {c} = {c}", "DELETE FROM {t}"])
def test_the_database_refuses_to_change_what_is_recorded(client: TestClient, tmp_path: Path, statement: str) -> None:
    model = register(client, tmp_path)
    publish(model, ask(client, model, 1).json()["id"], {"w.safetensors": b"x"}, tmp_path)
    for table, column in ((LedgerEntry, "leaf"), (Checkpoint, "digest"), (CheckpointFile, "sha256")):
        sql = statement.format(t=table.__tablename__, c=column)
        with pytest.raises(DBAPIError, match="append-only"), db.transaction() as session:
            session.execute(text(sql))


def test_an_attempt_is_kept_and_may_still_say_how_it_ended(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    attempt(request["id"], fence=1)
    verbs = ["DELETE FROM attempt"] + ["TRUNCATE attempt"] * (db.get_engine().dialect.name == "postgresql")
    for statement in verbs:
        with pytest.raises(DBAPIError, match=r"attempts are kept|append-only"), db.transaction() as session:
            session.execute(text(statement))
    with db.transaction() as session:
        session.execute(text("UPDATE attempt SET outcome = 'lost'"))
    with db.reading() as session:
        assert session.scalars(select(Attempt.outcome)).all() == ["lost"]


def test_the_head_only_moves_forward_by_one(database: str) -> None:
    _append(2)
    # the last one is a step forward without the entry that would belong to it
    for change in ("size = size - 1", "size = size + 2", "size = size", "log_id = 2", "size = size + 1"):
        with pytest.raises(DBAPIError, match="ledger_head moves one forward"), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_head SET {change}"))
    with pytest.raises(DBAPIError), db.transaction() as session:
        session.execute(text("DELETE FROM ledger_head"))


def test_entries_cannot_be_slipped_in(database: str) -> None:
    """Neither back-dated, nor ahead of time, nor in another's place."""
    _append(2)
    (first, _) = _entries()
    for seq in (0, 1, 3, -1):
        copy = {c.key: getattr(first, c.key) for c in LedgerEntry.__table__.columns} | {"seq": seq}
        with pytest.raises(DBAPIError), db.transaction() as session:
            session.execute(LedgerEntry.__table__.insert().values(**copy))
    assert len(_entries()) == 2


@pytest.mark.one_database
def test_replace_does_not_pass_the_guards_on_a_connection_that_never_heard_of_us(client: TestClient, tmp_path: Path) -> None:
    """SQLite fires no DELETE trigger for REPLACE unless the connection asks for recursive triggers."""
    model = register(client, tmp_path)
    request = ask(client, model, 1).json()
    attempt(request["id"], fence=1)
    publish(model, request["id"], {"w.safetensors": b"x"}, tmp_path)
    path = make_url(get_settings().database).database
    assert path
    with contextlib.closing(sqlite3.connect(path)) as stranger:
        for table in (
            "ledger_head", "ledger_entry", "ledger_private", "checkpoint", "checkpoint_file", "unlearn_request", "attempt",
        ):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError):
                stranger.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")


def test_business_rows_may_not_follow_an_entry(database: str) -> None:
    """The head is the last lock a transaction takes; otherwise two of them could wait for each other."""

    def late_row() -> None:
        with db.transaction() as session:
            ledger.append(session, FACT, actor=LOCAL)
            session.add(Dataset(id="late", name="x", format="npz", location="x", class_names=[], held_out_ids=[], files=[],
                                digest="0" * 64, created_at=db.now(session), created_by="x"))  # fmt: skip

    with pytest.raises(LockOrderViolation):
        late_row()
    assert _entries() == []


SECRET = "Jane Doe, born 1 April"


def test_what_a_client_says_enters_an_entry_only_as_a_commitment(client: TestClient, tmp_path: Path) -> None:
    """Entries can never be erased. The salt can, and with it the last way from a commitment to a person."""
    metadata = {"subject": SECRET, "n": 0.25}
    model = register(client, tmp_path, [f"{SECRET} {k}" for k in range(5)])  # class names may be people, too
    request = ask(client, model, 1, reason=SECRET, external_id=SECRET, metadata=metadata).json()
    client.post(f"/unlearn-requests/{request['id']}/cancel")
    assert all(SECRET.encode() not in e.leaf for e in _entries())
    entry = next(e for e in _entries() if e.action == "unlearning.request.received")
    with db.reading() as session:
        salt = session.get_one(LedgerPrivate, (1, entry.seq)).salt
    assert salt is not None
    private = {"reason": SECRET, "external_id": SECRET, "metadata": {"subject": SECRET, "n": "0.25"}}  # decimals are text
    expected = hmac.new(salt, rfc8785.dumps(private), hashlib.sha256).hexdigest()
    assert json.loads(entry.leaf)["subjectCommitment"] == expected


# ------------------------------------------------------------------------------------------------------ reading it back


@pytest.fixture
def history(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    model = register(client, tmp_path)
    kept, dropped = ask(client, model, 1).json(), ask(client, model, 2).json()
    client.post(f"/unlearn-requests/{dropped['id']}/cancel")
    return {"model": model["id"], "kept": kept["id"], "dropped": dropped["id"]}


def test_entries_are_found_by_what_they_are_about(client: TestClient, history: dict[str, Any]) -> None:
    def actions(**query: Any) -> list[str]:
        """Every reading is an entry of its own; those are left out here."""
        found = client.get("/audit/entries", params={"limit": 100, **query}).json()["data"]
        return [e["action"].rpartition(".")[2] for e in found if e["action"] != "audit.read"]

    assert actions() == ["registered", "registered", "received", "received", "withdrawn", "closed"]
    assert actions(request_id=history["dropped"]) == ["received", "withdrawn", "closed"]
    assert actions(model_id=history["model"]) == ["registered", "received", "received", "withdrawn", "closed"]
    assert actions(action="unlearning.request.received") == ["received", "received"]
    assert actions(action=["dataset.*", "unlearning.request.c*"]) == ["registered", "closed"]
    assert actions(actor="user:local") == actions()
    assert actions(actor="user:other") == actions(outcome="failed") == actions(**{"at[lt]": "2020-01-01T00:00:00Z"}) == []
    assert actions(**{"at[gte]": "2020-01-01T00:00:00Z"}) == actions()
    assert actions(order="desc") == actions()[::-1]


def test_entries_come_in_pages(client: TestClient, history: dict[str, Any]) -> None:
    first = client.get("/audit/entries", params={"limit": 4}).json()
    rest = client.get("/audit/entries", params={"limit": 4, "after": first["next_cursor"]}).json()
    assert [e["seq"] for e in first["data"] + rest["data"]] == [0, 1, 2, 3, 4, 5, 6]
    assert rest["data"][-1]["action"] == "audit.read"  # the first page's own
    assert (first["has_more"], rest["has_more"]) == (True, False)


def test_a_bad_filter_is_422(client: TestClient) -> None:
    for query in ("nonsense=1", "action=%25", "action=A", "outcome=x", "after=WyIwIl0", "after=WzEuNV0", "at[gte]=x"):
        for place in ("entries", "export"):
            response = client.get(f"/audit/{place}?{query}")
            assert response.status_code == 422, (place, query)
            code_of(response)


def test_the_export_holds_every_entry_and_its_exact_text(
    client: TestClient, history: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.audit import service

    monkeypatch.setattr(service, "EXPORT_BATCH", 4)  # six entries: a full batch and a rest
    response = client.get("/audit/export")
    assert response.headers["content-type"] == "application/jsonl"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["seq"] for line in lines] == [0, 1, 2, 3, 4, 5]
    for line in lines:
        assert leaf_hash(line["leaf"].encode()).hex() == line["leaf_hash"]
    chosen = client.get("/audit/export", params={"request_id": history["kept"]}).text.splitlines()
    assert [json.loads(line)["seq"] for line in chosen] == [2]


@pytest.mark.parametrize("accept", ["application/jsonl", "text/csv"])
def test_an_export_is_the_ledger_of_one_moment(
    client: TestClient, history: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accept: str
) -> None:
    """Entries and a redaction between two batches are not in it; what is on record as exported is what was."""
    from service.audit import service

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(service, "EXPORT_BATCH", 2)
    batch, written = service.repository.batch, []

    def slow(*told: Any, **more: Any) -> Any:
        found = batch(*told, **more)
        if not written:
            written.append(client.post("/audit/redactions", json={"seq": 4, "reason": "security"}))
            _append(3)
        return found

    monkeypatch.setattr(service.repository, "batch", slow)
    answer = client.get("/audit/export", headers={"Accept": accept})
    assert written[0].json()["redacted_by"] == 6
    lines = answer.text.splitlines()
    if accept == "text/csv":
        assert [(line.split(",")[0], line[-1]) for line in lines[1:]] == [(str(k), ",") for k in range(6)]
    else:
        assert [(json.loads(line)["seq"], "leaf" in line) for line in lines] == [(k, True) for k in range(6)]
    assert list(scratch.iterdir()) == []
    with db.reading() as session:
        last = session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq.desc()).limit(1)).one()
        assert (last.action, json.loads(last.leaf or b"")["public"]["count"]) == ("export.made", 6)


@pytest.mark.one_database
def test_an_export_that_is_not_on_record_is_not_shown(
    client: TestClient, history: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from service.audit import access

    def refused(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(access, "note_export", refused)
    assert client.get("/audit/export").status_code == 500
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("expunge-export")] == []


# ------------------------------------------------------------------------------------------------------------- filters


def test_entries_are_found_by_what_their_requests_are(client: TestClient, tmp_path: Path) -> None:
    """By state, law, deadline, ground, certificate, model digest, tenant, type and time."""
    model = register(client, tmp_path)
    old = "2026-01-01T00:00:00Z"
    late = ask(client, model, 1, jurisdiction="gdpr", received_at=old).json()["id"]
    done = ask(client, model, 2, jurisdiction="ccpa").json()["id"]
    plain = ask(client, model, 3).json()["id"]
    checkpoint = publish(model, done, {"w.safetensors": b"x"}, tmp_path)
    refusal = {"type": "assessed.refused", "ground": "legal_claims", "informed_at": old, "remedy_notice": True}
    assert client.post(f"/unlearn-requests/{late}/compliance-events", json=refusal).status_code == 201

    def of(**query: Any) -> set[str | None]:
        found = client.get("/audit/entries", params={"limit": 100, **query})
        assert found.status_code == 200, found.text
        return {e["request_id"] for e in found.json()["data"]}

    assert of(state="succeeded") == {done}
    assert of(state="queued") == {late, plain}
    assert of(jurisdiction="gdpr") == of(ground="legal_claims") == of(overdue=True) == {late}
    assert of(overdue=False) == {done, plain}
    assert of(jurisdiction="uk-gdpr") == of(ground="other") == of(certificate="ckpt_none") == set()
    assert of(certificate=checkpoint) == {done}
    with db.reading() as session:
        digests = session.scalars(select(ModelVersion.digest)).all()
    assert all(of(model_digest=digest) == {None, late, done, plain} for digest in digests)  # None: its registration
    assert of(model_digest="0" * 64) == of(tenant="other") == of(type="nonsense.") == set()
    assert of(type="assessed") == {late}
    assert of(tenant="default", type="unlearning.") == of(**{"from": old, "type": "unlearning."}) == {late, done, plain}
    assert of(to=old) == set()


def test_a_read_that_cannot_be_recorded_shows_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(ledger, "append", full)
    for address in ("/audit/entries", "/audit/export", "/audit/questions/overdue", "/audit/reports/annual"):
        assert client.get(address).status_code == 500, address
