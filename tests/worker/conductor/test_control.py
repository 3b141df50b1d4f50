"""What the sweeper rings for, what it takes back, and what it leaves alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from service import db, outbox
from service.audit import ledger, retention
from service.audit.leaves import LOCAL, RequestClosed
from service.outbox import Due
from service.requests import leases
from service.storage import StoreRefused
from service.tables import LedgerPrivate, UnlearnRequest
from service.workers import repository as workers
from tests.worker.conductor import house as h
from worker.conductor import app as bell
from worker.conductor import identity, pipeline, processes
from worker.conductor.control import RING_AGAIN_SECONDS, SLOWEST_RING_SECONDS, Bells, Sweeper

ELSEWHERE = "another-host|1|1|another-boot"


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(bell, "ring", lambda _app, request_id, _class: heard.append(request_id))
    return heard


@pytest.fixture
def sweeper(database: str) -> Sweeper:
    room = h.make_room(lease_seconds=1.0, renew_seconds=0.1)
    return Sweeper(bell.make_app(room.settings), room)


def claimed_by(owner: str, tmp_path: Path) -> str:
    request_id = h.ask(h.furnish(tmp_path))
    with db.transaction() as session:
        assert leases.claim(session, request_id, owner=owner, lease_seconds=60)
    return request_id


def dead_owner() -> str:
    """The owner's name of a process of this host that has ended."""
    code = "from worker.conductor import identity; print(identity.owner())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_one_bell_a_free_slot_and_none_while_busy_or_draining(sweeper: Sweeper, rung: list[str], tmp_path: Path) -> None:
    waiting = [h.ask(h.furnish(tmp_path / str(k))) for k in range(3)]
    sweeper.room.busy.set()
    sweeper.sweep()
    sweeper.room.busy.clear()
    sweeper.room.draining.set()
    sweeper.sweep()
    assert rung == []
    sweeper.room.draining.clear()
    sweeper.sweep()
    sweeper.sweep()  # at once again: the bell has been rung
    assert rung == [waiting[0]]


def test_an_unanswered_bell_is_rung_again_ever_more_slowly() -> None:
    bells, wait = Bells(), Due("ureq_1", 0)
    rings, now = [], 0.0
    while now < 200:
        if bells.choose([wait], now):
            bells.note(wait, now)
            rings.append(now)
        now += 1.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(rings)]
    assert gaps == [RING_AGAIN_SECONDS, 10.0, 20.0, 40.0, SLOWEST_RING_SECONDS, SLOWEST_RING_SECONDS]
    assert bells.choose([Due("ureq_1", 2)], now) == [Due("ureq_1", 2)]  # it was claimed and came back: a new wait
    assert len(bells.rung) == 0


def test_a_broker_that_is_away_spoils_a_ring_and_nothing_else(
    sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*_: object) -> None:
        raise BrokerAway("connection refused")

    request_id = h.ask(h.furnish(tmp_path))
    monkeypatch.setattr(bell, "ring", away)
    sweeper.sweep()
    assert sweeper.healthy_since is not None
    heard: list[str] = []
    monkeypatch.setattr(bell, "ring", lambda _app, ring_id, _class: heard.append(ring_id))
    sweeper.sweep()
    assert heard == [request_id]  # the failed ring does not count


