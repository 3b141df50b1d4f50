"""Private payloads: sealed at receipt, opened under record, shredded with every copy, and gone from the file."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from alembic import command
from fastapi.testclient import TestClient
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError

from service import db, migrate
from service.audit import retention, shredding, vault
from service.audit.leaves import LOCAL, private_digest
from service.audit.vault import Sealed, get_keys, unseal
from service.config import get_settings
from service.tables import IdempotencyKey, LedgerPrivate, RequestEvent, UnlearnRequest
from service.verifier.merkle import leaf_hash
from tests.architecture.test_schema import clear
from tests.service.audit.people import NAME, SAID, ask_about, entries, finish, private, received, require_clean, said
from tests.service.audit.test_tree import OLD_ENTRY
from tests.support import ask, code_of, register


def shred(client: TestClient, request_id: str) -> Any:
    return client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "erasure_request"})


def test_an_entry_commits_to_the_ciphertext_and_to_the_values(client: TestClient, tmp_path: Path) -> None:
    seq = received(ask_about(client, tmp_path))
    (entry,) = (e for e in entries() if e.seq == seq)
    row = private(seq)
    assert None not in (row.salt, row.kek_id, row.dek_wrapped, row.ciphertext)
    leaf = json.loads(entry.leaf or b"")
    assert leaf["privateSha256"] == private_digest(row.kek_id, row.salt, row.dek_wrapped, row.ciphertext)
    assert leaf["subjectCommitment"] == hmac.new(row.salt, rfc8785.dumps(SAID), hashlib.sha256).hexdigest()
    assert unseal(get_keys(), Sealed(row.kek_id, row.dek_wrapped, row.ciphertext), log_id=1, seq=seq) == SAID
    assert NAME.encode() not in row.ciphertext


def test_opening_is_an_entry(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    seq = received(request_id)
    closed = client.get("/audit/entries", params={"request_id": request_id}).json()["data"]
    assert [e["private"] for e in closed] == [None]
    assert entries("private.opened") == []
    opened = client.get("/audit/entries", params={"request_id": request_id, "include": "private"}).json()["data"]
    assert [e["private"] for e in opened] == [SAID]
    assert [said(e)["seqs"] for e in entries("private.opened")] == [[seq]]
    assert client.get("/audit/entries", params={"include": "salt"}).status_code == 422
    require_clean()


def test_a_payload_that_was_changed_is_not_shown(client: TestClient, tmp_path: Path) -> None:
    """A key that is gone, and one that is another, are said to be; no value is shown, and nobody is said to have seen it."""
    request_id = ask_about(client, tmp_path)
    folder = get_settings().kek_folder
    (key,) = folder.glob("*.kek")
    params = {"request_id": request_id, "include": "private"}

    def shown() -> list[tuple[Any, str | None]]:
        answer = client.get("/audit/entries", params=params)
        assert answer.status_code == 200
        return [(e["private"], e["private_fault"]) for e in answer.json()["data"]]

    kept = key.read_bytes()
    key.write_bytes(bytes(32))
    assert shown() == [(None, "damaged")]
    key.unlink()
    assert shown() == [(None, "key_gone")]
    assert entries("private.opened") == []
    key.write_bytes(kept)
    assert shown() == [(SAID, None)]


def test_one_lost_key_takes_no_other_values_with_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that holds entries of two months, of which one's key is lost, shows the other month's."""
    model = register(client, tmp_path)
    with monkeypatch.context() as long_ago:
        long_ago.setattr(vault, "kek_id", lambda tenant, at: f"{tenant}.2020-01")
        lost = received(ask(client, model, 1, **SAID).json()["id"])
    kept = received(ask(client, model, 2, **SAID).json()["id"])
    (get_settings().kek_folder / "default.2020-01.kek").unlink()
    page = client.get("/audit/entries", params={"include": "private", "type": "unlearning."}).json()["data"]
    assert {e["seq"]: (e["private"], e["private_fault"]) for e in page} == {lost: (None, "key_gone"), kept: (SAID, None)}
    assert [said(e)["seqs"] for e in entries("private.opened")] == [[kept]]
    with db.transaction() as session:  # beside an entry that has no private part, under a name that no key can have
        session.add(LedgerPrivate(log_id=1, seq=0, salt=b"s", kek_id="../x", dek_wrapped=b"w", ciphertext=b"c", kind="request"))
    page = client.get("/audit/entries", params={"include": "private"}).json()["data"]
    assert (page[0]["private_fault"], page[kept]["private"]) == ("damaged", SAID)
    require_clean()


