"""Who may work on a request, and what a worker that lost it can still change: nothing."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from service import db
from service.requests import endings, leases
from service.requests.endings import Problem
from service.requests.leases import Lease, LeaseLost, Progress
from service.tables import LedgerEntry, Model, UnlearnRequest
from tests.worker.conductor import house as h

pytestmark = pytest.mark.usefixtures("database")
BOOM = Problem("engine_died", "engine", "it fell")


@pytest.fixture
def house(tmp_path: Path) -> h.House:
    return h.furnish(tmp_path)


def claim(request_id: str, owner: str = "w1") -> Lease | None:
    with db.transaction() as session:
        return leases.claim(session, request_id, owner=owner, lease_seconds=60)


def held(request_id: str, owner: str = "w1") -> Lease:
    lease = claim(request_id, owner)
    assert lease is not None
    return lease


def test_of_ten_threads_that_claim_at_once_one_wins(house: h.House) -> None:
    request_id, ready = h.ask(house), threading.Barrier(10)

    def attempt(number: int) -> Lease | None:
        ready.wait()
        return claim(request_id, f"w{number}")

    with ThreadPoolExecutor(10) as pool:
        won = [lease for lease in pool.map(attempt, range(10)) if lease]
    assert len(won) == 1
    row = h.request(request_id)
    assert (row.status, row.phase, row.fence, row.attempts_charged, row.version) == ("running", "staging", 1, 1, 2)
    assert (row.lease_owner, row.base_version_id) == (won[0].owner, house.version_id)
    assert [a.worker for a in h.attempts(request_id)] == [won[0].owner]
    assert h.actions(request_id) == ["run.started"]


def test_of_two_requests_on_one_model_the_older_runs_first_and_alone(house: h.House) -> None:
    first, second = h.ask(house, 1), h.ask(house, 2)
    assert claim(second) is None
    lease = held(first)
    assert claim(second) is None
    with db.transaction() as session:
        endings.fail(session, lease, BOOM)
    assert claim(second) is not None


def test_an_older_request_that_rests_still_comes_first(house: h.House) -> None:
    first, second = h.ask(house, 1), h.ask(house, 2)
    with db.transaction() as session:
        session.get_one(UnlearnRequest, first).not_before = db.now(session) + timedelta(hours=1)
    assert claim(first) is None
    assert claim(second) is None


def test_two_snapshots_of_one_model_meet_at_the_unique_index(house: h.House) -> None:
    """What PostgreSQL allows: both claims saw no other; here the second's condition is made to lie."""
    first, second = h.ask(house, 1), h.ask(house, 2)
    held(first)
    with db.transaction() as session:
        original, leases.claimable = leases.claimable, lambda at: UnlearnRequest.status == "queued"  # type: ignore[assignment]
        try:
            assert leases.claim(session, second, owner="w2", lease_seconds=60) is None
        finally:
            leases.claimable = original
    assert h.request(second).status == "queued"


@pytest.mark.parametrize("stranger", [Lease("", 2, "w1"), Lease("", 1, "w2"), Lease("", 0, "w1")])
def test_only_the_holder_under_its_own_fence_can_write(house: h.House, stranger: Lease) -> None:
    request_id = h.ask(house)
    held(request_id)
    before, ledger = h.request(request_id), h.actions(request_id)
    wrong = Lease(request_id, stranger.fence, stranger.owner)
    writes = [
        lambda s: leases.renew(s, wrong, lease_seconds=60),
        lambda s: leases.asked(s, wrong),
        lambda s: endings.fail(s, wrong, BOOM),
        lambda s: endings.retry(s, wrong, BOOM, max_attempts=3),
        lambda s: endings.give_back(s, wrong, reason="x"),
        lambda s: endings.cancelled(s, wrong),
        lambda s: leases.keep_report(
            s, wrong, report={"verdict": "PASS"}, report_sha256="0" * 64, evidence=[], verification_seed=1
        ),
    ]
    for write in writes:
        with pytest.raises(LeaseLost), db.transaction() as session:
            write(session)
    after = h.request(request_id)
    assert (after.version, after.lease_expires_at, after.status) == (before.version, before.lease_expires_at, "running")
    assert h.actions(request_id) == ledger


def test_renewing_extends_the_lease_by_the_databases_clock_and_hears_of_cancellation(house: h.House) -> None:
    request_id = h.ask(house)
    lease = held(request_id)
    with db.transaction() as session:
        assert leases.renew(session, lease, lease_seconds=600) is None
        left = session.get_one(UnlearnRequest, request_id).lease_expires_at - db.now(session)
    assert timedelta(seconds=590) < left <= timedelta(seconds=600)
    h.withdraw(request_id)
    with db.transaction() as session:
        assert leases.renew(session, lease, lease_seconds=600) == "cancel"


