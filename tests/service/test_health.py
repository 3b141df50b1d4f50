"""The probes: one that asks nothing, and one that says what is missing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service import db, migrate
from service.app import create_app
from service.config import get_settings
from tests.support import LOCAL_URL, code_of

OK = {"status": "ok", "missing": []}
THREADS = 40
"""That Starlette has for requests which may block."""


@pytest.fixture
def signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Somebody at the signer's socket."""
    path = str(tmp_path / "s.sock")
    monkeypatch.setenv("EXPUNGE_SIGNER_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        yield listening


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_migrated_database_is_ready(signer: socket.socket, client: TestClient) -> None:
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (200, OK)
    assert client.get("/healthz").json() == {"status": "ok"}


def test_another_schema_is_not_ready(client: TestClient) -> None:
    with db.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    response = client.get("/readyz")
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert client.get("/healthz").status_code == 200


def test_without_a_database_nothing_is_ready_and_the_process_is_still_alive(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(migrate, "current", away)
    monkeypatch.setattr(db, "get_engine", away)
    response = client.get("/readyz")
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert response.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200
    monkeypatch.undo()


@pytest.mark.one_database
def test_the_process_answers_while_all_of_its_threads_wait_for_the_database(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, waiting = threading.Event(), threading.Semaphore(0)

    def hangs() -> None:
        waiting.release()
        back.wait(30)

    monkeypatch.setattr(migrate, "current", hangs)
    asked = [threading.Thread(target=client.get, args=("/readyz",)) for _ in range(THREADS)]
    try:
        for thread in asked:
            thread.start()
        assert all(waiting.acquire(timeout=30) for _ in asked)
        began = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - began < 5  # seconds: a probe's patience
    finally:
        back.set()
        for thread in asked:
            thread.join()


@pytest.mark.one_database
def test_without_its_signer_a_service_is_degraded_and_serves(client: TestClient) -> None:
    response = client.get("/readyz")
    assert (response.status_code, response.json()) == (200, {"status": "degraded", "missing": ["signer"]})


@pytest.mark.one_database
def test_without_its_broker_a_service_is_degraded_and_serves(
    signer: socket.socket, client: TestClient, redis_server: str
) -> None:
    def ready(broker: str) -> object:
        settings = get_settings().model_copy(update={"broker_url": SecretStr(broker)})
        with TestClient(create_app(settings), base_url=LOCAL_URL) as asked:
            response = asked.get("/readyz")
        assert response.status_code == 200
        return response.json()

    gone = {"status": "degraded", "missing": ["broker"]}
    assert ready(redis_server) == OK
    assert ready(f"redis://127.0.0.1:{free_port()}/0") == gone
    assert ready(f"amqp://127.0.0.1:{free_port()}") == gone
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert ready(f"amqp://127.0.0.1:{other.getsockname()[1]}") == OK
