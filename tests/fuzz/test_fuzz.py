"""A handful of calls of every operation, and that the fuzzer's own checks see what they are for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from schemathesis.core import NOT_SET

from service.app import create_app
from tests.fuzz import checks, target
from tests.fuzz.run import NO_ANSWER, STATUSES, Findings, Problem, Size, fuzz
from tests.serving import free_port
from tests.support import one_database

A_HANDFUL = Size(seconds=40, examples=1, seed=1, phases=("coverage", "fuzzing"))
"""Schemathesis goes on for as long as it may: on an idle machine every case of the first phase, and some of the second."""


def test_no_call_breaks_the_description(tmp_path: Path) -> None:
    with target.prepared("sqlite", tmp_path), target.reached("operator", tmp_path) as (url, headers):
        found = fuzz(url, headers, A_HANDFUL)
    described = sum(len(operations) for operations in create_app().openapi()["paths"].values())
    assert not found.problems, found.problems
    assert len(found.operations) > 0.9 * described
    assert {200, 403, 404, 422} <= found.statuses.keys()


def answered(status: int, body: Any) -> Any:
    text = body if isinstance(body, str) else json.dumps(body)
    return SimpleNamespace(status_code=status, json=lambda: body, content=text.encode())


def test_a_value_that_comes_back_is_seen() -> None:
    sent = SimpleNamespace(query={"limit": "a secret value"}, body=NOT_SET, cookies={})
    said = {"instance": "/models", "detail": "not a number: a secret value"}
    with pytest.raises(AssertionError, match="repeats"):
        checks.nothing_is_echoed(None, answered(422, said), sent)  # type: ignore[arg-type]
    checks.nothing_is_echoed(None, answered(422, {"instance": "a secret value", "detail": "no"}), sent)  # type: ignore[arg-type]
    assert checks.quoted({"detail": "unlearning_request"}, {"unlearning_request": 1}) == []  # a word of ours
    assert checks.quoted({"type": "urn:expunge:problem:x"}, {"": "expunge:"}) == []


@pytest.mark.parametrize("text", ["Traceback (most recent call last):", '  File "/srv/service/app.py", line 3'])
def test_the_inside_of_the_program_is_seen(text: str) -> None:
    with pytest.raises(AssertionError, match="shows"):
        checks.nothing_inside_is_shown(None, answered(500, text), None)  # type: ignore[arg-type]


def test_each_kind_of_finding_is_counted_once() -> None:
    found = Findings()
    found.problems = {
        Problem("not_a_server_error", "GET /a", 500): "",
        Problem("content_type_conformance", "GET /a", 500): "",
        Problem(NO_ANSWER, "GET /a", 0): "",
        Problem(STATUSES, "GET /b", 418): "",
        Problem("response_schema_conformance", "GET /c", 200): "",
    }
    assert found.counts == {"nonconforming": 1, "server_errors": 2, "undocumented_statuses": 1}


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """A server of another application, in this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def test_a_server_that_errs_is_found_out() -> None:
    """The whole way round: what is wrong with an answer ends in the count that it belongs to."""
    app = FastAPI()

    @app.get("/crash")
    def crash() -> None:
        raise RuntimeError("boom")

    @app.get("/teapot")
    def teapot() -> Response:
        return Response(status_code=418)

    @app.get("/number", response_model=int)
    def number() -> Response:
        return Response(b'"none"', media_type="application/json")

    with listening(app) as url:
        found = fuzz(url, {}, Size(seconds=5, examples=1, seed=1, phases=("fuzzing",)))
    assert found.operations == {"GET /crash", "GET /teapot", "GET /number"}
    assert found.counts["server_errors"] == 1
    assert found.counts["nonconforming"] == 1
    assert found.counts["undocumented_statuses"] == 2  # a crash is not described, either


@one_database
def test_every_operation_with_a_body_says_that_it_may_be_no_json(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]
    bodies = [op for operations in described.values() for op in operations.values() if "requestBody" in op]
    assert bodies
    assert all({"400", "413"} <= op["responses"].keys() for op in bodies)


@one_database
def test_the_dossier_says_that_it_may_not_be_signed_yet(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]
    assert "503" in described["/unlearn-requests/{request_id}/dossier"]["get"]["responses"]
