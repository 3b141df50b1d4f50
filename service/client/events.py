"""Server-Sent Events as the service sends them, taken up again where a connection broke off.

Source: WHATWG HTML, "Server-sent events" §9.2.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from service.client.bodies import ProjectEventRead
from service.client.transport import ApiError, Transport, Unreachable, passes

MEDIA_TYPE = "text/event-stream"
RECONNECT_SECONDS = 2.0
"""So long a stream that broke off waits before it comes again."""
PATIENCE_SECONDS = 120.0
"""So long nobody may answer before a stream is given up."""


def stream(transport: Transport, path: str, after: int | None) -> Iterator[ProjectEventRead]:
    """Events after this id, as they happen, until the service says that nothing will follow.

    Raises:
        ApiError: the service refuses; or it has been away for `PATIENCE_SECONDS`, and something in front of it says so.
        Unreachable: nobody has answered for so long.
    """
    heard = time.monotonic()
    while True:
        last = {} if after is None else {"Last-Event-ID": str(after)}
        silent, fields = True, dict[str, str]()
        try:
            for line in transport.stream_lines(path, headers={"Accept": MEDIA_TYPE, **last}, media_type=MEDIA_TYPE):
                silent, heard = False, time.monotonic()
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if "data" in fields:
                    event = _event(fields)
                    after = event["id"]
                    yield event
                fields = {}
            if silent:
                return  # an empty answer: there is no more
        except (ApiError, Unreachable) as error:
            if not passes(error) or time.monotonic() - heard > PATIENCE_SECONDS:
                raise
        time.sleep(RECONNECT_SECONDS)


def _event(fields: dict[str, str]) -> ProjectEventRead:
    told = json.loads(fields["data"])
    at, request_id = told.pop("at"), told.pop("request_id")
    return {"id": int(fields["id"]), "type": fields["event"], "at": at, "request_id": request_id, "data": told}