def test_shredding_takes_every_copy_and_leaves_the_ledger_valid(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path, key="for-" + NAME.replace(" ", "-"))
    finish(request_id)
    seq = received(request_id)
    tag = client.get(f"/unlearn-requests/{request_id}").headers["etag"]
    assert shred(client, request_id).json()["seqs"] == [seq]
    row = private(seq)
    assert (row.salt, row.dek_wrapped, row.ciphertext) == (None, None, None)
    assert row.shredded_at is not None
    answer = client.get(f"/unlearn-requests/{request_id}", headers={"If-None-Match": tag})
    assert answer.status_code == 200  # a cached answer would still hold the words
    body = answer.json()
    assert (body["reason"], body["external_id"], body["metadata"]) == (None, None, {})
    assert body["status"] == "succeeded"
    assert NAME not in answer.text
    with db.reading() as session:
        assert {str(d) for d in session.scalars(select(RequestEvent.data))} == {"{}"}
        (used,) = session.scalars(select(IdempotencyKey))
        assert NAME.split()[0] not in used.key  # a client's own word
        assert used.body_sha256 == "0" * 64  # it could confirm a guess
    (event,) = entries("private.shredded")
    assert said(event) == {"seqs": [seq], "ground": "erasure_request"}
    found = client.get("/audit/entries", params={"request_id": request_id, "include": "private"}).json()["data"]
    assert {e["private"] for e in found} == {None}
    assert shred(client, request_id).json()["seqs"] == []  # again: nothing left, and no second entry
    assert len(entries("private.shredded")) == 1
    require_clean()


def test_shredding_takes_the_keys_of_all_calls_that_the_request_answered(client: TestClient, tmp_path: Path) -> None:
    """`use_existing` answers a second call, under a key of its own, with the same request."""
    model = register(client, tmp_path)
    request_id = ask(client, model, 1, key=f"first-{NAME.split()[0]}", **SAID).json()["id"]
    again = ask(client, model, 1, key=f"second-{NAME.split()[0]}", on_conflict="use_existing", **SAID)
    assert (again.status_code, again.json()["id"]) == (202, request_id)
    finish(request_id)
    assert shred(client, request_id).status_code == 200
    with db.reading() as session:
        used = list(session.scalars(select(IdempotencyKey)))
    assert len(used) == 2
    assert all(NAME.split()[0] not in one.key and one.body_sha256 == "0" * 64 for one in used)
    require_clean()


