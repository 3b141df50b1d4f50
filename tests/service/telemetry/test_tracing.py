"""Traces: a POST, the claim that answers it, its stages and its engine are one trace, across processes."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.telemetry import tracing
from tests.worker.conductor import house as h
from worker.conductor import pipeline
from worker.conductor.launch import environment
from worker.conductor.supervise import Span, span_of
from worker.contract import Event
from worker.engine.spans import told

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def names(spans: InMemorySpanExporter) -> list[str]:
    return [span.name for span in spans.get_finished_spans()]


def test_a_post_and_the_run_that_answers_it_are_one_trace(
    client: TestClient, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    house = h.furnish(tmp_path)
    body = {"model_id": house.model_id, "forget": {"classes": ["3"]}}
    response = client.post("/unlearn-requests", json=body, headers={"traceparent": PARENT})
    assert response.status_code == 202, response.json()
    [post] = spans.get_finished_spans()
    assert post.name == "POST /unlearn-requests"
    assert post.parent is not None
    assert f"{post.parent.span_id:016x}" == PARENT[36:52]
    assert pipeline.run(response.json()["id"], h.make_room()) is not None
    found = {span.name: span for span in spans.get_finished_spans()}
    expected = {"claim", "attempt", "staging", "unlearning", "verifying", "engine.unlearn", "engine.verify"}
    assert expected <= set(found)
    assert {f"{span.context.trace_id:032x}" for span in found.values()} == {PARENT[3:35]}
    below = {
        name: next((n for n, s in found.items() if span.parent.span_id == s.context.span_id), None)
        for name, span in found.items()
    }
    assert {name: below[name] for name in expected} == {
        "claim": "POST /unlearn-requests",
        "attempt": "POST /unlearn-requests",
        "staging": "attempt",
        "unlearning": "attempt",
        "verifying": "attempt",
        "engine.unlearn": "unlearning",
        "engine.verify": "verifying",
    }


@pytest.mark.one_database
def test_nothing_is_traced_and_nothing_written_without_a_provider(client: TestClient, tmp_path: Path) -> None:
    house = h.furnish(tmp_path)
    body = {"model_id": house.model_id, "forget": {"classes": ["3"]}}
    made = client.post("/unlearn-requests", json=body, headers={"traceparent": PARENT}).json()
    assert h.request(made["id"]).traceparent is None
    assert tracing.current() == {}
    with tracing.span("anything") as span:
        assert span is None


@pytest.mark.one_database
def test_a_span_says_the_route_and_the_status_and_not_the_address(client: TestClient, spans: InMemorySpanExporter) -> None:
    client.get("/unlearn-requests/jane.doe@example.org?jane=1", headers={"traceparent": "jane"})
    [span] = spans.get_finished_spans()
    assert span.name == "GET /unlearn-requests/{request_id}"
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "http.route": "/unlearn-requests/{request_id}",
    }
    assert span.parent is None


def test_a_failed_block_is_an_error_that_quotes_nothing(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="jane"), tracing.span("stage"):
        raise ValueError("jane")
    [span] = spans.get_finished_spans()
    assert (span.status.description, list(span.events)) == ("ValueError", [])


def test_spans_are_wanted_only_where_opentelemetry_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    installed: list[Any] = []
    monkeypatch.setattr(tracing, "install", installed.append)
    tracing.setup("api")
    assert installed == []
    monkeypatch.setenv(tracing.ENDPOINTS[0], "http://127.0.0.1:9")
    tracing.setup("api")
    [provider] = installed
    assert provider.resource.attributes["service.name"] == "expunge-api"
    provider.shutdown()


def test_without_the_extra_a_service_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setenv(tracing.ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setattr(builtins, "__import__", missing)
    tracing.setup("api")
    assert [r.getMessage() for r in caplog.records if r.name == "expunge.tracing"] == ["tracing.not_installed"]
    assert tracing._tracer is None


# ------------------------------------------------------------------------------------------------------------- the engine


def test_the_engine_hears_of_the_trace_only_where_there_is_one() -> None:
    from service.requests.leases import Lease

    lease = Lease("r", 1, "w")
    assert environment({}, lease, ranks=1, traceparent=PARENT)["TRACEPARENT"] == PARENT
    assert "TRACEPARENT" not in environment({"TRACEPARENT": "of somebody else"}, lease, ranks=1)


def test_the_first_rank_alone_tells_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "events.jsonl"
    with told(events, "engine.unlearn"):
        pass
    assert not events.exists()  # nobody traces
    monkeypatch.setenv("TRACEPARENT", PARENT)
    monkeypatch.setenv("RANK", "1")
    with told(events, "engine.unlearn"):
        pass
    assert not events.exists()
    monkeypatch.setenv("RANK", "0")
    before = time.time()
    with pytest.raises(ZeroDivisionError), told(events, "engine.unlearn"):
        raise ZeroDivisionError
    [line] = events.read_text().splitlines()
    span = span_of(Event.model_validate_json(line), PARENT, before)
    assert span is not None
    assert before <= span.began <= span.ended <= time.time()


@pytest.mark.parametrize(
    "changed",
    [
        {"span": "jane"},
        {"traceparent": PARENT.replace("0af", "1af")},
        {"began": "early"},
        {"began": float("nan")},
        {"began": 2e9 + 100.0, "ended": 2e9},
        {"ended": 2e9 + 100.0},
        {"began": 1e9},
    ],
)
def test_what_an_engine_says_of_its_time_is_not_believed_blindly(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    honest = {"span": "engine.verify", "began": 2e9 - 10, "ended": 2e9 - 1, "traceparent": PARENT}

    def read(values: dict[str, Any]) -> Span | None:
        event = Event.model_construct(at=2e9, kind="note", phase="verify", values=values)
        return span_of(event, PARENT, 2e9 - 11)

    assert read(honest) == Span("engine.verify", 2e9 - 10, 2e9 - 1)
    assert read({**honest, **changed}) is None
