"""What waits for a worker, and what has lost one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from service import db, outbox
from service.outbox import Due
from service.requests import leases
from tests.worker.conductor import house as h

pytestmark = pytest.mark.usefixtures("database")


def due(limit: int = 10) -> list[Due]:
    with db.reading() as session:
        return outbox.due(session, limit=limit)


def test_one_request_a_model_is_due_oldest_first(tmp_path: Path) -> None:
    one, other = h.furnish(tmp_path / "a"), h.furnish(tmp_path / "b")
    first, _second, third = h.ask(one, 1), h.ask(one, 2), h.ask(other, 1)
    assert [d.request_id for d in due()] == [first, third]
    assert [d.request_id for d in due(limit=1)] == [first]


def test_what_rests_runs_or_was_cancelled_is_not_due(tmp_path: Path) -> None:
    rests, runs, gone = (h.ask(h.furnish(tmp_path / name)) for name in "abc")
    h.change(rests, not_before=timedelta(minutes=1))
    with db.transaction() as session:
        assert leases.claim(session, runs, owner="w", lease_seconds=60)
    h.withdraw(gone)
    assert due() == []


def test_a_lease_is_expired_by_the_databases_clock(tmp_path: Path) -> None:
    request_id = h.ask(h.furnish(tmp_path))
    with db.transaction() as session:
        leases.claim(session, request_id, owner="w", lease_seconds=60)
    with db.reading() as session:
        (one,) = outbox.held(session)
    assert (one.request_id, one.fence, one.owner, one.expired) == (request_id, 1, "w", False)
    h.expire_lease(request_id)
    with db.reading() as session:
        assert outbox.held(session)[0].expired


def test_standing_names_only_requests_that_exist(tmp_path: Path) -> None:
    request_id = h.ask(h.furnish(tmp_path))
    with db.reading() as session:
        assert outbox.standing(session, [request_id, "ureq_unknown"]) == {request_id: ("queued", 0)}
        assert outbox.standing(session, []) == {}
