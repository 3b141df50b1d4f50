"""What is sent of an event, and what never is."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from service.webhooks import messages

AT = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)


def test_the_body_is_type_time_and_data() -> None:
    body = json.loads(messages.body("unlearning_request.started", AT, {"request_id": "ureq_1"}))
    assert body == {
        "type": "unlearning_request.started",
        "timestamp": "2026-11-22T10:00:00.123Z",
        "data": {"request_id": "ureq_1"},
    }


def test_of_an_error_the_code_alone_is_told() -> None:
    error = {"code": "diverged", "message": "about Anna Example", "log_tail": "x" * 50_000}
    assert messages.data_of("ureq_1", {"error": error, "external_id": "DSAR-1188", "reason_text": "Anna"}) == {
        "request_id": "ureq_1",
        "code": "diverged",
    }


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        ("unlearning_request.started", "unlearning_request.started"),
        ("unlearning_request.requeued", "unlearning_request.queued"),
        ("unlearning_request.resumed", "unlearning_request.queued"),
        ("unlearning_request.pending_approval", "unlearning_request.pending_approval"),
        ("unlearning_request.approved", "unlearning_request.approved"),
        ("unlearning_request.rejected", "unlearning_request.rejected"),
        ("checkpoint.revoked", "checkpoint.revoked"),
        ("unlearning_request.progress", None),
        ("unlearning_request.amended", None),
        ("unlearning_request.waiting", None),
    ],
)
def test_which_events_are_sent(event: str, sent: str | None) -> None:
    assert messages.type_of(event) == sent
