"""Workers that die, freeze, drain, or are killed by what they run."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time

import psutil
import pytest

from service import db
from service.requests import endings, leases
from service.requests.endings import Problem
from service.requests.leases import Lease, LeaseLost, Progress
from tests.faults.scenarios import Size, scenario
from tests.faults.stack import MAX_ATTEMPTS, PATIENCE_SECONDS, Stack
from tests.worker.conductor import house as h

MOMENTS = ("job.write", "store.write", "publish.commit", "publish.committed")
"""Failpoints: between claim and engine, after the engine, before the publication's commit and after it."""
STEPS, INTERVAL = 20, 5
SOON_SECONDS = 60.0


@scenario(2)
def worker_killed_at_any_moment(stack: Stack, rng: random.Random, size: Size) -> None:
    """Published once each, resumed no further back than one checkpoint interval (stories 3 and 7)."""
    for n in range(size.moments):
        point = MOMENTS[n // 2 % len(MOMENTS)] if n % 2 == 0 else ""
        if point:
            stack.arm(f"{point}=die")
            h.until(lambda: not stack.armed(), PATIENCE_SECONDS)
        request_id = stack.ask(stack.fresh_house(), seconds=2, steps=STEPS)
        if not point:
            h.until(lambda r=request_id: stack.journal(r), PATIENCE_SECONDS)
            time.sleep(rng.uniform(0, 2))
            with contextlib.suppress(AssertionError, AttributeError, ProcessLookupError):
                if (owner := h.request(request_id).lease_owner) is not None:
                    os.kill(int(owner.split("|")[1]), signal.SIGKILL)
        h.until(lambda r=request_id: h.request(r).status == "succeeded", PATIENCE_SECONDS)
        if point and stack.embedded:  # of two workers the other one may have taken it
            assert len(h.attempts(request_id)) == (1 if point == "publish.committed" else 2), f"nobody died at {point}"
        stack.arm("")  # the worker that took it may live on
        resumes_where_it_was(stack, request_id)


def resumes_where_it_was(stack: Stack, request_id: str) -> None:
    """No step is done twice but those since the last checkpoint, and none is left out."""
    notes = stack.journal(request_id)
    for before, after in itertools.pairwise(notes):
        if after["fence"] != before["fence"]:
            assert before["step"] - INTERVAL <= after["resumed"] <= before["step"], (before, after)
    assert {n["step"] for n in notes} == set(range(1, STEPS + 1))


@scenario(7)
def frozen_past_its_lease(stack: Stack, rng: random.Random, size: Size) -> None:
    """A worker that was only asleep changes nothing when it wakes (story 4)."""
    request_id = stack.ask(stack.fresh_house(), seconds=3, steps=STEPS)
    h.until(lambda: stack.journal(request_id), PATIENCE_SECONDS)
    held = h.request(request_id)
    stale = Lease(request_id, held.fence, str(held.lease_owner))
    pid = stack.holder(request_id)
    os.kill(pid, signal.SIGSTOP)
    try:
        if stack.embedded:
            time.sleep(2 * stack.lease_seconds)  # nobody else is there, so it wakes up still holding
        else:
            h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    ends = [a.outcome for a in h.attempts(request_id)]
    if stack.embedded:
        assert ends == ["succeeded"]
        return
    assert ends == ["lost", "succeeded"]
    before = h.request(request_id).version, h.events(request_id), h.actions(request_id)
    h.until(lambda: stack.logs(f'"lease.gone", "request": "{request_id}", "fence": {stale.fence}}}'), PATIENCE_SECONDS)
    h.until(lambda: not stack.engines(request_id), SOON_SECONDS)
    with pytest.raises(LeaseLost), db.transaction() as session:
        leases.renew(session, stale, lease_seconds=60, progress=Progress(19, 20, "iteration"))
    with pytest.raises(LeaseLost), db.transaction() as session:
        endings.fail(session, stale, Problem("worker_error", "service", "stale"))
    time.sleep(2)
    after = h.request(request_id).version, h.events(request_id), h.actions(request_id)
    assert after[:2] == before[:2]
    assert set(after[2]) - set(before[2]) <= {"caches.purged"}  # of the winner, right after its publication


@scenario(10)
def drained_and_rolled(stack: Stack, rng: random.Random, size: Size) -> None:
    """SIGTERM leaves a checkpoint and charges nothing; three rolling restarts publish everything."""
    request_id = stack.ask(stack.fresh_house(), seconds=6, steps=STEPS)
    behind = [stack.ask(stack.house(k % 2), k % 9) for k in range(size.behind)]
    h.until(lambda: len(stack.journal(request_id)) > INTERVAL, PATIENCE_SECONDS)
    pid = stack.holder(request_id)
    os.kill(pid, signal.SIGTERM)
    h.until(lambda: h.attempts(request_id)[0].outcome == "drained", PATIENCE_SECONDS)
    h.until(lambda: not h.is_running(pid), PATIENCE_SECONDS)
    for _ in range(3 if size.behind > 5 else 1):
        for which in range(len(stack.pids("worker"))):
            old = stack.kill("worker", which, signal.SIGTERM)
            h.until(lambda old=old: old is None or not h.is_running(old), PATIENCE_SECONDS)
            h.until(lambda: stack.pids("worker"), PATIENCE_SECONDS)
    h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    resumes_where_it_was(stack, request_id)
    stack.drain()
    ends = {a.outcome for r in (request_id, *behind) for a in h.attempts(r)}
    assert ends <= {"drained", "succeeded"}
    assert {h.request(r).attempts_charged for r in (request_id, *behind)} == {1}


@scenario(13)
def poisoned(stack: Stack, rng: random.Random, size: Size) -> None:
    """What kills its worker each time fails after exactly the attempts it has, and keeps nobody else from working (story 5)."""
    poison = stack.ask(stack.fresh_house(), unlearn="poison")
    greedy = stack.ask(stack.fresh_house(), unlearn="oom")
    good = [stack.ask(stack.house(2 + k % 2), k % 9) for k in range(size.behind)]
    stack.drain()
    for request_id, last in ((poison, "worker_lost"), (greedy, "out_of_memory")):
        row = h.request(request_id)
        assert (row.status, row.attempts_charged) == ("failed", MAX_ATTEMPTS)
        assert row.error is not None
        assert (row.error["code"], row.error["last_code"]) == ("attempts_exhausted", last)
        starts = [a.started_at for a in h.attempts(request_id)]
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(starts)]
        assert all(gap >= 2.0 ** (n + 1) for n, gap in enumerate(gaps)), gaps  # no hot loop
    assert {h.request(r).status for r in good} == {"succeeded"}


def rank_pids(stack: Stack, request_id: str) -> set[int]:
    """Ranks noted in the journal that live."""
    return {n["pid"] for n in stack.journal(request_id) if h.is_running(n["pid"])}


def agent_of(pid: int) -> int:
    return psutil.Process(pid).ppid()
