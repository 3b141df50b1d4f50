"""Redaction: an entry's text goes, its hash and the tree stay, and it takes two people where the operator says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, insert, make_url, text
from sqlalchemy.exc import DBAPIError

from service import db
from service.audit import ledger
from service.audit.leaves import LOCAL, EntryRedacted
from service.tables import LedgerRedaction
from tests.service.audit.people import acting, ask_about, entries, received, require_clean, said
from tests.support import code_of

WHY = "personal_data"


def redact(client: TestClient, seq: int) -> Any:
    return client.post("/audit/redactions", json={"seq": seq, "reason": WHY})


@pytest.fixture
def two(client: TestClient) -> TestClient:
    """An installation that wants two people."""
    settings = client.app.state.settings.model_copy(update={"four_eyes": "two"})  # type: ignore[attr-defined]
    client.app.state.settings = settings  # type: ignore[attr-defined]
    return client


def test_the_text_goes_and_the_tree_stays(client: TestClient, tmp_path: Path) -> None:
    seq = received(ask_about(client, tmp_path))
    before = entries()[seq]
    done = redact(client, seq).json()
    assert (done["status"], done["self_approved"]) == ("done", True)
    after = entries()[seq]
    assert after.leaf is None
    assert (after.leaf_hash, after.redacted_by) == (before.leaf_hash, done["redacted_by"])
    (why,) = entries("entry.redacted")
    assert why.seq == done["redacted_by"]
    assert said(why) == {"seq": seq, "ground": WHY, "selfApproved": True}
    shown = client.get("/audit/entries", params={"type": "unlearning."}).json()["data"]
    assert [(e["leaf"], e["redacted_by"]) for e in shown] == [(None, why.seq)]
    assert redact(client, seq).json() == done  # again: the same one
    assert len(entries("entry.redacted")) == 1
    require_clean()


def test_a_request_whose_entry_was_redacted_goes_on(client: TestClient, tmp_path: Path) -> None:
    """Its chain is of hashes, which are all there."""
    request_id = ask_about(client, tmp_path)
    redact(client, received(request_id))
    client.post(f"/unlearn-requests/{request_id}/cancel")
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})
    require_clean()


def test_two_people_decide_where_two_are_wanted(two: TestClient, tmp_path: Path) -> None:
    seq = received(ask_about(two, tmp_path))
    with acting(two, "anna"):
        pending = redact(two, seq).json()
        assert (pending["status"], pending["redacted_by"]) == ("pending", None)
        assert entries()[seq].leaf is not None
        approve = f"/audit/redactions/{pending['id']}/approve"
        refused = two.post(approve)
        assert (refused.status_code, code_of(refused)) == (403, "self_approval_forbidden")
        assert entries()[seq].leaf is not None
    with acting(two, "ben"):
        done = two.post(approve).json()
        assert two.post(approve).json() == done
    assert (done["status"], done["requested_by"], done["approved_by"]) == ("done", "user:anna", "user:ben")
    assert said(entries("entry.redacted")[0]) == {
        "seq": seq, "ground": WHY, "requestedBy": "user:anna", "selfApproved": False,
    }  # fmt: skip
    assert [e.actor for e in entries("entry.redacted")] == ["user:ben"]
    assert [e.actor for e in entries("redaction.requested")] == ["user:anna"]
    assert [r["id"] for r in two.get("/audit/redactions").json()["data"]] == [pending["id"]]
    require_clean()


def test_the_database_wants_the_second_person_too(database: str) -> None:
    row = {"id": "r", "log_id": 1, "seq": 0, "ground": WHY, "four_eyes": "two", "requested_by": "user:a"}
    with db.transaction() as session:
        at = db.now(session)
        session.execute(insert(LedgerRedaction), [{**row, "requested_at": at}])
    for change in (
        "approved_by = 'user:a', approved_at = requested_at",  # oneself
        "approved_by = 'user:b'",  # at no time
        "requested_by = 'user:c'",
        "requested_by = 'user:c', approved_by = 'user:a', approved_at = requested_at",
        "four_eyes = 'solo'",
        "four_eyes = 'solo', approved_by = 'user:a', approved_at = requested_at",
    ):
        with pytest.raises(DBAPIError), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_redaction SET {change}"))
    with db.transaction() as session:
        session.execute(text("UPDATE ledger_redaction SET approved_by = 'user:b', approved_at = requested_at"))
    for change in ("approved_by = 'user:c'", "approved_by = NULL, approved_at = NULL"):
        with pytest.raises(DBAPIError, match="only an approval"), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_redaction SET {change}"))
    with pytest.raises(DBAPIError), db.transaction() as session:
        session.execute(text("DELETE FROM ledger_redaction"))


def test_what_explains_a_redaction_stays(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    why = redact(client, received(request_id)).json()["redacted_by"]
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})
    (shred,) = entries("private.shredded")
    for seq in (why, shred.seq):
        refused = redact(client, seq)
        assert (refused.status_code, code_of(refused)) == (409, "invalid_state_transition")
    assert code_of(redact(client, 10**6)) == "not_found"
    assert redact(client, -1).status_code == 422
    assert client.post("/audit/redactions", json={"seq": 0, "reason": "Jane Doe asked"}).status_code == 422


def test_the_database_lets_nothing_but_a_named_redaction_through(client: TestClient, tmp_path: Path) -> None:
    """Not without its entry, not of another entry, not with other columns, and never back."""
    seq = received(ask_about(client, tmp_path))

    def refused(change: str, of: int = seq) -> None:
        with pytest.raises(DBAPIError, match=r"append-only|ck_ledger_entry_redacted|CHECK"), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_entry SET {change} WHERE seq = {of}"))

    refused("leaf = NULL, redacted_by = 0")  # an entry that says nothing of the kind
    row = {"id": "r", "log_id": 1, "seq": seq, "ground": WHY, "four_eyes": "solo", "requested_by": str(LOCAL)}
    with db.transaction() as session:
        at = db.now(session)
        approved = {"requested_at": at, "approved_by": str(LOCAL), "approved_at": at}
        session.execute(insert(LedgerRedaction), [{**row, **approved}])
        by = ledger.append(session, EntryRedacted(seq=seq, ground=WHY), actor=LOCAL)
    refused(f"leaf = NULL, redacted_by = {by}", of=0)  # it names another one
    refused("leaf = NULL")
    refused(f"redacted_by = {by}")
    for other in ("actor = 'user:x'", "at = '2020-01-01 00:00:00'", "model_id = NULL", "outcome = 'failed'"):
        refused(f"leaf = NULL, redacted_by = {by}, {other}")
    with db.transaction() as session:
        session.execute(text(f"UPDATE ledger_entry SET leaf = NULL, redacted_by = {by} WHERE seq = {seq}"))
    for change in ("leaf = leaf_hash", "leaf = leaf_hash, redacted_by = NULL", "redacted_by = 0"):
        refused(change)
    with pytest.raises(DBAPIError, match="append-only"), db.transaction() as session:
        session.execute(text(f"DELETE FROM ledger_entry WHERE seq = {seq}"))


def test_the_services_own_login_may_do_all_this_and_no_more(
    client: TestClient, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of expunge_app seals, opens, shreds, redacts and records; it deletes nothing and edits no entry."""
    if "postgresql" not in database:
        pytest.skip("SQLite has no roles: whoever may open the file may write it")
    request_id = ask_about(client, tmp_path, jurisdiction="gdpr")
    name = f"app_{make_url(database).database}"
    with db.transaction() as session:
        session.execute(text(f"CREATE ROLE {name} LOGIN IN ROLE expunge_app"))
    login = make_url(database).set(username=name).render_as_string(hide_password=False)
    try:
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", login)
        db.reset()
        opened = client.get("/audit/entries", params={"request_id": request_id, "include": "private"})
        assert opened.json()["data"][0]["private"]["reason"]
        told = {"type": "answered", "answered_at": "2026-01-01T00:00:00Z", "result": "erased"}
        with_clock = client.post(f"/unlearn-requests/{request_id}/compliance-events", json=told)
        assert with_clock.status_code == 422  # before the receipt; it was read, and nothing was written
        assert redact(client, received(request_id)).status_code == 202
        gone = client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})
        assert gone.json()["seqs"] == [received(request_id)]
        require_clean()
        engine = create_engine(make_url(login).set(drivername="postgresql+psycopg"))
        for table in ("ledger_private", "ledger_redaction", "request_compliance"):
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(DBAPIError, match="permission denied"), engine.begin() as connection:
                    connection.execute(text(statement))
        engine.dispose()
    finally:
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", database)
        db.reset()
        with db.transaction() as session:
            session.execute(text(f"DROP ROLE {name}"))
