"""Validating says what creating would do, with the same errors, and leaves no trace. On both databases."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service import db
from service.config import get_settings
from service.db import reading
from service.tables import Row
from service.workers import repository as workers
from service.workers.repository import Sign
from tests.support import Json, ask, code_of, register


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> Json:
    return register(client, tmp_path)


def counted() -> dict[str, int]:
    """Rows of every table."""
    with reading() as session:
        return {t.name: session.scalar(select(func.count()).select_from(t)) or 0 for t in Row.metadata.sorted_tables}


def validate(client: TestClient, model: Json, **fields: Any) -> Any:
    return client.post("/unlearn-requests/validate", json={"model_id": model["id"], "forget": {"classes": [1]}, **fields})


def test_it_says_what_creating_makes_and_makes_nothing(client: TestClient, model: Json) -> None:
    before = counted()
    planned = validate(client, model, jurisdiction="gdpr", seed=7)
    assert planned.status_code == 200, planned.text
    plan = planned.json()
    assert counted() == before
    made = ask(client, model, 1, jurisdiction="gdpr", seed=7).json()
    for same in ("status", "method", "policy", "retain"):
        assert plan[same] == made[same]
    assert plan["forget"]["classes"] == made["forget"]["classes"] == [1]
    assert plan["recipes"][0]["params"] == made["params"]
    assert plan["expected_run_seconds"] == made["expected_run_seconds"]
    # received at two moments, so to the day: the deadline is the end of one
    assert plan["due_at"][:10] == made["compliance"]["due_at"][:10]
    assert (plan["behind"], plan["requests_in_front"], plan["approvals_required"]) == ([], 0, 0)


def test_it_meets_the_errors_that_creating_would(client: TestClient, model: Json) -> None:
    ask(client, model, 1)
    before = counted()
    for fields in (
        {},
        {"model_id": "model_" + "0" * 32},
        {"forget": {"classes": [99]}},
        {"forget": {"classes": [0, 2, 3, 4]}},
        {"forget": {"classes": [2]}, "on_conflict": "reject"},
        {"forget": {"classes": [2]}, "method": "none-such"},
        {"forget": {"classes": [2]}, "params": {"iterations": 0}},
        {"forget": {"classes": [2]}, "policy": "none-such"},
        {"forget": {"classes": [2]}, "received_at": "2999-01-01T00:00:00Z"},
        {"forget": {"classes": [2], "samples": ["x"]}},
    ):
        planned = validate(client, model, **fields)
        assert planned.status_code >= 400
        assert counted() == before
        body = {"model_id": model["id"], "forget": {"classes": [1]}, **fields}
        created = client.post("/unlearn-requests", json=body)
        assert (planned.status_code, code_of(planned)) == (created.status_code, code_of(created))


def test_the_estimate_counts_who_is_in_front_and_who_works(client: TestClient, model: Json) -> None:
    first = ask(client, model, 1).json()
    alone = validate(client, model, forget={"classes": [2]}).json()
    assert (alone["behind"], alone["requests_in_front"]) == ([first["id"]], 1)
    assert (alone["workers"], alone["estimated_finish_at"]) == (0, None)
    with db.transaction() as session:
        workers.touch(session, Sign("w", "h", ("default",), "active", None))
        began = db.now(session)
    plan = validate(client, model, forget={"classes": [2]}, jurisdiction="gdpr").json()
    seconds = (datetime.fromisoformat(plan["estimated_finish_at"]) - began).total_seconds()
    each = get_settings().expected_run_seconds  # one in front, then its own, by one worker
    assert 2 * each <= seconds < 2 * each + 60
    assert plan["late"] is False
    existing = validate(client, model, on_conflict="use_existing").json()
    assert (existing["answered_by"], existing["status"]) == (first["id"], "queued")


def test_a_full_queue_is_said_beforehand(client: TestClient, model: Json) -> None:
    client.app.state.settings = get_settings().model_copy(update={"max_queued_requests": 1})  # type: ignore[attr-defined]
    assert validate(client, model).status_code == 200
    ask(client, model, 1)
    assert code_of(validate(client, model, forget={"classes": [2]})) == "quota_exceeded"


def test_whom_a_pending_request_answers_is_told_what_is_in_front_of_that_one(client: TestClient, model: Json) -> None:
    """Not what came after it: that waits for it, and what it forgets is not gone by then."""
    older, answering, _younger = (ask(client, model, k).json() for k in (0, 1, 2))
    plan = validate(client, model, on_conflict="use_existing").json()
    assert plan["answered_by"] == answering["id"]
    assert (plan["behind"], plan["requests_in_front"]) == ([older["id"]], 1)
    assert plan["cumulative_forget"]["classes"] == [0, 1]
