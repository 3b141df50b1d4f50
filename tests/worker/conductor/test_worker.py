"""The worker as a process: Celery, sweeper and engine, in both modes, told to stop and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import db, sockets
from service.audit.logsigner import open_folder
from service.certificates import signing
from service.config import get_settings
from service.storage import get_store
from tests.service.access.people import project
from tests.worker.conductor import house as h

ROOT = Path(__file__).resolve().parents[3]
Start = Callable[[], subprocess.Popen[bytes]]

embedded = pytest.mark.one_database


@pytest.fixture
def signer(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A signer at the socket, in this process."""
    monkeypatch.setenv("EXPUNGE_SIGNER_SOCKET", str(tmp_path / "s.sock"))
    db.reset()
    stop, ready, settings = threading.Event(), threading.Event(), get_settings()
    log = open_folder(settings.log_folder, settings.log_keys_file, settings.ledger_origin)
    honest = signing.KeySigner(signing.open_key(settings), get_store(settings), log.origin)
    desks = signing.desks(honest)
    asked = {"ready": ready.set, "stop": stop}
    thread = threading.Thread(target=sockets.serve, args=(settings.socket_path, desks), kwargs=asked)
    thread.start()
    assert ready.wait(5)
    yield
    stop.set()
    thread.join(5)


@pytest.fixture
def start(signer: None, tmp_path: Path) -> Iterator[Start]:
    """Starts workers; none of them is left when the test ends."""
    running: list[subprocess.Popen[bytes]] = []

    def launch() -> subprocess.Popen[bytes]:
        quick = {
            "EXPUNGE_LEASE_SECONDS": "10", "EXPUNGE_RENEW_SECONDS": "0.5", "EXPUNGE_SWEEP_SECONDS": "0.1",
            "EXPUNGE_STOP_GRACE_SECONDS": "5", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        with (tmp_path / f"worker-{len(running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.worker.conductor.fake_worker"], cwd=ROOT, env={**os.environ, **quick},
                stdout=log, stderr=log,
            )  # fmt: skip
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.wait()
    for log in sorted(tmp_path.glob("worker-*.log")):
        print(log.name, log.read_text()[-6000:])


def stop(worker: subprocess.Popen[bytes]) -> int:
    worker.send_signal(signal.SIGTERM)
    return worker.wait(20)


def status(request_id: str) -> str:
    return h.request(request_id).status


def engine_pids(request_id: str, fence: int = 1) -> list[int]:
    note = get_settings().jobs_dir / request_id / str(fence) / "rank.pid"
    return [int(pid) for pid in h.until(lambda: note.exists() and note.read_text().split(), 30)]


def test_one_worker_needs_no_server_and_two_share_postgresql_and_redis(
    database: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    embedded = database.startswith("sqlite")
    if not embedded:
        monkeypatch.setenv("EXPUNGE_BROKER_URL", request.getfixturevalue("redis_server"))
    house = h.furnish(tmp_path)
    first, second = h.ask(house, 1), h.ask(house, 2)
    workers = [start()] if embedded else [start(), start()]  # a bell may be heard twice, the row is taken once
    h.until(lambda: status(second) == "succeeded", 40)
    assert [a.outcome for r in (first, second) for a in h.attempts(r)] == ["succeeded", "succeeded"]
    assert [stop(worker) for worker in workers] == [0] * len(workers)


@embedded
def test_a_killed_worker_leaves_nothing_running_and_its_request_is_taken_up_again(start: Start, tmp_path: Path) -> None:
    request_id = h.ask(h.furnish(tmp_path), unlearn="long_once", rank_dies_with_agent=True)
    worker = start()
    pids = engine_pids(request_id)
    h.until(lambda: (get_settings().jobs_dir / request_id / "1" / "steps").exists())
    worker.kill()
    worker.wait()
    h.until(lambda: not any(h.is_running(pid) for pid in pids), 2)
    assert status(request_id) == "running"  # nobody was left to say otherwise
    other = start()
    h.until(lambda: status(request_id) == "succeeded", 30)  # before its lease of 10 s could run out and be judged
    assert [a.outcome for a in h.attempts(request_id)] == ["lost", "succeeded"]
    h.until(lambda: not (get_settings().jobs_dir / request_id).exists(), 2)  # cleared right after the publication
    assert stop(other) == 0


@embedded
def test_a_worker_killed_on_the_second_rung_is_followed_by_one_that_goes_on_there(start: Start, tmp_path: Path) -> None:
    house = h.furnish(tmp_path)
    second = {"unlearn": "long_once", "rank_dies_with_agent": True}
    request_id = h.ask_auto(house, ("sfron", {"verify": "fail"}), ("salun", second), ("retrain", {}))
    worker = start()
    h.until(lambda: len(h.attempts(request_id)) == 2, 90)  # a whole rung lies before
    engine_pids(request_id, fence=2)
    h.until(lambda: (get_settings().jobs_dir / request_id / "2" / "steps").exists())
    worker.kill()
    worker.wait()
    other = start()
    h.until(lambda: status(request_id) == "succeeded", 60)
    runs = [(a.outcome, a.detail["rung"], a.detail["method"]) for a in h.attempts(request_id)]
    assert runs == [("failed", 1, "sfron"), ("lost", 2, "salun"), ("succeeded", 2, "salun")]
    assert h.certificate(request_id)["attempts"]["number"] == 2
    assert stop(other) == 0


@embedded
def test_a_worker_told_to_stop_gives_its_request_back_and_exits_0(start: Start, tmp_path: Path) -> None:
    request_id = h.ask(h.furnish(tmp_path), unlearn="long_once")
    worker = start()
    pids = engine_pids(request_id)
    assert stop(worker) == 0
    assert not any(h.is_running(pid) for pid in pids)
    row = h.request(request_id)
    assert (row.status, row.attempts_charged) == ("queued", 0)
    assert h.attempts(request_id)[0].outcome == "drained"


def test_a_worker_refuses_a_database_that_is_not_migrated(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'empty.db'}"
    environment = {**os.environ, "EXPUNGE_DATABASE_URL": database, "EXPUNGE_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "worker.conductor"], cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"expunge migrate" in done.stderr


@embedded
def test_a_worker_refuses_to_write_in_another_project_s_name(database: str) -> None:
    project("b")
    done = subprocess.run(
        [sys.executable, "-m", "worker.conductor"],
        cwd=ROOT,
        env={**os.environ, "EXPUNGE_TENANT": "b"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert b"EXPUNGE_TENANT is b, and another project has this id" in done.stderr


def test_the_conductor_imports_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys, worker.conductor.__main__\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers', 'numpy') or m.startswith('worker.engine')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
