"""Many clients that follow requests by Server-Sent Events: does each get every event, and how late?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from urllib.parse import urlsplit

from tests.benchmarks.service import filled
from tests.benchmarks.service.load import quantile

SETTLE_SECONDS = 2.0


def measure(url: str, request_ids: list[str], listeners: int, events: int, patience_seconds: float) -> dict[str, float]:
    """`listeners` connections spread over the requests; `events` of each request, a second apart.

    Lag: from just before an event's transaction to its last byte at the listener, on one clock.
    """
    return asyncio.run(_measure(url, request_ids, listeners, events, patience_seconds))


async def _measure(url: str, request_ids: list[str], listeners: int, events: int, patience: float) -> dict[str, float]:
    lags: list[float] = []
    open_now = asyncio.Semaphore(50)  # connections are opened a few at a time: the accept queue is not what is measured
    ready = [asyncio.Event() for _ in range(listeners)]
    tasks = [
        asyncio.create_task(_listen(url, request_ids[k % len(request_ids)], lags, open_now, ready[k])) for k in range(listeners)
    ]
    await asyncio.wait_for(asyncio.gather(*(one.wait() for one in ready)), patience + 60)
    await asyncio.sleep(SETTLE_SECONDS)
    for _ in range(events):
        began = time.monotonic()
        for request_id in request_ids:
            await asyncio.to_thread(filled.event, request_id, {"sent": time.monotonic()})
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
    until = time.monotonic() + patience
    while len(lags) < listeners * events and time.monotonic() < until:
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not lags:
        return {"sse_delivered_share": 0.0}
    return {
        "sse_delivered_share": round(len(lags) / (listeners * events), 4),
        "sse_lag_p50_ms": round(quantile(lags, 0.5), 1),
        "sse_lag_p99_ms": round(quantile(lags, 0.99), 1),
    }


async def _listen(url: str, request_id: str, lags: list[float], turn: asyncio.Semaphore, ready: asyncio.Event) -> None:
    place = urlsplit(url)
    async with turn:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        asked = (
            f"GET /unlearn-requests/{request_id}/events HTTP/1.1\r\nHost: {place.netloc}\r\nAccept: text/event-stream\r\n\r\n"
        )
        writer.write(asked.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            raise RuntimeError(head.decode(errors="replace"))
    ready.set()
    try:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                lags.append((time.monotonic() - json.loads(line[6:])["sent"]) * 1000)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
