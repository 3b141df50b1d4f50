"""The process tree of a run, and how to be sure that nothing of it is left.

torchrun starts each rank in a session of its own, so killing the agent's group leaves them training. We remember every
descendant that we ever saw, and find the rest by the request's id in their environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable

import psutil  # type: ignore[import-untyped]

log = logging.getLogger("expunge.processes")

JOB, FENCE = "EXPUNGE_JOB", "EXPUNGE_FENCE"
"""Environment variables that mark every process of a run."""
POLL_SECONDS = 0.05
DEATH_SECONDS = 10.0
"""After SIGKILL. Longer means a process stuck in the kernel: the host is not well."""


class Unkillable(Exception):
    """Processes survived SIGKILL; the host needs a look, and the request must not be called cancelled."""

    def __init__(self, survivors: Collection[psutil.Process]) -> None:
        super().__init__(f"{len(survivors)} processes survived SIGKILL for {DEATH_SECONDS:.0f} s")
        self.survivors = frozenset(survivors)


class Tree:
    """A child and every descendant that was ever seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: set[psutil.Process] = set()  # equality is pid and start time: a reused pid is another process
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.add(psutil.Process(pid))

    def look(self) -> None:
        """Remember who is there now."""
        for process in tuple(self._seen):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                self._seen.update(process.children(recursive=True))

    def kill(self, marked: tuple[str, int] | None = None) -> None:
        """SIGKILL all of it, and wait until it is gone.

        Args:
            marked: request id and fence whose other processes on this host go too.

        Raises:
            Unkillable: something survived.
        """
        self.look()
        targets = set(self._seen)
        if marked is not None:
            targets.update(_marked(marked[0], lambda fence: fence <= marked[1]))
        kill_all(targets)


def kill_older(request_id: str, fence: int) -> None:
    """Kill what earlier attempts of a request left on this host. Raises: Unkillable."""
    leftovers = _marked(request_id, lambda other: other < fence)
    if leftovers:
        log.warning("orphans.found", extra={"request": request_id, "pids": sorted(p.pid for p in leftovers)})
        kill_all(leftovers)


def kill_all(processes: set[psutil.Process]) -> None:
    """SIGKILL these and whatever they start meanwhile; zombies count as dead. Raises: Unkillable."""
    deadline = time.monotonic() + DEATH_SECONDS
    alive = {p for p in processes if _is_alive(p)}
    while alive:
        for process in tuple(alive):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                alive.update(process.children(recursive=True))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(POLL_SECONDS)
        alive = {p for p in alive if _is_alive(p)}
        if alive and time.monotonic() > deadline:
            raise Unkillable(alive)


def any_left(processes: Iterable[psutil.Process]) -> bool:
    """Whether one of these still lives."""
    return any(_is_alive(p) for p in processes)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _marked(request_id: str, wanted: Callable[[int], bool]) -> set[psutil.Process]:
    """Processes of our own user whose environment names the request, under a wanted fence; never this process."""
    found = set()
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue  # another user's, or gone
        fence = environment.get(FENCE, "")
        if environment.get(JOB) == request_id and fence.isdigit() and wanted(int(fence)):
            found.add(process)
    return found
