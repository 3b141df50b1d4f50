"""A database that is away, locked or raced for; a disk that is full."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.client import ApiError
from tests.faults.scenarios import Size, scenario
from tests.faults.stack import PATIENCE_SECONDS, ROOT, Stack
from tests.worker.conductor import house as h

OUTAGE_LEASES = 3.0


@contextmanager
def locked(stack: Stack) -> Iterator[None]:
    """SQLite's write lock, held by somebody else."""
    connection = sqlite3.connect(Path(stack.environment["EXPUNGE_DATA_DIR"]) / "expunge.db", isolation_level=None, timeout=60)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def away(stack: Stack) -> Iterator[None]:
    """No database: locked for ever, or killed."""
    if stack.embedded:
        with locked(stack):
            yield
        return
    stack.servers.postgres.kill()
    try:
        yield
    finally:
        stack.servers.postgres.start()


@scenario(5)
def database_away_under_a_run(stack: Stack, rng: random.Random, size: Size) -> None:
    """Three leases long: nobody takes the run away, and people are told to come again."""
    outage = OUTAGE_LEASES * stack.lease_seconds
    request_id = stack.ask(stack.fresh_house(), seconds=outage + 10, steps=40)
    h.until(lambda: stack.journal(request_id), PATIENCE_SECONDS)
    house = stack.fresh_house()
    body = {"model_id": house.model_id, "forget": {"classes": ["1"]}}
    with away(stack):
        began = time.monotonic()
        with stack.client() as client, pytest.raises(ApiError) as refused:
            client.post("/unlearn-requests", body)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        time.sleep(max(0.0, outage - (time.monotonic() - began)))
    h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    assert [a.outcome for a in h.attempts(request_id)] == ["succeeded"], "a healthy run was taken away"


@scenario(14, "embedded")
def two_on_one_folder(stack: Stack, rng: random.Random, size: Size) -> None:
    """A second `expunge up` refuses in one sentence; a locked database costs patience, and corrupts nothing."""
    second = subprocess.run(
        [sys.executable, "-m", "tests.faults.process", "up"], cwd=ROOT, env=stack.environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert second.returncode == 2, second.stderr
    assert "another `expunge up` is running" in " ".join(second.stderr.split())
    request_id = stack.ask(stack.fresh_house(), seconds=3, steps=20)
    h.until(lambda: stack.journal(request_id), PATIENCE_SECONDS)
    with locked(stack):
        time.sleep(20 if size.kills > 1 else 3)
    h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    assert [a.outcome for a in h.attempts(request_id)] == ["succeeded"]
    connection = sqlite3.connect(Path(stack.environment["EXPUNGE_DATA_DIR"]) / "expunge.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@scenario(14, "production")
def two_reapers(stack: Stack, rng: random.Random, size: Size) -> None:
    """Every sweeper sees the dead worker; the run is taken back once."""
    for _ in range(3 if size.kills > 1 else 1):
        request_id = stack.ask(stack.fresh_house(), seconds=4, steps=20)
        h.until(lambda r=request_id: stack.journal(r), PATIENCE_SECONDS)
        pid = stack.holder(request_id)
        h.until(lambda p=pid: p in stack.pids("worker"), 60)
        stack.kill("worker", stack.pids("worker").index(pid))
        h.until(lambda r=request_id: h.request(r).status == "succeeded", PATIENCE_SECONDS)
        assert [a.outcome for a in h.attempts(request_id)] == ["lost", "succeeded"]
        assert Counter(h.actions(request_id))["run.lost"] == 1


@scenario(14)
def disk_full(stack: Stack, rng: random.Random, size: Size) -> None:
    """In the job's folder, then in the store: the attempt says so, and the next one succeeds."""
    for point, code in (("job.write=full*1", "disk_full"), ("store.write=full*1", "store_unavailable")):
        stack.arm(point)
        h.until(lambda: not stack.armed(), PATIENCE_SECONDS)
        for _ in range(12):  # with two workers the other one may be quicker
            request_id = stack.ask(stack.fresh_house())
            h.until(lambda r=request_id: h.request(r).status == "succeeded", PATIENCE_SECONDS)
            first = h.attempts(request_id)[0]
            if first.outcome == "failed":
                break
        assert first.outcome == "failed", "no worker met the failpoint"
        assert first.detail is not None
        assert first.detail["code"] in (code, "store_refused"), first.detail
    stack.arm("")
