"""A handful of calls of every operation, and that the fuzzer's own checks see what they are for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from schemathesis.core import NOT_SET

from service import db
from service.app import create_app
from tests.fuzz import checks, target
from tests.fuzz.run import NO_ANSWER, STATUSES, Findings, Problem, Size, fuzz
from tests.support import one_database

A_HANDFUL = Size(seconds=60, examples=3, seed=1, phases=("fuzzing",))


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


def test_a_server_that_errs_is_found_out(tmp_path: Path) -> None:
    """The whole way round: a broken operation of a real server ends in `server_errors`."""
    with target.prepared("sqlite", tmp_path), target.reached(target.LOCAL, tmp_path) as (url, headers):
        db.get_engine().dispose()
        with db.transaction() as session:
            session.connection().exec_driver_sql("ALTER TABLE worker RENAME TO gone")
        found = fuzz(url, headers, Size(seconds=30, examples=1, seed=1, phases=("fuzzing",)))
    assert found.counts["server_errors"] > 0


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
