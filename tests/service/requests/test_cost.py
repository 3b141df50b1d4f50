"""What a request may cost: ways to the database are what others wait for, most of all while the ledger's head is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import event

from service import db, tenancy
from service.requests import places
from tests.support import register

MOST = {"postgresql": 9, "sqlite": 13}
"""The model's lock, what waits, what holds, the request, who listens, the event, the workers; then the head, and the entry with
its sealed values. SQLite has no functions: the entry is four statements there, and BEGIN is one."""


@contextmanager
def statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(" ".join(statement.split()))

    event.listen(db.get_engine(), "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(db.get_engine(), "before_cursor_execute", note)


def test_a_request_of_a_known_model_takes_few_statements_and_the_head_is_held_for_one(
    client: TestClient, tmp_path: Path
) -> None:
    model = register(client, tmp_path)
    body = {"model_id": model["id"], "reason": "r"}
    first = client.post("/unlearn-requests", json={**body, "forget": {"classes": [0]}}).json()
    with statements() as seen:
        answer = client.post("/unlearn-requests", json={**body, "forget": {"classes": [1]}})
    assert answer.status_code == 202
    assert len(seen) <= MOST[db.get_engine().dialect.name], "\n".join(seen)
    head = next(n for n, one in enumerate(seen) if "expunge_ledger_lock" in one or "FROM ledger_head" in one)
    assert not [one for one in seen[head + 1 :] if one.startswith("SELECT") and "expunge_ledger_append" not in one]
    shown = client.get(f"/unlearn-requests/{answer.json()['id']}").json()
    assert answer.json() == shown, "what was not read again is what is there"
    assert shown["status_reason"]["code"] == first["status_reason"]["code"] == "no_worker"


def test_where_a_model_s_data_are_is_remembered_for_the_project_that_looked_it_up_alone(
    client: TestClient, tmp_path: Path
) -> None:
    model = register(client, tmp_path)
    assert client.post("/unlearn-requests", json={"model_id": model["id"], "forget": {"classes": [0]}}).status_code == 202
    assert places._remembered.get(model["id"]) is not None
    with tenancy.acting("another"):
        assert places._remembered.get(model["id"]) is None
