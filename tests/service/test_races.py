"""Two people decide about the same thing at the same moment: one of them does, and the ledger says so once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service import db
from service.audit import redaction
from service.audit.leaves import Actor
from service.auth import current_actor
from service.checkpoints import revocation
from service.config import get_settings
from service.db import now
from service.edge import writing
from service.errors import ConcurrentChange
from service.models import dispositions
from service.tables import LedgerRedaction, Model, ModelVersion, VersionDisposition
from tests.service.audit.people import entries, received, require_clean, said
from tests.support import ask, code_of, publish, register

Ask = Callable[[str], Any]


@pytest.fixture
def published(client: TestClient, tmp_path: Path) -> dict[str, str]:
    model = register(client, tmp_path)
    request_id = ask(client, model, 1).json()["id"]
    checkpoint = publish(model, request_id, {"w.safetensors": b"x"}, tmp_path)
    return {"model": model["id"], "request": request_id, "id": checkpoint}


@pytest.fixture(autouse=True)
def _people(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two people are needed, and a header says who calls."""
    monkeypatch.setenv("EXPUNGE_FOUR_EYES", "two")
    get_settings.cache_clear()
    app: Any = client.app
    app.state.settings = app.state.settings.model_copy(update={"four_eyes": "two"})
    app.dependency_overrides[current_actor] = _who
    yield
    app.dependency_overrides.clear()
    get_settings.cache_clear()


def _who(request: Request) -> Actor:
    return Actor(kind="user", id=request.headers.get("x-who", "operator"))


def both(monkeypatch: pytest.MonkeyPatch, module: Any, first: Ask, second: Ask) -> list[Any]:
    """Two answers whose transactions have both read before either writes, where nothing keeps them apart.

    Between the two every module asks the clock: there each waits for the other, and goes on alone when that one is held off.
    """
    met, asked = threading.Barrier(2), []

    def clock(session: Session) -> Any:
        asked.append(1)
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(0.7)
        return now(session)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(module, "now", clock)
        found = [pool.submit(first, "anna"), pool.submit(second, "ben")]
        answers = [one.result(30) for one in found]
    assert asked
    return answers


def test_two_ask_for_a_revocation(client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"/checkpoints/{published['id']}/revoke"

    def revoke(who: str) -> Any:
        return client.post(address, json={"reason": "other"}, headers={"x-who": who})

    answers = sorted(both(monkeypatch, revocation, revoke, revoke), key=lambda a: a.status_code)
    assert [a.status_code for a in answers] == [201, 409]
    assert code_of(answers[1]) == "revocation_exists"
    assert [e.actor for e in entries("certificate.revocation.asked")] == [answers[0].json()["asked_by"]]
    require_clean()


def test_two_approve_a_revocation(client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"/checkpoints/{published['id']}/revoke"
    client.post(address, json={"reason": "other"}, headers={"x-who": "carla"})

    def approve(who: str) -> Any:
        return client.post(f"{address}/approve", headers={"x-who": who})

    answers = sorted(both(monkeypatch, revocation, approve, approve), key=lambda a: a.status_code)
    assert [a.status_code for a in answers] == [200, 409]
    assert code_of(answers[1]) == "revocation_exists"
    assert [e.actor for e in entries("certificate.revoked")] == [answers[0].json()["approved_by"]]
    require_clean()


def test_two_ask_for_a_redaction(client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking again finds the first one, also when it is asked at the same moment."""
    seq = received(published["request"])

    def redact(who: str) -> Any:
        return client.post("/audit/redactions", json={"seq": seq, "reason": "personal_data"}, headers={"x-who": who})

    answers = both(monkeypatch, redaction, redact, redact)
    assert [a.status_code for a in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert [e.actor for e in entries("redaction.requested")] == [answers[0].json()["requested_by"]]
    with db.reading() as session:
        assert len(session.scalars(select(LedgerRedaction)).all()) == 1
    require_clean()


def test_two_redact_alone(client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    app: Any = client.app
    app.state.settings = app.state.settings.model_copy(update={"four_eyes": "solo"})
    seq = received(published["request"])

    def redact(who: str) -> Any:
        return client.post("/audit/redactions", json={"seq": seq, "reason": "personal_data"}, headers={"x-who": who})

    answers = both(monkeypatch, redaction, redact, redact)
    assert [a.status_code for a in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    (done,) = entries("entry.redacted")
    assert (said(done)["seq"], done.seq) == (seq, answers[0].json()["redacted_by"])
    require_clean()


def test_two_approve_a_redaction(client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"seq": received(published["request"]), "reason": "security"}
    pending = client.post("/audit/redactions", json=wanted, headers={"x-who": "carla"}).json()["id"]

    def approve(who: str) -> Any:
        return client.post(f"/audit/redactions/{pending}/approve", headers={"x-who": who})

    answers = both(monkeypatch, redaction, approve, approve)
    assert [a.status_code for a in answers] == [200, 200]
    assert [e.actor for e in entries("entry.redacted")] == [a.json()["approved_by"] for a in answers[:1]]
    require_clean()


def test_two_say_what_became_of_a_version(
    client: TestClient, published: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"/models/{published['model']}/versions/1/disposition"

    def destroy(who: str) -> Any:
        return client.post(address, json={"state": "destroyed"}, headers={"x-who": who})

    answers = sorted(both(monkeypatch, dispositions, destroy, destroy), key=lambda a: a.status_code)
    assert [a.status_code for a in answers] == [201, 409]
    assert code_of(answers[1]) == "version_destroyed"
    assert [e.actor for e in entries("model.parent.disposed")] == [answers[0].json()["by"]]
    require_clean()


def test_a_key_that_is_taken_is_a_conflict_with_a_name_where_people_decide(
    client: TestClient, published: dict[str, str]
) -> None:
    """For those whom a lock did not hold off; the same of any other table is a mistake of ours, and stays one."""
    with db.reading() as session:
        version = session.scalars(select(ModelVersion.id).where(ModelVersion.number == 1)).one()
        model = {c.key: getattr(session.scalars(select(Model)).one(), c.key) for c in Model.__table__.columns}
        at = now(session)
    told = {"version_id": version, "number": 0, "state": "withdrawn", "by": "user:anna", "at": at}
    with writing() as session:
        session.execute(insert(VersionDisposition), [told])
    with pytest.raises(ConcurrentChange), writing() as session:
        session.execute(insert(VersionDisposition), [told])
    with pytest.raises(IntegrityError), writing() as session:
        session.execute(insert(VersionDisposition), [{**told, "number": 1, "state": "sold"}])
    with pytest.raises(IntegrityError), writing() as session:
        session.execute(insert(Model), [model])