def test_an_expired_lease_is_judged_only_after_a_lease_of_unbroken_health(
    sweeper: Sweeper, rung: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request_id = claimed_by(ELSEWHERE, tmp_path)
    h.expire_lease(request_id)
    awake(sweeper, 0.6)
    assert h.request(request_id).status == "running"
    with monkeypatch.context() as outage:
        outage.setattr(outbox, "held", lambda _session: (_ for _ in ()).throw(OperationalError("x", {}, Exception("away"))))
        sweeper.sweep()
    awake(sweeper, 0.5)  # 1.1 s since the first look, but none since the outage
    assert h.request(request_id).status == "running"
    awake_until(sweeper, lambda: h.request(request_id).status == "queued")
    assert h.attempts(request_id)[0].outcome == "lost"


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_a_sweeper_that_slept_judges_nobody_for_another_lease(
    sweeper: Sweeper, rung: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: str
) -> None:
    """With its process, or with its machine, whose monotonic clock may have stood still: the holder may have slept with it."""
    awake_until(sweeper, sweeper._may_judge)
    request_id = claimed_by(ELSEWHERE, tmp_path)
    h.expire_lease(request_id)
    real = getattr(time, clock)
    monkeypatch.setattr(time, clock, lambda: real() + 3600)
    sweeper.sweep()
    assert h.request(request_id).status == "running"
    awake_until(sweeper, lambda: h.request(request_id).status == "queued")


def awake(sweeper: Sweeper, seconds: float) -> None:
    """Sweeps for so long, without a pause that it could take for sleep."""
    until = time.monotonic() + seconds
    awake_until(sweeper, lambda: time.monotonic() >= until)


def awake_until(sweeper: Sweeper, what: Callable[[], bool]) -> None:
    def swept() -> bool:
        sweeper.sweep()
        return what()

    h.until(swept, 20.0)


def test_a_dead_process_of_this_host_loses_its_lease_at_once(sweeper: Sweeper, rung: list[str], tmp_path: Path) -> None:
    request_id = claimed_by(dead_owner(), tmp_path)
    sweeper.sweep()
    assert h.request(request_id).status == "queued"
    assert "gone" in h.attempts(request_id)[0].detail["message"]  # type: ignore[index]


def test_a_cancelled_request_of_a_dead_worker_ends_cancelled(sweeper: Sweeper, rung: list[str], tmp_path: Path) -> None:
    request_id = claimed_by(dead_owner(), tmp_path)
    h.withdraw(request_id)
    sweeper.sweep()
    assert h.request(request_id).status == "cancelled"


def test_live_leases_are_left_alone(sweeper: Sweeper, rung: list[str], tmp_path: Path) -> None:
    elsewhere = claimed_by(ELSEWHERE, tmp_path / "a")
    sweeper.room.busy.set()
    ours = claimed_by(sweeper.room.owner, tmp_path / "b")
    sweeper.healthy_since = time.monotonic() - 3600
    sweeper.sweep()
    assert [h.request(r).status for r in (elsewhere, ours)] == ["running", "running"]
    sweeper.room.busy.clear()  # ours, but nobody is at it: the attempt ended while the database was away
    sweeper.sweep()
    assert [h.request(r).status for r in (elsewhere, ours)] == ["running", "queued"]


def test_an_attempt_whose_processes_survive_is_not_said_over_and_nothing_is_claimed_beside_them(
    sweeper: Sweeper, rung: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process stuck in the kernel: here one that SIGKILL is never sent to."""
    request_id, waiting = (h.ask(h.furnish(tmp_path / name)) for name in "ab")
    marks = {processes.JOB: request_id, processes.FENCE: "0"}
    with subprocess.Popen(["sleep", "600"], env=os.environ | marks) as stuck:
        try:
            with monkeypatch.context() as kernel:
                kernel.setattr(psutil.Process, "kill", lambda _process: None)
                kernel.setattr(processes, "DEATH_SECONDS", 0.1)
                assert pipeline.run(request_id, sweeper.room) == "lost"
            h.withdraw(request_id)
            h.expire_lease(request_id)
            sweeper.healthy_since = time.monotonic() - 3600
            sweeper.sweep()
            assert h.request(request_id).status == "cancelling"
            assert (rung, pipeline.run_next(sweeper.room)) == ([], None)
        finally:
            stuck.kill()
    sweeper.sweep()
    assert h.request(request_id).status == "cancelled"
    assert rung == [waiting]
    assert pipeline.run_next(sweeper.room) == "succeeded"


def test_directories_of_dead_attempts_are_cleared(sweeper: Sweeper, rung: list[str], tmp_path: Path) -> None:
    jobs = sweeper.room.settings.jobs_dir
    running, waiting = claimed_by(ELSEWHERE, tmp_path / "a"), claimed_by(dead_owner(), tmp_path / "b")
    over = h.ask(h.furnish(tmp_path / "c"))
    h.withdraw(over)
    for request_id in (running, waiting, over, "unknown"):
        for name in ("base/weights", "steps/step-1/state"):
            path = jobs / request_id / "1" / name
            path.parent.mkdir(parents=True)
            path.write_text("x")
    sweeper.sweep()
    left = sorted(p.relative_to(jobs).as_posix() for p in jobs.rglob("*") if p.is_file())
    expected = [f"{running}/1/base/weights", f"{running}/1/steps/step-1/state", f"{waiting}/1/steps/step-1/state"]
    assert left == sorted(expected)


def test_a_process_is_dead_only_when_this_host_can_know() -> None:
    assert identity.is_dead_here(dead_owner())
    assert not identity.is_dead_here(identity.owner())
    assert not identity.is_dead_here(ELSEWHERE)
    assert not identity.is_dead_here("")
    host, pid, _started, boot = identity.owner().split("|")
    assert identity.is_dead_here(f"{host}|{pid}|1|{boot}")  # the pid lives, but as another process


def test_private_data_that_are_over_are_shredded_once_an_hour(
    sweeper: Sweeper, rung: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a folder of keys that cannot be read leaves no request unattended."""
    request_id = h.ask(h.furnish(tmp_path))
    with db.transaction() as session:
        at = db.now(session)
        ledger.append(session, RequestClosed(status="failed"), actor=LOCAL, private={"reason": "x"})
    with db.transaction() as session:
        session.execute(update(LedgerPrivate).values(retain_until=at - timedelta(days=1)))
    sweeper.sweep()
    with db.reading() as session:
        assert session.scalars(select(LedgerPrivate.shredded_at)).one() is not None
    assert rung == [request_id]  # it is still to be carried out
    calls: list[int] = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise PermissionError("keks")

    monkeypatch.setattr(retention, "sweep", broken)
    sweeper.sweep()
    assert calls == []  # not again within the hour
    sweeper.retention_at = 0.0
    sweeper.sweep()
    assert calls == [1]
    assert sweeper.healthy_since is not None


def test_garbage_is_collected_at_once_and_then_every_few_hours(sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[timedelta] = []
    monkeypatch.setattr("worker.conductor.control.garbage.collect", lambda _store, older: asked.append(older))
    for _ in range(3):
        sweeper.sweep()
        assert sweeper.collecting is not None
        sweeper.collecting.join(10)
    assert asked == [timedelta(days=7)]


def test_a_store_that_cannot_be_listed_spoils_no_round(
    sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_store: object, older: timedelta) -> None:
        raise StoreRefused("listing: AccessDenied")

    monkeypatch.setattr("worker.conductor.control.garbage.collect", refuse)
    sweeper.sweep()
    assert sweeper.collecting is not None
    sweeper.collecting.join(10)
    assert "garbage.failed" in caplog.text
    assert sweeper.healthy_since is not None


def test_a_worker_says_that_it_is_there_until_it_leaves(sweeper: Sweeper, rung: list[str]) -> None:
    def said() -> list[tuple[Any, ...]]:
        with db.reading() as session:
            return [(w.id, w.gpu_classes, w.state, w.request_id) for w in workers.everyone(session)]

    me = leases.digest(sweeper.room.owner)
    sweeper.sweep()
    assert said() == [(me, ["default"], "active", None)]
    sweeper.room.draining.set()
    sweeper.room.request_id = "ureq_1"
    sweeper.touch_at = time.monotonic() + 60
    sweeper.sweep()
    assert said()[0][2:] == ("active", None)  # a write a second is enough
    sweeper.touch_at = 0.0
    sweeper.sweep()
    assert said() == [(me, ["default"], "draining", "ureq_1")]
    sweeper.leave()
    assert said() == []


def test_a_worker_rings_for_its_own_classes_on_their_queues(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[tuple[str, str]] = []
    monkeypatch.setattr(bell, "ring", lambda _app, request_id, gpu_class: heard.append((request_id, gpu_class)))
    room = h.make_room(gpu_class="h200x4,cpu", max_active_requests=1)
    sweeper = Sweeper(bell.make_app(room.settings), room)
    plain, big = (h.ask(h.furnish(tmp_path / name)) for name in "ab")
    with db.transaction() as session:
        session.get_one(UnlearnRequest, big).gpu_class = "cpu"
    sweeper.sweep()
    assert heard == [(big, "cpu")]
    assert bell.queue_of("cpu") == "expunge.cpu"
    with db.transaction() as session:
        assert leases.claim(session, plain, owner=ELSEWHERE, lease_seconds=60)
    sweeper.bells.rung.clear()
    sweeper.sweep()
    assert heard == [(big, "cpu")]  # as many run as may
