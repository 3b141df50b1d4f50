"""`expunge up`: one family, one data directory; children come back, and none outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service import supervisor
from service.config import Settings
from service.processes import PARENT
from service.supervisor import AlreadyRunning, Child, sole_owner

ROOT = Path(__file__).resolve().parents[2]


def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_data_directory_has_one_owner(tmp_path: Path) -> None:
    with sole_owner(tmp_path / "data"), pytest.raises(AlreadyRunning, match="another"), sole_owner(tmp_path / "data"):
        pass
    with sole_owner(tmp_path / "data"):
        pass


def test_a_child_that_dies_at_once_is_started_ever_more_slowly() -> None:
    child = Child("x", [sys.executable, "-c", "pass"])
    pauses = []
    for _ in range(3):
        child.start(os.environ, None)
        assert child.process is not None
        child.process.wait()
        child.check()
        pauses.append(child.pause)
    assert pauses == [0.4, 0.8, 1.6]
    for _ in range(10):
        child.pause = min(child.pause * 2, supervisor.LONGEST_PAUSE)
    assert child.pause == supervisor.LONGEST_PAUSE


def test_the_children_get_the_settings_that_were_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_LEASE_SECONDS", "33")
    environment = supervisor.environment(Settings(data_dir=tmp_path, port=1234, ranks=2))
    assert environment["EXPUNGE_PORT"] == "1234"
    assert environment["EXPUNGE_RANKS"] == "2"
    assert environment["EXPUNGE_LEASE_SECONDS"] == "33"  # an operator's word counts
    assert environment["EXPUNGE_RENEW_SECONDS"] == "1"
    assert environment[PARENT] == str(os.getpid())


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_")}
    environment |= {"EXPUNGE_DATA_DIR": str(tmp_path / "data"), "EXPUNGE_PORT": "0"}
    command = [sys.executable, "-m", "service.cli", "up", "--log-file", str(tmp_path / "log")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        eventually(lambda: len(psutil.Process(process.pid).children()) == 3)
        yield process
    finally:
        process.kill()  # its children go with it
        process.wait()


def family(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The children by name; a child that has not exec'd yet, or has just died, is left out."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words:
            found["worker" if "worker.conductor" in words else words[-1]] = child
    return found


def test_the_family_comes_back_and_goes_together(up: subprocess.Popen[bytes]) -> None:
    eventually(lambda: set(family(up)) == {"signer", "serve", "worker"})
    first = family(up)["signer"]
    first.kill()
    eventually(lambda: family(up).get("signer", first).pid != first.pid)
    everyone = list(family(up).values())
    up.send_signal(signal.SIGTERM)
    assert up.wait(40) == 0
    assert not [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_no_child_outlives_a_supervisor_that_is_killed(up: subprocess.Popen[bytes]) -> None:
    eventually(lambda: set(family(up)) == {"signer", "serve", "worker"})
    time.sleep(1.5)  # let each of them say that it wants to die with its supervisor
    everyone = list(family(up).values())
    up.kill()
    up.wait()
    eventually(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everyone))
