"""The events of a request as they happen: Server-Sent Events that resume where a broken connection left off.

Source: WHATWG HTML, "Server-sent events" §9.2.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import anyio
from anyio.to_thread import run_sync

from service.db import reading
from service.requests import repository
from service.requests.lifecycle import TERMINAL
from service.requests.schemas import EventRead

POLL_SECONDS = 0.3
PING_SECONDS = 15.0
RECONNECT_MS = 2000
BATCH = 200


def read_events(request_id: str, last_id: int) -> tuple[list[EventRead], bool]:
    """The next events, and whether the request had ended before they were read: then no more will come.

    One short read; no connection is held between two of them.
    """
    with reading() as session:
        ended = repository.get(session, request_id).status in TERMINAL
        rows = repository.events_after(session, request_id, last_id, BATCH)
        return [EventRead(id=r.id, type=r.type, data=r.data, at=r.at) for r in rows], ended


async def follow(request_id: str, last_id: int) -> AsyncIterator[bytes]:
    """Events as an event stream, until the one that ends the request."""
    yield b"retry: %d\n\n" % RECONNECT_MS
    spoke = time.monotonic()
    while True:
        events, ended = await run_sync(read_events, request_id, last_id)
        for event in events:
            yield encode(event)
            last_id, spoke = event.id, time.monotonic()
        if len(events) == BATCH:
            continue
        if ended:
            return
        if time.monotonic() - spoke >= PING_SECONDS:
            yield b": ping\n\n"
            spoke = time.monotonic()
        await anyio.sleep(POLL_SECONDS)


def encode(event: EventRead) -> bytes:
    """One event on the wire. JSON has no line breaks, so `data` is one line."""
    data = json.dumps({"at": event.model_dump(mode="json")["at"], **event.data}, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()
