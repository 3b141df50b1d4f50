"""What people are told when the database hangs up in the middle of their request."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from service import db
from service.errors import answers
from service.middleware import RequestId


@pytest.fixture
def client(database: str) -> Iterator[TestClient]:
    """Our answers to errors, and two routes: one is hung up on, the other breaks a rule."""
    app = FastAPI()
    answers.install(app)
    app.add_middleware(RequestId)  # a crash is told with the request's name

    @app.get("/slow")
    def slow() -> None:
        with db.transaction() as session:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 20"))
            time.sleep(0.5)
            session.execute(text("SELECT 1"))

    @app.get("/wrong")
    def wrong() -> None:
        with db.transaction() as session:
            session.execute(text("INSERT INTO model (id) VALUES (NULL)"))

    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def test_a_connection_that_was_hung_up_is_worth_another_try(client: TestClient, database: str) -> None:
    if database.startswith("sqlite"):  # it has no connections to lose
        assert client.get("/slow").status_code == 503  # and does not know the statement: its OperationalError
        return
    answer = client.get("/slow")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "Retry-After" in answer.headers


def test_a_broken_rule_is_not(client: TestClient) -> None:
    answer = client.get("/wrong")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
