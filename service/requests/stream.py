"""Events as they happen: Server-Sent Events that resume where a broken connection left off.

What has happened is read from the table, what happens is handed on by the process's one reader (`requests.tailer`). The
listener is there before the table is read, and the table is read up to where the listener begins: no gap, nothing twice.

Source: WHATWG HTML, "Server-sent events" §9.2.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from anyio.to_thread import run_sync
from starlette.responses import StreamingResponse

from service.db import reading
from service.requests import repository, tailer
from service.requests.lifecycle import TERMINAL
from service.requests.responses import ProjectEventRead
from service.requests.tailer import Dropped, Listener, Tailer

PING_SECONDS = 15.0
RECONNECT_MS = 2000
BATCH = 200
Welcome = Callable[[], Awaitable[bool]]
LAST = frozenset(f"unlearning_request.{status}" for status in TERMINAL)
"""With these a request's stream ends."""


def read_events(request_id: str, last_id: int) -> tuple[list[ProjectEventRead], bool]:
    """The next events of a request, and whether it had ended before they were read: then no more will come.

    One short read; no connection is held between two of them.
    """
    with reading() as session:
        ended = repository.get(session, request_id).status in TERMINAL
        return [tailer.shown(row) for row in repository.events_after(session, request_id, last_id, BATCH)], ended


def read_all(_request_id: str, last_id: int) -> tuple[list[ProjectEventRead], bool]:
    """The same of everybody's events, which never end."""
    with reading() as session:
        return [tailer.shown(row) for row in repository.events_after(session, None, last_id, BATCH)], False


def response(frames: AsyncIterator[bytes]) -> StreamingResponse:
    """An event stream that no proxy keeps or holds back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


async def _always() -> bool:
    return True


async def follow(
    source: Tailer, request_id: str | None, last_id: int | None, welcome: Welcome = _always
) -> AsyncIterator[bytes]:
    """Events as an event stream; of one request, until the one that ends it.

    Args:
        request_id: None: everybody's, without an end.
        last_id: what the client has seen; None: what happens from now on.
        welcome: asked every `PING_SECONDS`; the stream ends when whoever listens may not any more.
    """
    yield b"retry: %d\n\n" % RECONNECT_MS
    async with source.listening(request_id) as listener:
        last_id = listener.since if last_id is None else last_id
        read = read_all if request_id is None else read_events
        while True:
            events, ended = await run_sync(read, request_id or "", last_id)
            for event in events:
                if event.id > listener.since and not ended:
                    break
                yield encode(event)
                last_id = event.id
            else:
                if len(events) == BATCH:
                    continue
            break
        if ended:
            return
        async for frame in _live(listener, last_id, welcome):
            yield frame


async def _live(listener: Listener, last_id: int, welcome: Welcome) -> AsyncIterator[bytes]:
    spoke = asked = time.monotonic()
    while True:
        try:
            event = await listener.next(max(spoke + PING_SECONDS - time.monotonic(), 0.0))
        except Dropped:
            return
        if time.monotonic() - asked >= PING_SECONDS:
            if not await welcome():
                return
            asked = time.monotonic()
        if event is None:
            yield b": ping\n\n"
        elif event.id > last_id:
            yield encode(event)
            if listener.request_id is not None and event.type in LAST:
                return
        spoke = time.monotonic()


def encode(event: ProjectEventRead) -> bytes:
    """One event on the wire. JSON has no line breaks, so `data` is one line."""
    told: dict[str, Any] = {"at": event.model_dump(mode="json")["at"], "request_id": event.request_id, **event.data}
    return f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n".encode()
