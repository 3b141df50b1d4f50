"""A disk that is full and a store that refuses end an attempt as what they are, and publish nothing."""

from __future__ import annotations

import pytest

from service import db, failpoints, garbage
from tests.worker.conductor import house as h
from worker.conductor import pipeline
from worker.conductor.outcomes import CATEGORIES

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _armed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_ALLOW_FAILPOINTS", "1")
    monkeypatch.setattr("worker.conductor.storing.PAUSE_SECONDS", 0.01)
    db.reset()
    failpoints.reset()


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("store.write=full", "store_refused"),
        ("store.publish=refused", "store_refused"),
        ("store.write=away", "store_unavailable"),
        ("job.write=full", "disk_full"),
    ],
)
def test_a_failing_store_requeues_then_fails_and_publishes_nothing(
    house: h.House, monkeypatch: pytest.MonkeyPatch, rule: str, code: str
) -> None:
    monkeypatch.setenv("EXPUNGE_FAILPOINTS", rule)
    room = h.make_room(max_attempts=2)
    room.store_patience_seconds = 0.05
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "queued"
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "failed"
    error = h.request(request_id).error
    assert error is not None
    assert (error["code"], error["category"]) == ("attempts_exhausted", "infrastructure")
    assert [(a.detail or {})["code"] for a in h.attempts(request_id)] == [code, code]
    assert CATEGORIES[code] == "infrastructure"
    assert h.request(request_id).checkpoint_id is None
    assert list(room.store.objects()) == []
    assert "model.published" not in h.actions(request_id)


def test_a_store_that_comes_back_in_time_costs_no_attempt(house: h.House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_FAILPOINTS", "store.write=away*3")
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    assert h.request(request_id).attempts_charged == 1


def test_what_will_be_stored_is_claimed_before(house: h.House, monkeypatch: pytest.MonkeyPatch) -> None:
    room = h.make_room()
    put, claimed = room.store.put, []

    def watched(path: object) -> object:
        entry = put(path)  # type: ignore[arg-type]
        (attempt,) = h.attempts(request_id)
        claimed.append(entry.sha256 in (attempt.detail or {}).get(garbage.STORED, ()))
        return entry

    monkeypatch.setattr(room.store, "put", watched)
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    assert claimed
    assert all(claimed)
