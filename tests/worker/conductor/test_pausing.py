"""A pause frees the GPU, loses nothing, and is charged to nobody; what a worker that comes free takes next."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from service import db
from service.requests import changes, endings, leases
from service.requests import service as requests
from service.tables import UnlearnRequest
from tests.worker.conductor import house as h
from worker.conductor import pipeline, tasks, workspace
from worker.conductor.heart import Heart

pytestmark = pytest.mark.usefixtures("database")


def test_pausing_frees_the_gpu_and_resuming_goes_on_from_the_steps(house: h.House, background: list[threading.Thread]) -> None:
    room = h.make_room()
    request_id, behind = h.ask(house, unlearn="long_once"), h.ask(house, 7)
    outcome, pids = h.start(request_id, room, background)
    assert room.request_id == request_id
    with db.transaction() as session:
        assert changes.pause(session, request_id).status == "pausing"
    h.until(lambda: outcome)
    assert outcome == ["paused"]
    assert [h.is_running(pid) for pid in pids] == [False, False]
    row = h.request(request_id)
    assert (row.status, row.attempts_charged, row.lease_owner, room.request_id) == ("paused", 0, None, None)
    assert h.attempts(request_id)[0].outcome == "paused"
    assert h.actions(request_id)[-3:] == ["unlearning.request.paused", "run.stopped", "unlearning.request.paused"]
    assert h.events(request_id)[-1] == "paused"
    workspace.sweep(room.settings, lambda _ids: {request_id: ("paused", 1)})
    (left,) = (room.settings.jobs_dir / request_id).iterdir()
    assert [p.name for p in left.iterdir()] == ["steps"]
    assert pipeline.run_next(room) is None  # neither the paused one nor what keeps its place behind it
    assert h.request(behind).status == "queued"
    with db.transaction() as session:
        changes.resume(session, room.settings, request_id)
    assert pipeline.run_next(room) == "succeeded"  # it would be stopped again did it not go on from its steps
    assert h.attempts(request_id)[1].outcome == "succeeded"


@pytest.mark.parametrize("first", ["pause", "cancel"])
def test_of_a_pause_and_a_cancellation_the_cancellation_wins(
    house: h.House, background: list[threading.Thread], first: str
) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="long_once")
    outcome, pids = h.start(request_id, room, background)
    if first == "pause":
        with db.transaction() as session:
            changes.pause(session, request_id)
    with db.transaction() as session:  # it may be paused by now, and then it is cancelled at once
        requests.cancel(session, request_id)
    h.until(lambda: outcome)
    assert h.request(request_id).status == "cancelled"
    assert [h.is_running(pid) for pid in pids] == [False, False]


def test_a_pause_that_comes_when_the_result_is_verified_lets_it_be_published(
    house: h.House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, request_id = h.make_room(), h.ask(house)
    certify = pipeline.certifying.certify

    def late(heart: Heart, *args: Any) -> Any:
        with db.transaction() as session:
            changes.pause(session, request_id)
        h.until(heart.pause.is_set)
        return certify(heart, *args)

    monkeypatch.setattr(pipeline.certifying, "certify", late)
    assert pipeline.run(request_id, room) == "succeeded"


def test_a_lost_worker_leaves_a_pausing_request_paused_and_a_spent_one_failed(house: h.House) -> None:
    for most, expected in ((2, "paused"), (1, "failed")):
        request_id = h.ask(house, 3 if most == 2 else 4)
        with db.transaction() as session:
            assert leases.claim(session, request_id, owner="w", lease_seconds=60)
        with db.transaction() as session:
            changes.pause(session, request_id)
        with db.transaction() as session:
            left = endings.reap(session, request_id, 1, max_attempts=most, reason="silent", only_expired=False)
        assert (left, h.request(request_id).status) == (expected, expected)
        with db.transaction() as session:
            if expected == "paused":
                requests.cancel(session, request_id)


def test_a_bell_is_answered_with_the_best_request_not_with_its_own(house: h.House, tmp_path: Path) -> None:
    room = h.make_room()
    rung_for, better = h.ask(house), h.ask(h.furnish(tmp_path / "other"))
    with db.transaction() as session:
        session.get_one(UnlearnRequest, better).priority = "urgent"
    tasks.answer(rung_for, room)
    assert (h.request(better).status, h.request(rung_for).status) == ("succeeded", "queued")
