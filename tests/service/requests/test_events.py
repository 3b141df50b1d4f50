"""Following a request: a list, or a stream that resumes where it broke off and ends with the request."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.requests import stream, tailer
from tests.support import ask, code_of, emit, move, register

STREAM = {"Accept": "text/event-stream"}


def _parse(text: str) -> list[dict[str, str]]:
    """The events of a stream, as a browser reads them."""
    blocks = [b for b in text.split("\n\n") if b.strip()]
    parsed = [dict(line.split(": ", 1) for line in b.split("\n") if not line.startswith(":")) for b in blocks]
    return [p for p in parsed if "event" in p]


def _started(client: TestClient, tmp_path: Path) -> tuple[str, str]:
    request = ask(client, register(client, tmp_path), 1).json()
    move(request["id"], "running")
    emit(request["id"], "started", fence=1)
    return request["id"], f"/unlearn-requests/{request['id']}/events"


def test_the_list_holds_every_event_in_order(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BATCH", 4)  # so that the list is read in several batches
    request_id, address = _started(client, tmp_path)
    for n in range(9):
        emit(request_id, "progress", completed=n)
    events = client.get(address).json()["data"]
    assert [e["type"].partition(".")[2] for e in events] == ["created", "started"] + ["progress"] * 9
    assert [e["data"]["completed"] for e in events[2:]] == list(range(9))
    assert [e["id"] for e in events] == sorted({e["id"] for e in events})


def test_the_stream_ends_with_the_request(client: TestClient, tmp_path: Path) -> None:
    request_id, address = _started(client, tmp_path)
    emit(request_id, "failed", error={"code": "diverged"})
    move(request_id, "failed")
    response = client.get(address, headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert [e["event"].partition(".")[2] for e in _parse(response.text)] == ["created", "started", "failed"]


def test_the_stream_resumes_after_the_last_event_seen(client: TestClient, tmp_path: Path) -> None:
    request_id, address = _started(client, tmp_path)
    middle = emit(request_id, "progress", completed=1)
    last = emit(request_id, "succeeded")
    move(request_id, "succeeded")
    resumed = _parse(client.get(address, headers={**STREAM, "Last-Event-ID": str(middle)}).text)
    assert [(int(e["id"]), e["event"]) for e in resumed] == [(last, "unlearning_request.succeeded")]


def test_a_stream_resumed_after_the_end_is_204(client: TestClient, tmp_path: Path) -> None:
    """A browser's EventSource reconnects for ever after a 200; 204 tells it to stop."""
    request_id, address = _started(client, tmp_path)
    last = emit(request_id, "succeeded")
    move(request_id, "succeeded")
    assert client.get(address, headers={**STREAM, "Last-Event-ID": str(last)}).status_code == 204


def test_the_stream_tells_what_happens_while_it_is_open(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailer, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(stream, "PING_SECONDS", 0.1)
    request_id, address = _started(client, tmp_path)

    def later() -> None:
        time.sleep(0.5)
        emit(request_id, "succeeded")
        move(request_id, "succeeded")

    worker = threading.Thread(target=later)
    worker.start()
    text = client.get(address, headers=STREAM).text
    worker.join()
    assert _parse(text)[-1]["event"] == "unlearning_request.succeeded"
    assert ": ping" in text  # the connection was kept alive while nothing happened


def test_the_stream_holds_no_connection_while_it_sleeps(client: TestClient, tmp_path: Path) -> None:
    from service.db import get_engine

    request_id, _ = _started(client, tmp_path)
    stream.read_events(request_id, 0)
    assert get_engine().pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.one_database
@pytest.mark.parametrize("bad", ["x", "-1", "1" * 16, "1.5"])
def test_a_last_event_id_that_is_none_of_ours_is_422(client: TestClient, tmp_path: Path, bad: str) -> None:
    _, address = _started(client, tmp_path)
    response = client.get(address, headers={**STREAM, "Last-Event-ID": bad})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


@pytest.mark.parametrize("headers", [{}, STREAM])
def test_events_of_an_unknown_request_are_404(client: TestClient, headers: Any) -> None:
    response = client.get(f"/unlearn-requests/ureq_{'0' * 32}/events", headers=headers)
    assert (response.status_code, code_of(response)) == (404, "request_not_found")
