"""How many ranks, with which environment, and that nothing outlives what it should not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.config import Settings
from service.requests.leases import Lease
from tests.worker.conductor import house as h
from worker.conductor import launch, processes, supervise
from worker.contract import Event, JobDirectory

LEASE = Lease("ureq_test", 3, "w")


@pytest.mark.parametrize(
    ("asked", "worker", "gpus", "cpus", "ranks"),
    [
        (None, 0, 0, 2, 1),  # no GPU: one
        (2, 0, 0, 2, 2),  # asked for on the CPU
        (64, 0, 0, 2, 2),  # never more than processors
        (None, 0, 4, 8, 4),  # all GPUs
        (2, 0, 4, 8, 2),
        (None, 3, 4, 8, 3),
        (4, 3, 4, 8, 3),  # the worker's cap
        (8, 8, 4, 8, 4),  # two ranks cannot share a GPU
    ],
)
def test_ranks_are_what_was_asked_within_what_the_worker_has(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, worker: int, gpus: int, cpus: int, ranks: int
) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert launch.ranks_for(asked, Settings(ranks=worker)) == ranks


def test_only_listed_variables_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    ours = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "EXPUNGE_DATABASE_URL": "postgresql://u:p@h", "HF_TOKEN": "t"}
    came = launch.environment(ours, LEASE, ranks=2)
    assert set(came) & {"EXPUNGE_DATABASE_URL", "HF_TOKEN"} == set()
    assert (came["PATH"], came["CUDA_VISIBLE_DEVICES"], came["OMP_NUM_THREADS"]) == ("/bin", "0", "4")  # 8 / 2
    assert (came["EXPUNGE_JOB"], came["EXPUNGE_FENCE"]) == ("ureq_test", "3")


def test_the_agent_never_restarts_ranks_by_itself(tmp_path: Path) -> None:
    command = launch.torchrun("verify", JobDirectory(tmp_path), 4)
    text = " ".join(command)
    assert "--nproc-per-node 4 --max-restarts 0" in text
    assert text.endswith(f"-m worker.engine verify {tmp_path}")


def test_the_shim_starts_nothing_for_a_worker_that_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = [sys.executable, "-m", "worker.conductor.shim", "1", sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    assert subprocess.run(command, check=False, cwd=launch.PROJECT).returncode == 1
    assert not mark.exists()


@pytest.fixture
def sleeper() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_leftovers_of_earlier_fences_are_killed_and_others_are_not(sleeper: list[subprocess.Popen[bytes]]) -> None:
    def start(request_id: str, fence: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, processes.JOB: request_id, processes.FENCE: str(fence)}
        sleeper.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment))
        return sleeper[-1]

    older, same, stranger = start("ureq_test", 2), start("ureq_test", 3), start("ureq_other", 1)
    processes.kill_older("ureq_test", 3)
    assert not h.is_running(older.pid)
    assert h.is_running(same.pid)
    assert h.is_running(stranger.pid)


def test_events_are_read_as_they_are_written_and_nonsense_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = supervise.EventTail(path)
    assert tail.read() == []
    line = Event(at=1.0, kind="progress", phase="unlearning", completed=1, total=4, unit="iteration").model_dump_json()
    path.write_text(line[:10])
    assert tail.read() == []
    with path.open("a") as file:
        file.write(line[10:] + "\nnonsense\n" + line + "\n")
    assert [e.completed for e in tail.read()] == [1, 1]
    assert supervise.EventTail(path).read() == []  # the next stage starts where this one stopped


def test_the_log_tail_is_bounded_and_printable(tmp_path: Path) -> None:
    job = JobDirectory(tmp_path)
    (tmp_path / launch.LOG_NAME).write_bytes(b"x" * 100_000 + f"\n\x1b[31m{tmp_path}/base\xff".encode("latin-1"))
    tail = launch.log_tail(job)
    assert len(tail) <= launch.LOG_TAIL_BYTES
    assert "\x1b" not in tail
    assert "<job>/base" in tail
