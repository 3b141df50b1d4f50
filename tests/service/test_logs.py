"""Logs: JSON lines that name request and trace, and nobody."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text

from service import db
from service.errors import ServiceError
from service.logs import JsonLines, bind, configure, trace_of
from tests.service.telemetry.conftest import spans  # noqa: F401 — a fixture
from tests.support import register
from tests.worker.conductor import house as h
from worker.conductor import pipeline

NAME = "Jane Doe"
SECRET = "sk-ulk-0123456789"


class Lines(io.StringIO):
    def read_all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What would be on standard error."""
    written, root = Lines(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: not record.name.startswith("httpx2"))  # the test's own client, quiet in the service
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


def of_service(lines: Lines) -> list[dict[str, Any]]:
    return [line for line in lines.read_all() if line["logger"].startswith("expunge")]


def test_every_line_of_a_request_names_it_and_nobody_else(
    client: TestClient, lines: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a request ends: accepted, refused, not found, a database that fails with the values in its message, a bug."""
    model = register(client, tmp_path)
    body = {
        "model_id": model["id"],
        "forget": {"classes": ["3"]},
        "reason": NAME,
        "external_id": NAME,
        "metadata": {"who": NAME},
    }
    headers = {"X-Request-Id": "call-1", "Authorization": f"Bearer {SECRET}", "Idempotency-Key": "key-1"}
    assert client.post("/unlearn-requests", json=body, headers=headers).status_code == 202
    assert client.post("/unlearn-requests", json={**body, "nobody": NAME}, headers=headers).status_code == 422
    assert client.post("/unlearn-requests", content=NAME, headers=headers).status_code in (400, 422)
    assert client.get(f"/unlearn-requests/{NAME}?q={NAME}", headers=headers).status_code == 404
    with db.transaction() as session:  # a constraint whose error quotes the row, on both databases
        session.execute(text("CREATE UNIQUE INDEX uq_once ON unlearn_request (external_id)"))
    two = {**body, "forget": {"classes": ["4"]}}
    assert client.post("/unlearn-requests", json=two, headers={**headers, "Idempotency-Key": "key-2"}).status_code == 500

    from service.requests import service

    def bug(*_: Any, **__: Any) -> None:
        raise KeyError(NAME)

    monkeypatch.setattr(service, "create", bug)
    broken = client.post("/unlearn-requests", json=two, headers={**headers, "Idempotency-Key": "key-3"})
    assert (broken.status_code, broken.headers["X-Request-Id"]) == (500, "call-1")
    told = of_service(lines)
    answered = [line for line in told if line["fact"] == "http.answered" and line.get("x_request_id") == "call-1"]
    assert [line["status"] for line in answered[:1] + answered[-2:]] == [202, 500, 500]
    assert {line["route"] for line in answered} == {"/unlearn-requests", "/unlearn-requests/{request_id}"}
    crashed = [line for line in told if line["fact"] == "request.crashed"]
    assert [line["x_request_id"] for line in crashed] == ["call-1", "call-1"]
    assert crashed[1]["traceback"].endswith("KeyError")
    whole = lines.getvalue()
    assert NAME not in whole
    assert "Jane%20Doe" not in whole
    assert SECRET not in whole


def test_every_line_of_a_run_names_its_request_and_its_trace(
    client: TestClient,
    lines: Lines,
    spans: InMemorySpanExporter,  # noqa: F811
    tmp_path: Path,
) -> None:
    house = h.furnish(tmp_path)
    body = {"model_id": house.model_id, "forget": {"classes": ["3"]}, "reason": NAME}
    request_id = client.post("/unlearn-requests", json=body).json()["id"]
    assert pipeline.run(request_id, h.make_room()) is not None
    told = [line for line in of_service(lines) if line["logger"] == "expunge.conductor"]
    assert {"request.claimed", "stage.started", "stage.ended", "attempt.ended"} <= {line["fact"] for line in told}
    assert {line["request"] for line in told} == {request_id}
    assert {line["trace_id"] for line in told} == {f"{s.context.trace_id:032x}" for s in spans.get_finished_spans()}
    assert NAME not in lines.getvalue()


def test_what_is_bound_ends_with_its_block(lines: Lines) -> None:
    log = logging.getLogger("expunge.test")
    with bind(request="a"):
        log.info("one")
        with bind(fence=2):
            log.info("two", extra={"request": "b"})
    log.info("three")
    shown = [{k: line[k] for k in ("request", "fence") if k in line} for line in of_service(lines)]
    assert shown == [{"request": "a"}, {"request": "b", "fence": 2}, {}]


def test_a_traceback_says_where_and_what_kind_and_quotes_nothing_of_strangers() -> None:
    class Form(pydantic.BaseModel):
        age: int

    def chain() -> None:
        try:
            Form.model_validate({"age": NAME})
        except pydantic.ValidationError as error:
            raise RuntimeError(NAME) from error

    with pytest.raises(RuntimeError) as caught:
        chain()
    told = trace_of(caught.value)
    assert NAME not in told
    assert told.index("RuntimeError") < told.index("ValidationError")
    assert "in chain" in told
    assert trace_of(ServiceError("ours")).endswith("ServiceError: ours")
    assert trace_of(FileNotFoundError(2, "No such file or directory", NAME)).endswith(
        "FileNotFoundError: No such file or directory"
    )


def test_nobody_else_logs_addresses() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure(logging.INFO)
        assert not [name for name in ("httpx2", "uvicorn.access") if logging.getLogger(name).isEnabledFor(logging.INFO)]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
