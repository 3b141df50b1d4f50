"""Several requests in one call: each by itself, or all of them or none. On both databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service.config import get_settings
from service.db import reading
from service.tables import LedgerEntry, UnlearnRequest
from tests.support import Json, code_of, register


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> Json:
    return register(client, tmp_path)


def batch(client: TestClient, model: Json, *classes: Any, key: str | None = None, **fields: Any) -> Any:
    items = [{"model_id": model["id"], "forget": {"classes": [k]}} for k in classes]
    headers = {"Idempotency-Key": key} if key else {}
    return client.post("/unlearn-requests/batch", json={"items": items, **fields}, headers=headers)


def counted() -> tuple[int, int]:
    with reading() as session:
        return (
            session.scalar(select(func.count()).select_from(UnlearnRequest)) or 0,
            session.scalar(select(func.count()).select_from(LedgerEntry)) or 0,
        )


def test_each_item_is_made_or_says_why_not(client: TestClient, model: Json) -> None:
    answer = batch(client, model, 1, 99, 1, 2)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert [one["status"] for one in body["data"]] == [202, 422, 409, 202]
    assert [one["problem"] and one["problem"]["code"] for one in body["data"]] == [
        None, "unknown_class", "duplicate_request", None,
    ]  # fmt: skip
    assert body["failed"] == 2
    first, last = body["data"][0]["request"], body["data"][3]["request"]
    assert client.get(f"/unlearn-requests/{first['id']}").json()["forget"]["classes"] == [1]
    assert last["status_reason"]["code"] in ("no_worker", "behind")


def test_an_atomic_batch_is_made_as_a_whole(client: TestClient, model: Json) -> None:
    before = counted()
    data = batch(client, model, 1, 2, atomic=True).json()["data"]
    rows, entries = counted()
    assert (rows - before[0], entries - before[1]) == (2, 2)
    made = [one["request"] for one in data]
    assert made[0]["created_at"] < made[1]["created_at"]  # they run in this order
    assert [one["ledger_seq"] for one in made] == [before[1], before[1] + 1]


def test_an_atomic_batch_with_a_fault_makes_nothing_and_says_which(client: TestClient, model: Json) -> None:
    before = counted()
    for classes, code, index in (((1, 99), "unknown_class", 1), ((1, 2, 1), "duplicate_request", 2)):
        answer = batch(client, model, *classes, atomic=True)
        assert (code_of(answer), answer.json()["index"]) == (code, index)
        assert answer.json()["errors"][0]["pointer"] == f"/items/{index}/forget/classes"
        assert counted() == before
    gone = batch(client, {"id": "mdl_" + "0" * 32}, 1, atomic=True)
    assert (code_of(gone), gone.json()["index"]) == ("model_not_found", 0)


def test_a_batch_beyond_the_quota_is_not_made_in_part(client: TestClient, model: Json) -> None:
    client.app.state.settings = get_settings().model_copy(update={"max_queued_requests": 2})  # type: ignore[attr-defined]
    before = counted()
    assert code_of(batch(client, model, 1, 2, 3, atomic=True)) == "quota_exceeded"
    assert counted() == before


@pytest.mark.parametrize("atomic", [False, True])
def test_a_repetition_makes_nothing_twice(client: TestClient, model: Json, atomic: bool) -> None:
    first = batch(client, model, 1, 2, key="k", atomic=atomic).json()["data"]
    before = counted()
    again = batch(client, model, 1, 2, key="k", atomic=atomic).json()["data"]
    assert [one["replayed"] for one in again] == [True, True]
    assert [one["request"]["id"] for one in again] == [one["request"]["id"] for one in first]
    assert code_of(batch(client, model, 1, 3, key="k", atomic=atomic)) == "idempotency_key_reused"
    assert counted() == before


def test_a_batch_has_one_to_a_hundred_items(client: TestClient, model: Json) -> None:
    for count in (0, 101):
        assert batch(client, model, *[1] * count).status_code == 422
