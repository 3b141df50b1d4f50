"""What is sent of an event: its type, its time and a few ids. Pure.

Thin on purpose: whoever hears of something asks the API for the rest, with credentials of their own. Nothing that a person or a
client wrote (reasons, messages, external ids) is in a body, for what was sent can never be erased.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal, get_args

EventType = Literal[
    "unlearning_request.created",
    "unlearning_request.pending_approval",
    "unlearning_request.approved",
    "unlearning_request.rejected",
    "unlearning_request.queued",
    "unlearning_request.started",
    "unlearning_request.paused",
    "unlearning_request.succeeded",
    "unlearning_request.failed",
    "unlearning_request.cancelled",
    "unlearning_request.deadline_at_risk",
    "unlearning_request.deadline_missed",
    "checkpoint.certified",
    "checkpoint.revoked",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
TEST_TYPE = "webhook_endpoint.test"
_BACK_IN_THE_QUEUE = {"unlearning_request.requeued", "unlearning_request.resumed"}
SENT = frozenset(
    {
        "status", "phase", "fence", "attempt", "rung", "rungs", "method", "checkpoint_id", "version", "due_at",
        "latest_start_at", "granted", "required",
    }
)  # fmt: skip
"""Of an event's own data: ids, numbers and words of ours."""
LARGEST_BODY = 20_000
"""Bytes, as Standard Webhooks 1.0 advises."""


def type_of(event: str) -> EventType | None:
    """The type under which an event is sent; None: it is not."""
    if event in _BACK_IN_THE_QUEUE:
        return "unlearning_request.queued"
    return event if event in EVENT_TYPES else None


def data_of(request_id: str, data: dict[str, Any]) -> dict[str, Any]:
    """What is told of an event of a request: what may be sent of its data, and of an error its code alone."""
    told = {name: data[name] for name in sorted(SENT & data.keys()) if data[name] is not None}
    error = data.get("error") or data.get("reason")
    if isinstance(error, dict) and "code" in error:
        told["code"] = error["code"]
    return {"request_id": request_id, **told}


def body(kind: str, at: datetime, data: dict[str, Any]) -> str:
    """The JSON text: `{type, timestamp, data}`. It is kept and sent as it is, for every byte of it is signed."""
    stamp = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = json.dumps({"type": kind, "timestamp": stamp, "data": data}, separators=(",", ":"))
    assert len(text.encode()) < LARGEST_BODY, "a body holds ids and numbers only"
    return text
