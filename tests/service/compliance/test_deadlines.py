"""Deadlines that come near or pass are said once, whoever looks and how often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from service import db
from service.compliance import deadlines
from service.compliance.deadlines import AT_RISK, MISSED, judge
from service.tables import RequestCompliance, RequestEvent, UnlearnRequest
from tests.support import ask, move, register

START = datetime(2026, 11, 1, tzinfo=UTC)
DUE = START + timedelta(days=10)


@pytest.mark.parametrize(
    ("days", "latest", "waits", "expected"),
    [
        (7.9, None, True, None),
        (8.0, None, False, AT_RISK),  # a fifth is left
        (3.0, 2.0, True, AT_RISK),  # it should have begun
        (3.0, 2.0, False, None),  # it has begun, or ended
        (3.0, 4.0, True, None),
        (10.0, None, False, AT_RISK),
        (10.1, None, False, MISSED),
    ],
)
def test_when_a_deadline_is_at_risk(days: float, latest: float | None, waits: bool, expected: str | None) -> None:
    latest_at = None if latest is None else START + timedelta(days=latest)
    at = START + timedelta(days=days)
    assert judge(at, received_at=START, due_at=DUE, latest_start_at=latest_at, waits=waits) == expected


def sweep() -> list[tuple[str, str]]:
    with db.reading() as session:
        found = deadlines.candidates(session)
    for request_id, kind in found:
        with db.transaction() as session:
            deadlines.say(session, request_id, kind)
    return found


def said(request_id: str) -> list[str]:
    with db.reading() as session:
        chosen = select(RequestEvent.type).where(RequestEvent.request_id == request_id).order_by(RequestEvent.id)
        return [kind for kind in session.scalars(chosen) if "deadline" in kind]


def test_risk_and_miss_are_said_once_each(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request_id, plain = (ask(client, model, n, **more).json()["id"] for n, more in ((1, {"jurisdiction": "gdpr"}), (2, {})))
    assert sweep() == []
    with db.transaction() as session:
        session.get_one(UnlearnRequest, request_id).latest_start_at = db.now(session) - timedelta(minutes=1)
    assert sweep() == [(request_id, AT_RISK)]
    with db.transaction() as session:
        assert not deadlines.say(session, request_id, AT_RISK)  # another sweeper, which looked at the same moment
    with db.transaction() as session:
        session.get_one(RequestCompliance, request_id).due_at = db.now(session) - timedelta(minutes=1)
    move(request_id, "cancelled", finished_at=datetime.now(UTC))  # the duty to answer goes on
    assert sweep() == [(request_id, MISSED)]
    assert sweep() == []
    assert (said(request_id), said(plain)) == ([AT_RISK, MISSED], [])


def test_another_deadline_is_at_risk_and_missed_anew(client: TestClient, tmp_path: Path) -> None:
    """An extension moves the deadline: what was said of the first one warns nobody of the second."""
    request_id = ask(client, register(client, tmp_path), 1, jurisdiction="gdpr").json()["id"]
    for left in (timedelta(hours=1), timedelta(hours=-1), timedelta(minutes=50), timedelta(hours=-2)):
        with db.transaction() as session:
            law = session.get_one(RequestCompliance, request_id)
            law.received_at, law.due_at = db.now(session) - timedelta(days=30), db.now(session) + left
        assert sweep() == [(request_id, AT_RISK if left > timedelta(0) else MISSED)]
        assert sweep() == []
        with db.transaction() as session:  # another sweeper, which looked at the same moment
            assert not deadlines.say(session, request_id, AT_RISK if left > timedelta(0) else MISSED)
    assert said(request_id) == [AT_RISK, MISSED, AT_RISK, MISSED]


def test_who_was_answered_is_not_at_risk(client: TestClient, tmp_path: Path) -> None:
    request_id = ask(client, register(client, tmp_path), 1, jurisdiction="gdpr").json()["id"]
    with db.transaction() as session:
        law = session.get_one(RequestCompliance, request_id)
        law.due_at = db.now(session) - timedelta(minutes=1)
    with db.reading() as session:
        assert deadlines.candidates(session) == [(request_id, MISSED)]
    with db.transaction() as session:
        session.get_one(RequestCompliance, request_id).answered_at = db.now(session)
    assert sweep() == []
    with db.transaction() as session:
        assert not deadlines.say(session, request_id, MISSED)
