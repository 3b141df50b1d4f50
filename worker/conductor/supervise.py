"""Watching one stage of the engine: pass its progress on, and stop it when it must stop.

Two signs of life, not one: the process is there, and its events go on. Alive without progress is a hang.
"""

from __future__ import annotations

import logging
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from service.config import Settings
from service.requests.leases import Lease, Progress
from service.telemetry import tracing
from worker.conductor import launch
from worker.conductor.heart import Heart
from worker.conductor.processes import Tree
from worker.contract import SPAN, Event, JobDirectory

log = logging.getLogger("expunge.conductor")

POLL_SECONDS = 0.05
LOOK_SECONDS = 0.5
"""Between two looks at who the descendants are: each look reads the whole process table."""
LONGEST_READ = 1 << 20
LONGEST_LINE = 1 << 16
LARGEST_COUNT = 2**31 - 1
"""What the progress columns hold."""

ENGINE_SPANS = frozenset({"engine.unlearn", "engine.verify"})
CLOCK_SECONDS = 5.0
"""A host's clock may be set meanwhile."""
CANCEL_SECONDS = 10.0
"""A cancelled run has no step checkpoint to save: whatever time a drain gets, who cancels does not wait for it."""

How = Literal["exited", "cancelled", "paused", "drained", "lost", "stalled"]


@dataclass(frozen=True)
class Ended:
    """How a stage's processes came to an end. None of them is left."""

    how: How
    returncode: int | None


class EventTail:
    """Reads the events that are appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read(self) -> list[Event]:
        """The complete lines since the last call. A line that is no event is logged and passed over: telemetry ends no run."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            came = file.read(LONGEST_READ)
        self._offset += len(came)
        *lines, self._rest = (self._rest + came).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            log.warning("event.too_long", extra={"bytes": len(self._rest)})
            self._rest = b""
        return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> Event | None:
    try:
        return Event.model_validate_json(line)
    except ValidationError as error:
        log.warning("event.unreadable", extra={"problems": error.error_count()})
        return None


def progress_of(event: Event) -> Progress | None:
    """What followers may see of an event."""
    if event.kind != "progress" or event.completed is None:
        return None
    total = None if event.total is None else min(event.total, LARGEST_COUNT)
    unit = event.unit[:32] if event.unit else None
    return Progress(min(event.completed, LARGEST_COUNT), total, unit, event.estimated_remaining_seconds)


@dataclass(frozen=True)
class Span:
    """A stage as the engine timed it; seconds since the epoch."""

    name: str
    began: float
    ended: float


def span_of(event: Event, parent: str, started: float) -> Span | None:
    """The time that the engine took, as it says so itself: believed only of a known stage, of this trace, and of the past.

    Args:
        started: when the stage's process was; the two clocks are one.
    """
    values = event.values
    name, began, ended = values.get(SPAN), values.get("began"), values.get("ended")
    if name not in ENGINE_SPANS or values.get("traceparent") != parent:
        return None
    if not isinstance(began, float) or not isinstance(ended, float):
        return None
    return Span(str(name), began, ended) if started - CLOCK_SECONDS <= began <= ended <= time.time() + CLOCK_SECONDS else None


def supervise(process: subprocess.Popen[bytes], job: JobDirectory, heart: Heart, settings: Settings) -> Ended:
    """Watch until the process ends or must end; when it returns, no process of the run is left on this host.

    Raises:
        Unkillable: processes survived SIGKILL.
    """
    tree, tail = Tree(process.pid), EventTail(job.events)
    last_event = last_look = time.monotonic()
    how: How = "exited"
    began, parent = time.time(), tracing.traceparent()

    def pass_on(event: Event) -> None:
        if (progress := progress_of(event)) is not None:
            heart.report(progress)
        if parent is not None and (span := span_of(event, parent, began)) is not None:
            tracing.record(span.name, parent, span.began, span.ended)

    try:
        while process.poll() is None:
            events = tail.read()
            now = time.monotonic()
            last_event = now if events else last_event
            for event in events:
                pass_on(event)
            if now - last_look > LOOK_SECONDS:
                tree.look()
                last_look = now
            how = _must_stop(heart, stalled=now - last_event > settings.stall_seconds) or "exited"
            if how != "exited":
                _ask_to_stop(process, heart, settings, how)
                break
            time.sleep(POLL_SECONDS)
    finally:
        _clear(process, tree, heart.lease)
    for event in tail.read():  # its last words
        pass_on(event)
    log.info("stage.ended", extra={"request": heart.lease.request_id, "how": how, "status": process.returncode})
    return Ended(how, process.returncode)


def _must_stop(heart: Heart, *, stalled: bool) -> How | None:
    if heart.lost.is_set():
        return "lost"
    if heart.cancel.is_set():
        return "cancelled"
    if heart.pause.is_set():
        return "paused"
    if heart.draining.is_set():
        return "drained"
    return "stalled" if stalled else None


def _ask_to_stop(process: subprocess.Popen[bytes], heart: Heart, settings: Settings, how: How) -> None:
    """SIGTERM the agent, which passes it on, and wait for the grace. A lost or hung run is not asked: it is killed."""
    if how in ("lost", "stalled"):
        return
    process.terminate()
    grace = min(settings.stop_grace_seconds, CANCEL_SECONDS) if how == "cancelled" else settings.stop_grace_seconds
    deadline = time.monotonic() + grace
    while process.poll() is None and time.monotonic() < deadline and not heart.lost.is_set():
        time.sleep(POLL_SECONDS)
    if process.poll() is None:
        log.warning("stage.killed", extra={"request": heart.lease.request_id, "grace": grace})


def _clear(process: subprocess.Popen[bytes], tree: Tree, lease: Lease) -> None:
    tree.kill(marked=(lease.request_id, lease.fence))
    process.wait()


def run_stage(
    stage: launch.Stage, job: JobDirectory, heart: Heart, settings: Settings, *, command: launch.Command, ranks: int
) -> Ended:
    """Start one stage and see it through. Raises: Unkillable."""
    process = launch.start(command(stage, job, ranks), job, heart.lease, ranks=ranks, traceparent=tracing.traceparent())
    extra = {"request": heart.lease.request_id, "stage": stage, "pid": process.pid, "ranks": ranks}
    log.info("stage.started", extra=extra)
    return supervise(process, job, heart, settings)