def test_progress_raises_the_version_and_followers_hear_of_whole_percents(house: h.House) -> None:
    request_id = h.ask(house)
    lease = held(request_id)

    def renew(completed: int) -> None:
        with db.transaction() as session:
            leases.renew(session, lease, lease_seconds=60, progress=Progress(completed, 1000, "iteration", 5.0))

    for completed in (0, 1, 9, 10, 10):  # 0 %, 0 %, 0 %, 1 %, the same again
        renew(completed)
    row = h.request(request_id)
    assert (row.progress_completed, row.progress_total, row.progress_unit) == (10, 1000, "iteration")
    assert row.version == 2 + 4  # claimed, then four changes
    assert h.events(request_id) == ["started", "progress", "progress"]
    with db.transaction() as session:
        leases.renew(session, lease, lease_seconds=60, phase="unlearning")
    row = h.request(request_id)
    assert (row.phase, row.progress_completed) == ("unlearning", None)


def test_a_drained_attempt_is_not_charged_and_a_dead_one_is(house: h.House) -> None:
    request_id = h.ask(house)
    lease = held(request_id)
    with db.transaction() as session:
        assert endings.give_back(session, lease, reason="deploy") == "queued"
    assert h.request(request_id).attempts_charged == 0
    lease = held(request_id)  # at once: it does not rest
    with db.transaction() as session:
        assert endings.retry(session, lease, BOOM, max_attempts=2) == "queued"
    row = h.request(request_id)
    with db.reading() as session:
        rest = row.not_before - db.now(session)
    assert row.attempts_charged == 1
    assert timedelta(seconds=1) < rest <= timedelta(seconds=2)
    assert claim(request_id) is None
    h.make_due(request_id)
    lease = held(request_id)
    with db.transaction() as session:
        assert endings.retry(session, lease, BOOM, max_attempts=2) == "failed"
    error = h.request(request_id).error
    assert error is not None
    assert (error["code"], error["attempt"], error["last_code"]) == ("attempts_exhausted", 2, "engine_died")
    assert [a.outcome for a in h.attempts(request_id)] == ["drained", "failed", "failed"]


@pytest.mark.parametrize("end", ["fail", "retry", "give_back", "cancelled"])
def test_whatever_ends_a_request_that_somebody_cancelled_it_ends_cancelled(house: h.House, end: str) -> None:
    request_id = h.ask(house)
    lease = held(request_id)
    h.withdraw(request_id)
    with db.transaction() as session:
        ended = {
            "fail": lambda: endings.fail(session, lease, BOOM),
            "retry": lambda: endings.retry(session, lease, BOOM, max_attempts=3),
            "give_back": lambda: endings.give_back(session, lease, reason="x"),
            "cancelled": lambda: endings.cancelled(session, lease),
        }[end]()
    assert ended == "cancelled"
    row = h.request(request_id)
    assert (row.status, row.error, row.lease_owner) == ("cancelled", None, None)
    assert row.finished_at is not None
    assert h.actions(request_id) == ["run.started", "run.stopped", "unlearning.request.closed"]
    assert h.events(request_id)[-1] == "cancelled"


def reap(request_id: str, fence: int = 1, *, most: int = 3, only_expired: bool = True) -> str | None:
    with db.transaction() as session:
        return endings.reap(session, request_id, fence, max_attempts=most, reason="silent", only_expired=only_expired)


def test_a_live_lease_is_not_reaped_and_an_expired_one_is_once(house: h.House) -> None:
    request_id = h.ask(house)
    lease = held(request_id)
    assert reap(request_id) is None
    h.expire_lease(request_id)
    assert reap(request_id, fence=0) is None
    assert reap(request_id) == "queued"
    assert reap(request_id) is None
    row = h.request(request_id)
    assert (row.status, row.fence, row.attempts_charged, row.lease_owner) == ("queued", 2, 1, None)
    (attempt,) = h.attempts(request_id)
    assert (attempt.outcome, attempt.detail["message"]) == ("lost", "silent")  # type: ignore[index]
    assert h.actions(request_id) == ["run.started", "run.lost"]
    with pytest.raises(LeaseLost), db.transaction() as session:
        leases.renew(session, lease, lease_seconds=60)


def test_a_lost_lease_ends_the_request_when_it_was_cancelled_or_out_of_attempts(house: h.House) -> None:
    first, second = h.ask(house, 1), h.ask(house, 2)
    held(first)
    h.withdraw(first)
    assert reap(first, only_expired=False) == "cancelled"
    held(second)
    assert reap(second, most=1, only_expired=False) == "failed"
    assert h.request(second).error["code"] == "attempts_exhausted"  # type: ignore[index]
    for request_id in (first, second):
        assert h.actions(request_id)[-2:] == ["run.lost", "unlearning.request.closed"]


def test_the_ledger_names_a_worker_without_its_machine(house: h.House) -> None:
    request_id = h.ask(house)
    held(request_id, owner="db7.example.org|4711|99|boot")
    with db.reading() as session:
        leaf = session.execute(select(LedgerEntry.leaf).where(LedgerEntry.request_id == request_id)).scalar_one()
        assert session.get_one(Model, house.model_id).current_version == 1
    assert b"example.org" not in leaf
    assert json.loads(leaf)["actor"]["kind"] == "worker"
