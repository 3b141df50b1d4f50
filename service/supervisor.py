"""`expunge up`: the whole service on one host, no server to install. API, worker and signer are supervised children.

Each child is a process of its own for a reason: torch and a queue cannot share one, and neither may hold the signing key.
A child that dies is started again, ever more slowly; when the supervisor dies, so do they.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service import migrate
from service.config import Settings
from service.processes import PARENT

log = logging.getLogger("expunge.supervisor")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
HEALTHY_SECONDS = 30.0
"""A child that lived so long starts over with the shortest pause."""
POLL_SECONDS = 0.1
STOP_SECONDS = 30.0


class AlreadyRunning(Exception):
    """Another supervisor holds the data directory, or another process the port."""


@dataclass
class Child:
    """One supervised command."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    pause: float = FIRST_PAUSE
    started: float = 0.0
    again_at: float = 0.0
    restarts: int = field(default=-1)

    def start(self, environment: Mapping[str, str], output: int | None) -> None:
        self.process = subprocess.Popen(self.command, env=dict(environment), stdout=output, stderr=output)
        self.started = time.monotonic()
        self.restarts += 1
        log.info("child.started", extra={"child": self.name, "pid": self.process.pid, "restarts": self.restarts})

    def check(self) -> None:
        """Note an exit, and when to start again."""
        if self.process is None or self.process.poll() is None:
            return
        lived = time.monotonic() - self.started
        self.pause = FIRST_PAUSE if lived > HEALTHY_SECONDS else min(self.pause * 2, LONGEST_PAUSE)
        self.again_at = time.monotonic() + self.pause
        log.warning("child.exited", extra={"child": self.name, "status": self.process.returncode, "again_in": self.pause})
        self.process = None


def children(settings: Settings) -> list[Child]:
    """The signer first: the worker wants it at the end of every job."""
    expunge = [sys.executable, "-m", "service.cli"]
    return [
        Child("signer", [*expunge, "signer"]),
        Child("api", [*expunge, "serve"]),
        Child("worker", [*expunge, "worker"]),
    ]


@contextmanager
def sole_owner(data_dir: Path) -> Iterator[None]:
    """Hold the data directory. Raises: AlreadyRunning."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / "expunge.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"another `expunge up` is running on {data_dir}") from error
        yield


def require_free_port(host: str, port: int) -> None:
    """Else a client would talk to whoever has the port, while our own API retries for ever. Raises: AlreadyRunning."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AlreadyRunning(f"cannot listen on {host}:{port}: {error.strerror}") from error


def environment(settings: Settings) -> dict[str, str]:
    """The children's environment: ours, with the settings that were decided here.

    On one host a dead worker is noticed at once, so short leases cost nothing and bring a lost request back sooner.
    """
    return {
        "EXPUNGE_LEASE_SECONDS": "15",
        "EXPUNGE_RENEW_SECONDS": "1",
        "EXPUNGE_SWEEP_SECONDS": "0.2",
        **os.environ,
        "EXPUNGE_DATA_DIR": str(settings.data_dir.resolve()),
        "EXPUNGE_HOST": settings.host,
        "EXPUNGE_PORT": str(settings.port),
        "EXPUNGE_RANKS": str(settings.ranks),
        PARENT: str(os.getpid()),
    }


def run(settings: Settings, *, log_file: Path | None = None) -> int:
    """Start everything, keep it running until SIGTERM or SIGINT, stop it in order. Returns the exit status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with sole_owner(settings.data_dir):
        require_free_port(settings.host, settings.port)
        migrate.upgrade()
        family = children(settings)
        output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log_file else None
        surroundings = environment(settings)
        try:
            while not stop.is_set():
                for child in family:
                    child.check()
                    if child.process is None and time.monotonic() >= child.again_at:
                        child.start(surroundings, output)
                stop.wait(POLL_SECONDS)
        finally:
            _stop(family)
    return 0


def _stop(family: Sequence[Child]) -> None:
    """Worker first, so that it can drain while database and signer are still there; then the rest."""
    for child in reversed(family):
        process = child.process
        if process is None or process.poll() is not None:
            continue
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("child.killed", extra={"child": child.name})
            process.kill()
            process.wait()