def test_an_entry_is_shredded_by_its_number(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    seq, wanted = received(request_id), {"ground": "operator"}
    assert client.post(f"/audit/entries/{seq}/shred", json=wanted).json()["seqs"] == [seq]
    assert client.get(f"/unlearn-requests/{request_id}").json()["reason"] is None  # a pending one, too
    assert client.post(f"/unlearn-requests/{request_id}/cancel").json()["status"] == "cancelled"
    for nothing in (0, 10**6, 2**60, -1):
        assert code_of(client.post(f"/audit/entries/{nothing}/shred", json=wanted)) == "not_found"
    assert client.post(f"/audit/entries/{seq}/shred", json={"ground": NAME}).status_code == 422
    require_clean()


def test_a_request_without_private_data_of_its_own_is_no_other(client: TestClient, tmp_path: Path) -> None:
    """Shredding one leaves the other's words."""
    model = register(client, tmp_path)
    first, second = (ask(client, model, k, reason=f"{NAME} {k}").json()["id"] for k in (1, 2))
    shred(client, first)
    assert client.get(f"/unlearn-requests/{second}").json()["reason"] == f"{NAME} 2"
    assert private(received(second)).salt is not None


def test_a_hold_refuses_a_shred(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    seq, where = received(request_id), f"/unlearn-requests/{request_id}/legal-hold"
    assert client.post(where, json={"hold": True, "ground": "legal_claim"}).json()["seqs"] == [seq]
    assert client.post(where, json={"hold": True, "ground": "legal_claim"}).json()["seqs"] == []
    for address in (f"/unlearn-requests/{request_id}/shred", f"/audit/entries/{seq}/shred"):
        refused = client.post(address, json={"ground": "erasure_request"})
        assert (refused.status_code, code_of(refused)) == (409, "legal_hold")
    with pytest.raises(DBAPIError, match="may only be shredded"), db.transaction() as session:  # nor does the database
        session.execute(text("UPDATE ledger_private SET salt=NULL, dek_wrapped=NULL, ciphertext=NULL, shredded_at=:at"),
                        {"at": "2026-11-21 10:00:00"})  # fmt: skip
    # a note that is written down later is held as well, though nobody set its flag
    told = {"type": "recipient.notified", "recipient": "lab-7", "at": "2026-01-01T00:00:00Z", "note": NAME}
    later = client.post(f"/unlearn-requests/{request_id}/compliance-events", json=told).json()["seq"]
    assert code_of(client.post(f"/audit/entries/{later}/shred", json={"ground": "operator"})) == "legal_hold"
    client.post(where, json={"hold": False, "ground": "legal_claim"})
    assert shred(client, request_id).json()["seqs"] == [seq, later]
    assert [e.action for e in entries("legal-hold")] == ["legal-hold.set", "legal-hold.released"]
    require_clean()


PRIVATE_REFUSED = (
    "salt = NULL", "shredded_at = '2026-11-21 10:00:00'", "dek_wrapped = NULL, ciphertext = NULL", "ciphertext = salt",
    "kek_id = 'x.2026-11'", "class = 'x'", "seq = seq + 1",
    "salt = NULL, dek_wrapped = NULL, ciphertext = NULL",
    "salt = NULL, dek_wrapped = NULL, ciphertext = NULL, shredded_at = '2026-11-21 10:00:00', kek_id = NULL",
)  # fmt: skip


def test_a_private_row_may_only_be_shredded(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    for change in PRIVATE_REFUSED:
        with pytest.raises(DBAPIError, match="may only be shredded"), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_private SET {change}"))
    shred(client, request_id)
    for change in ("salt = leaf_hash", "ciphertext = leaf_hash"):  # nothing comes back
        column = change.split()[0]
        with pytest.raises(DBAPIError, match="may only be shredded"), db.transaction() as session:
            session.execute(text(f"UPDATE ledger_private SET {column} = (SELECT leaf_hash FROM ledger_entry WHERE seq = 0)"))
    with pytest.raises(DBAPIError, match=r"kept|append-only"), db.transaction() as session:
        session.execute(text("DELETE FROM ledger_private"))


def test_a_row_of_an_older_release_is_carried_over_and_can_be_shredded(database: str) -> None:
    """It holds a salt and nothing else; its month's key never was."""
    clear(database)
    command.upgrade(migrate._config(database), "0003")
    with db.transaction() as session:
        told = {"seq": 0, "leaf": b"0", "hash": leaf_hash(b"0"), "at": "2026-11-21 10:00:00"}
        session.execute(text(OLD_ENTRY), told)
        session.execute(text("UPDATE ledger_head SET size = size + 1"))
        session.execute(text("INSERT INTO ledger_private (log_id, seq, salt) VALUES (1, 0, :salt)"), {"salt": bytes(32)})
    migrate.upgrade()
    assert (private(0).salt, private(0).kek_id, private(0).legal_hold) == (bytes(32), None, False)
    with db.transaction() as session:
        assert shredding.opened(session, get_keys(), [0], actor=LOCAL) == {}
        rows = shredding.private_rows(session, seq=0, lock=True)
        assert shredding.shred(session, rows, actor=LOCAL, ground="operator") == [0]
    assert (private(0).salt, private(0).shredded_at is None) == (None, False)


ERASURE = "reason = NULL, external_id = NULL, metadata = '{}', version = version + 1"


def test_a_request_that_has_ended_lets_go_of_its_words_and_of_nothing_else(client: TestClient, tmp_path: Path) -> None:
    """Not before its private row was shredded, not in part, not twice, and with no other column changed."""
    request_id = ask_about(client, tmp_path)
    finish(request_id)

    def refused(change: str) -> None:
        with pytest.raises(DBAPIError, match="a terminal request never changes"), db.transaction() as session:
            session.execute(text(f"UPDATE unlearn_request SET {change}"))

    refused(ERASURE)
    with db.transaction() as session:  # as a shred does, but for the copies
        at = db.now(session)
        for row in session.scalars(select(LedgerPrivate)):
            row.salt = row.dek_wrapped = row.ciphertext = None
            row.shredded_at = at
    refused("reason = NULL")
    refused(ERASURE.replace("'{}'", "'{ }'"))
    refused(ERASURE.replace("reason = NULL", "reason = 'x'"))
    refused(ERASURE.replace("version + 1", "version"))
    refused(ERASURE.replace("version + 1", "version + 2"))
    told = {"reason", "external_id", "metadata", "version"}
    kinds = {c["name"]: c["type"].python_type for c in inspect(db.get_engine()).get_columns("unlearn_request")}
    values = {str: "'failed'", int: "7", float: "7"}
    for name, kind in kinds.items():
        if name not in told:
            value = (
                "'[3]'"
                if name.startswith("forget") or name in ("params", "policy", "retain", "error")
                else values.get(kind, "'2020-01-01 00:00:00'")
            )
            refused(f"{ERASURE}, {name} = {value}")
    with db.transaction() as session:
        session.execute(text(f"UPDATE unlearn_request SET {ERASURE}"))
        assert session.scalars(select(UnlearnRequest.reason)).one() is None


# ------------------------------------------------------------------------------------------------------------ traces


def _needles() -> list[bytes]:
    return [NAME.encode(), NAME.split()[1].encode(), NAME.encode("utf-16-le")]


@pytest.mark.one_database
def test_after_a_shred_the_words_are_nowhere_in_the_files(client: TestClient, tmp_path: Path) -> None:
    """Database, write-ahead log, keys: everything under the data directory."""
    request_id = ask_about(client, tmp_path, key=NAME.replace(" ", "_"))
    folder = get_settings().data_dir.resolve()

    def holders() -> list[str]:
        files = [p for p in folder.rglob("*") if p.is_file()]
        return [p.name for p in files if any(n in p.read_bytes() for n in _needles())]

    assert holders()  # the needle can be found
    salt = private(received(request_id)).salt
    finish(request_id)
    shred(client, request_id)
    assert holders() == []
    assert salt is not None
    assert [p.name for p in folder.rglob("expunge.db*") if salt in p.read_bytes()] == []


@pytest.mark.one_database
def test_words_that_a_long_read_kept_in_the_log_are_gone_after_the_next_sweep(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    salt = private(received(request_id)).salt
    folder = get_settings().data_dir.resolve()
    assert salt is not None

    def holders() -> list[str]:
        return [p.name for p in folder.rglob("expunge.db*") if salt in p.read_bytes()]

    finish(request_id)
    with db.snapshot() as session:
        session.scalars(select(LedgerPrivate.seq)).all()
        began = time.monotonic()
        assert shred(client, request_id).status_code == 200
        assert time.monotonic() - began < 5, "nobody waits for the reader's end"
        assert holders() == ["expunge.db-wal"]
        retention.sweep(get_keys(), 12)
        assert holders() == ["expunge.db-wal"]
    retention.sweep(get_keys(), 12)
    assert holders() == []


def test_after_a_shred_no_row_holds_the_words(client: TestClient, tmp_path: Path) -> None:
    """PostgreSQL's heap and WAL keep old bytes; that is what the key's destruction is for."""
    request_id = ask_about(client, tmp_path, key=NAME.replace(" ", "_"))
    assert _rows_with(NAME.split()[1])
    finish(request_id)
    shred(client, request_id)
    assert _rows_with(NAME.split()[1]) == []


def _rows_with(needle: str) -> list[str]:
    found = []
    with db.get_engine().connect() as connection:
        for table in inspect(connection).get_table_names():
            for row in connection.execute(text(f"SELECT * FROM {table}")).mappings():
                for column, value in row.items():
                    plain = bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)
                    found += [f"{table}.{column}"] if needle in plain else []
    return found


def test_a_dictionary_finds_nobody_in_an_exported_log(client: TestClient, tmp_path: Path) -> None:
    """An attacker who knows the very values, and all the ids, cannot tell that they were said: commitment and digest are
    keyed. The same attack with the salt succeeds, so the attack itself is sound; after the shred it does not any more."""
    request_id = ask_about(client, tmp_path)
    salt = private(received(request_id)).salt or b""
    log = client.get("/audit/export").content
    leaf = next(json.loads(e["leaf"]) for e in map(json.loads, log.splitlines()) if "received" in e["leaf"])
    everything = {leaf["subjectCommitment"], leaf["privateSha256"], leaf["public"]["paramsSha256"]}
    guesses = [SAID, SAID["reason"], SAID["metadata"], NAME, NAME.lower(), {"reason": NAME}]
    known_keys = [b"", request_id.encode(), leaf["tenant"].encode(), leaf["public"]["paramsSha256"].encode(), bytes(32)]
    for guess in guesses:
        data = [rfc8785.dumps(guess), guess.encode() if isinstance(guess, str) else json.dumps(guess).encode()]
        for text_ in data:
            assert hashlib.sha256(text_).hexdigest() not in everything
            assert text_.hex() not in log.decode()
            for key in known_keys:
                assert hmac.new(key, text_, hashlib.sha256).hexdigest() not in everything
    assert hmac.new(salt, rfc8785.dumps(SAID), hashlib.sha256).hexdigest() in everything
    assert NAME.encode() not in log
