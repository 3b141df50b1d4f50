"""Who holds a lease, in words that the same host can check: is that process still alive?"""

from __future__ import annotations

import os
import socket
import sys
from functools import lru_cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = "/proc/self/ns/pid"


@lru_cache(maxsize=1)
def _machine() -> tuple[str, str]:
    """Host name, and a word for this boot and process-id namespace: pids of another container mean nothing here."""
    host = socket.gethostname().replace("|", "_")[:100]
    if sys.platform != "linux":
        return host, str(int(psutil.boot_time()))
    boot = _BOOT_ID.read_text().strip()
    namespace = os.readlink(_PID_NAMESPACE).partition("[")[2].rstrip("]")
    return host, f"{boot}.{namespace}"


def _started(pid: int) -> str | None:
    """When a process started, in a form that is equal only for the same process; None when it is dead or a zombie.

    Linux: clock ticks since boot, since a wall-clock time moves when the clock is set.
    """
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else str(int(process.create_time() * 100))
        except psutil.NoSuchProcess:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def owner() -> str:
    """This process as the owner of a lease: host|pid|start|boot."""
    host, boot = _machine()
    return f"{host}|{os.getpid()}|{_started(os.getpid())}|{boot}"


def is_dead_here(name: str) -> bool:
    """True when the owner lived on this very host and boot and is gone. False also when we cannot know."""
    host, boot = _machine()
    parts = name.split("|")
    if len(parts) != 4 or (parts[0], parts[3]) != (host, boot) or not parts[1].isdigit():
        return False
    return _started(int(parts[1])) != parts[2]
