"""A stream of events that is taken up again where it broke off, and that ends with its request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from service.client import ApiError, Client, Unreachable, events
from tests.support import ask, register


def frame(number: int, kind: str, **data: Any) -> bytes:
    told = {"at": "2026-01-01T00:00:00Z", "request_id": "ureq_1", **data}
    return f"id: {number}\nevent: unlearning_request.{kind}\ndata: {json.dumps(told)}\n\n".encode()


class Broken(httpx2.SyncByteStream):
    """Some bytes, and then nobody is there."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts
        raise httpx2.ReadError("gone")


class Wire:
    """Answers in their order; the last one again and again."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str | None] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Accept"] == "text/event-stream"
        self.asked.append(request.headers.get("Last-Event-ID"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        answer.headers.setdefault("Content-Type", "text/event-stream")
        return answer


def client_of(wire: Wire) -> Client:
    client = Client("http://expunge.test")
    client._http = httpx2.Client(base_url="http://expunge.test", transport=httpx2.MockTransport(wire))  # type: ignore[assignment]
    return client


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("service.client.events.time.sleep", pauses.append)
    return pauses


def test_a_stream_goes_on_after_the_last_whole_event(slept: list[float]) -> None:
    wire = Wire(
        httpx2.Response(
            200, stream=Broken(b"retry: 2000\n\n", frame(4, "created"), b": ping\n\n", frame(5, "progress", n=1)[:-1])
        ),
        httpx2.ConnectError("restarting"),
        httpx2.Response(502, content=b"<html>nobody behind this proxy</html>"),
        httpx2.Response(200, content=b"retry: 2000\n\n" + frame(5, "progress", n=1)),  # and the server lets go of it
        httpx2.Response(200, content=frame(6, "succeeded", checkpoint_id="ckpt_1") + frame(7, "never_read")),
    )
    told = list(client_of(wire).requests.follow("ureq_1"))
    assert [(event["id"], event["type"].partition(".")[2], event["data"]) for event in told] == [
        (4, "created", {}), (5, "progress", {"n": 1}), (6, "succeeded", {"checkpoint_id": "ckpt_1"}),
    ]  # fmt: skip
    assert {event["request_id"] for event in told} == {"ureq_1"}
    assert wire.asked == [None, "4", "4", "4", "5"]
    assert slept == [events.RECONNECT_SECONDS] * 4


def test_of_a_request_that_has_ended_there_is_no_more(slept: list[float]) -> None:
    wire = Wire(httpx2.Response(204))
    assert list(client_of(wire).requests.follow("ureq_1", after=6)) == []
    assert (wire.asked, slept) == (["6"], [])


def test_nobody_there_is_said_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PATIENCE_SECONDS", 0.05)
    wire = Wire(httpx2.ConnectError("gone"))
    with pytest.raises(Unreachable):
        list(client_of(wire).requests.follow_all())
    assert len(wire.asked) > 1


def test_a_page_is_no_stream(slept: list[float]) -> None:
    """It has no events, and asking again would find it again, for ever."""
    wire = Wire(httpx2.Response(200, html="<p>please log in</p>"))
    with pytest.raises(ApiError, match="unreadable"):
        list(client_of(wire).requests.follow("ureq_1"))
    assert slept == []


def test_a_request_is_watched_over_a_restart(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    def client(*answers: Any) -> Client:
        left = iter(answers)

        def answer(_: httpx2.Request) -> httpx2.Response:
            found = next(left)
            if isinstance(found, Exception):
                raise found
            return httpx2.Response(found) if isinstance(found, int) else httpx2.Response(200, json={"status": found})

        opened = Client("http://expunge.test")
        opened._http = httpx2.Client(base_url="http://expunge.test", transport=httpx2.MockTransport(answer))  # type: ignore[assignment]
        return opened

    away = (httpx2.ConnectError("restarting"), 502, 503)
    seen: list[str] = []
    final = client("running", *away, "succeeded").requests.watch("r", lambda request: seen.append(request["status"]))
    assert (final["status"], seen) == ("succeeded", ["running", "succeeded"])
    assert slept[1:] == [events.RECONNECT_SECONDS] * 3
    with pytest.raises(Unreachable):  # nothing was ever there
        client(httpx2.ConnectError("gone")).requests.watch("r")
    with pytest.raises(ApiError):
        client("running", 401).requests.watch("r")
    monkeypatch.setattr(events, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(Unreachable):
        client("running", httpx2.ConnectError("gone")).requests.watch("r")


def test_a_refusal_is_not_tried_again() -> None:
    problem = {"code": "unauthenticated", "detail": "no key"}
    wire = Wire(httpx2.Response(401, json=problem))
    with pytest.raises(ApiError, match="unauthenticated"):
        list(client_of(wire).requests.follow("ureq_1"))
    assert wire.asked == [None]


def test_the_service_s_own_stream_is_read(client: TestClient, tmp_path: Path) -> None:
    made = ask(client, register(client, tmp_path), 1).json()["id"]
    api = Client("http://127.0.0.1")
    api._http.close()
    api._http = client  # type: ignore[assignment]
    api.requests.cancel(made)
    streamed, listed = list(api.requests.follow(made)), api.requests.events(made)["data"]
    assert [event["type"].partition(".")[2] for event in streamed][-1] == "cancelled"
    assert [(event["id"], event["type"], event["data"]) for event in streamed] == [
        (event["id"], event["type"], event["data"]) for event in listed
    ]
    assert list(api.requests.follow(made, after=streamed[-1]["id"])) == []
