"""Keys: their shape, what is kept of them, and how soon one that was taken back is dead."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from service import db
from service.access import apikeys, authenticate, service
from service.access.denials import KINDS, Denials
from service.access.errors import AdminExists, Attempt
from service.access.tables import ApiKey, Principal, Project
from service.audit.leaves import LOCAL, Actor
from service.db import get_engine, reading, transaction
from service.requests import stream
from tests.service.access.people import bearer, person
from tests.service.audit.people import entries, said
from tests.support import code_of, one_database


def row_of(key_id: str) -> ApiKey:
    with reading() as session:
        return session.get_one(ApiKey, key_id)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_key_carries_256_random_bits_and_a_checksum() -> None:
    made, other = apikeys.make(), apikeys.make()
    assert made.key.startswith(made.id)
    assert made.id.startswith("expk_")
    assert made.key != other.key
    assert len(made.key) == 5 + 16 + 43 + 6  # 62**43 > 2**256 > 62**42
    assert apikeys.id_of(made.key) == made.id
    for wrong in (made.key[:-1], made.key + "A", made.key.swapcase(), other.key[:-6] + made.key[-6:], "", "expk_"):
        assert apikeys.id_of(wrong) is None


@one_database
def test_only_the_digest_is_kept_and_the_key_is_shown_once(guarded: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    admin = bearer(person("default", "admin")[2])
    who = person("default", "auditor")[0]
    made = guarded.post("/api-keys", json={"principal_id": who, "name": "n"}, headers=admin)
    assert made.headers["Cache-Control"] == "no-store"
    key = made.json()["key"]
    assert guarded.get("/catalogue", headers=bearer(key)).status_code == 200
    assert guarded.get("/models/x", headers=bearer(key[:-1] + "!")).status_code == 401
    listed = guarded.get("/api-keys", headers=admin).text
    assert made.json()["id"] in listed
    assert key not in listed
    assert key not in caplog.text
    with get_engine().connect() as connection:
        raw = "\n".join(
            str(row)
            for table in ("api_key", "principal", "ledger_entry")
            for row in connection.exec_driver_sql(f"SELECT * FROM {table}")
        )
    assert made.json()["id"] in raw
    assert key[21:] not in raw
    assert apikeys.digest(key) in raw


def test_a_revoked_key_is_dead_at_once_here_and_within_five_seconds_elsewhere(guarded: TestClient) -> None:
    assert authenticate.TRUST_SECONDS < 5.0
    admin = bearer(person("default", "admin")[2])
    _, key_id, key = person("default", "auditor")
    assert guarded.get("/models", headers=bearer(key)).status_code == 200
    gone = guarded.delete(f"/api-keys/{key_id}", headers=admin)
    assert gone.status_code == 200
    assert gone.json()["revoked_at"] is not None
    refused = guarded.get("/models", headers=bearer(key))
    assert refused.status_code == 401
    assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    assert guarded.delete(f"/api-keys/{key_id}", headers=admin).json()["revoked_at"] == gone.json()["revoked_at"]
    assert len(entries("api-key.revoked")) == 1


def test_what_another_host_revoked_is_believed_no_longer_than_the_trust_lasts(guarded: TestClient) -> None:
    _, key_id, key = person("default", "auditor")
    ticks = [0.0]
    guarded.app.state.authenticator._clock = lambda: ticks[0]  # type: ignore[attr-defined]
    assert guarded.get("/models", headers=bearer(key)).status_code == 200
    with transaction() as session:
        service.revoke_key(session, key_id, actor=LOCAL)
    ticks[0] = authenticate.TRUST_SECONDS - 0.01
    assert guarded.get("/models", headers=bearer(key)).status_code == 200
    ticks[0] = authenticate.TRUST_SECONDS
    assert guarded.get("/models", headers=bearer(key)).status_code == 401


def test_an_open_stream_ends_soon_after_its_key_was_revoked(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.1)
    monkeypatch.setattr(authenticate, "TRUST_SECONDS", 0.05)
    _, key_id, key = person("default", "auditor")
    revoked: list[float] = []

    def elsewhere() -> None:
        time.sleep(1.0)
        with transaction() as session:
            service.revoke_key(session, key_id, actor=LOCAL)
        revoked.append(time.monotonic())

    with ThreadPoolExecutor(1) as other:
        done = other.submit(elsewhere)
        heard = guarded.get("/events", headers=bearer(key) | {"Accept": "text/event-stream"})  # returns when the stream ends
        ended = time.monotonic()
        done.result()
    assert heard.status_code == 200
    assert heard.text.count(": ping") > 1, "it was followed while the key was good"
    assert ended >= revoked[0] - 0.5, "and until about then"


def test_an_expired_key_and_a_deactivated_owner_open_nothing(guarded: TestClient) -> None:
    admin = bearer(person("default", "admin")[2])
    _, old_id, old = person("default", "auditor")
    with transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.id == old_id).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert guarded.get("/models", headers=bearer(old)).status_code == 401
    who, _, key = person("default", "auditor")
    assert guarded.get("/models", headers=bearer(key)).status_code == 200
    assert guarded.delete(f"/principals/{who}", headers=admin).json()["deactivated_at"] is not None
    assert guarded.get("/models", headers=bearer(key)).status_code == 401
    assert code_of(guarded.post("/api-keys", json={"principal_id": who, "name": "n"}, headers=admin)) == "principal_inactive"
    assert [said(entry)["reason"] for entry in entries("access.denied")] == ["expired", "principal_deactivated"]


def test_when_a_key_was_last_used_is_written_once_a_minute_and_nobody_waits_for_it(guarded: TestClient) -> None:
    _, key_id, key = person("default", "auditor")
    assert row_of(key_id).last_used_at is None
    guarded.get("/models", headers=bearer(key))
    wait_for(lambda: row_of(key_id).last_used_at is not None)
    first = row_of(key_id).last_used_at
    guarded.app.state.authenticator.forget()  # type: ignore[attr-defined]
    guarded.get("/models", headers=bearer(key))
    time.sleep(0.3)
    assert row_of(key_id).last_used_at == first
    assert first is not None
    with transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=first - timedelta(minutes=1)))
    guarded.app.state.authenticator.forget()  # type: ignore[attr-defined]
    guarded.get("/models", headers=bearer(key))
    wait_for(lambda: (row_of(key_id).last_used_at or first) >= first)


def test_the_cache_of_callers_is_bounded(guarded: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticate, "REMEMBERED", 2)
    for _ in range(5):
        assert guarded.get("/catalogue", headers=bearer(person("default", "auditor")[2])).status_code == 200
    assert len(guarded.app.state.authenticator._known) <= 2  # type: ignore[attr-defined]


def test_the_first_admin_is_made_once(database: str) -> None:
    row, key = service.bootstrap("Ada")
    assert apikeys.id_of(key) == row.id
    with reading() as session:
        assert session.get_one(Principal, row.principal_id).roles == ["admin"]
    with pytest.raises(AdminExists):
        service.bootstrap("Eve")
    assert [said(entry)["bootstrap"] for entry in entries("api-key.created")] == [True]
    with transaction() as session:  # the way back in, when the last admin's key is lost
        service.revoke_key(session, row.id, actor=LOCAL)
    assert service.bootstrap("Ada again")[0].id != row.id


def test_rows_stay_and_stay_in_their_project(client: TestClient) -> None:
    person("default", "auditor")
    for statement in ("DELETE FROM api_key", "DELETE FROM principal", "DELETE FROM project"):
        with pytest.raises(DBAPIError), get_engine().begin() as connection:
            connection.exec_driver_sql(statement)
    with reading() as session:
        assert session.scalars(select(Project.id)).all() == ["default"]


def test_a_wrong_secret_and_a_missing_role_are_in_the_ledger_and_guesses_are_not(guarded: TestClient) -> None:
    who, key_id, key = person("default", "auditor")
    body = key[:21] + "0" * 43
    for _ in range(3):
        assert guarded.get("/models", headers=bearer(body + apikeys.checksum(body))).status_code == 401
        assert guarded.get("/models", headers=bearer(apikeys.make().key)).status_code == 401
        assert guarded.get("/models", headers=bearer("expk_guess")).status_code == 401
        assert code_of(guarded.post("/models", json={}, headers=bearer(key))) == "forbidden"
    guarded.app.state.denials.flush(at_once=True)  # type: ignore[attr-defined]
    found = [
        (e.actor, said(e)["reason"], said(e).get("keyId"), said(e).get("scope"), said(e)["count"]) for e in entries("access")
    ]
    assert found == [
        ("service:access", "wrong_secret", key_id, None, 1),
        (f"user:{who}", "role_missing", key_id, "models:create", 1),
        ("service:access", "wrong_secret", key_id, None, 2),
        (f"user:{who}", "role_missing", key_id, "models:create", 2),
    ]
    assert {e.outcome for e in entries("access")} == {"denied"}


def test_an_attacker_cannot_grow_the_ledger_at_will(database: str) -> None:
    ticks = [0.0]
    denials = Denials(clock=lambda: ticks[0])
    attempts = [Attempt(Actor(kind="user", id=f"u{k}"), "default", "role_missing") for k in range(3 * KINDS)]
    for _ in range(10):
        for one in attempts:
            denials.note(one)
    assert len(entries("access.denied")) == KINDS
    ticks[0] = 599.0
    denials.flush()
    assert len(entries("access.denied")) == KINDS
    ticks[0] = 600.0
    denials.flush()
    found: list[dict[str, Any]] = [said(entry) for entry in entries("access.denied")]
    assert len(found) == 2 * KINDS + 1
    assert sum(one["count"] for one in found) == 10 * len(attempts)  # none is lost
    assert [one["count"] for one in found if one["reason"] == "many"] == [10 * 2 * KINDS]


def test_what_could_not_be_written_down_is_not_forgotten(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denials, one = Denials(), Attempt(LOCAL, "default", "role_missing")
    for _ in range(3):
        denials.note(one)
    with monkeypatch.context() as patch:
        patch.setattr("service.access.denials.writing", _broken)
        with pytest.raises(RuntimeError):
            denials.flush(at_once=True)
    denials.flush(at_once=True)
    assert [said(entry)["count"] for entry in entries("access.denied")] == [1, 2]


def _broken() -> Any:
    raise RuntimeError("no database")


def test_the_reset_of_the_tests_is_the_process_s_own(guarded: TestClient) -> None:
    assert db.get_settings().auth == "required"
