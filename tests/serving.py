"""The HTTP API as a process of its own on a free port, for what only a real server and a real socket show."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[1]
READY_SECONDS, STOP_SECONDS = 60.0, 30.0


@dataclass(frozen=True)
class Served:
    """A server that answers: its address and its process id."""

    url: str
    pid: int


@contextmanager
def served(log: Path, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """The API on this process's database and settings, until the block ends; what it logs is added to `log`.

    Raises: RuntimeError: it does not become ready.
    """
    port = free_port()
    surroundings = {**os.environ, **(environment or {}), "EXPUNGE_PORT": str(port)}
    with log.open("ab") as said:
        command = [sys.executable, "-m", "service.cli", "serve"]
        server = subprocess.Popen(command, cwd=ROOT, env=surroundings, stdout=said, stderr=said)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, server, log)
        yield Served(url, server.pid)
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise RuntimeError(f"the service did not become ready: {log.read_text()[-2000:]}")
