"""The ten failure stories that the design must survive, each with the check that tells it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from tests.faults import running
from tests.faults.scenarios import SCENARIOS, Size
from tests.faults.stack import ROOT, Stack
from tests.worker.conductor import house as h

SIZE = Size(posts=20, kills=2, queued=10, moments=8, behind=4, outages=(3.0,))
PATIENCE_SECONDS = 240.0


@dataclass(frozen=True)
class Story:
    """What happened to somebody else, and how we see that it does not happen here. Any exception is a failure."""

    number: int
    title: str
    tell: Callable[[Stack, int], None]


def scenario(name: str) -> Callable[[Stack, int], None]:
    (found,) = [s for s in SCENARIOS if s.name == name]
    return lambda stack, seed: running.once(stack, found, seed, SIZE)


def deaf(stack: Stack, seed: int) -> None:
    """Half-open connections. A broker in the worker's own memory has none: there all its bells are lost."""
    scenario("bells_lost_again_and_again" if stack.embedded else "broker_half_open")(stack, seed)


def capacity(stack: Stack, seed: int) -> None:
    """Every worker dies in the middle of a run; afterwards as many run side by side as there are workers."""
    running_now = [stack.ask(stack.fresh_house(), seconds=10, steps=20) for _ in stack.pids("worker")]
    h.until(lambda: all(stack.journal(r) for r in running_now), PATIENCE_SECONDS)
    for pid in stack.pids("worker"):
        stack.kill("worker", stack.pids("worker").index(pid))
    h.until(lambda: all(len(h.attempts(r)) > 1 for r in running_now), PATIENCE_SECONDS)
    h.until(lambda: [h.request(r).status for r in running_now] == ["running"] * len(running_now), PATIENCE_SECONDS)
    running.invariants.require(stack)


@lru_cache
def _suite(*files: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout[-1500:]


def suite(*files: str) -> Callable[[Stack, int], None]:
    """Told by tests of the suite, on both databases: they need no installation. Raises: FileNotFoundError, at import."""
    for file in files:
        (ROOT / file).stat()

    def tell(_stack: Stack, _seed: int) -> None:
        status, said = _suite(*files)
        assert status == 0, said

    return tell


STORIES = [
    Story(1, "started again in parallel with itself", scenario("fifty_bells_for_one_request")),
    Story(2, "killed because a cache entry was missing", scenario("bells_lost_again_and_again")),
    Story(3, "claimed, and died", scenario("worker_killed_at_any_moment")),
    Story(4, "the dead worker was alive", scenario("frozen_past_its_lease")),
    Story(5, "out of memory for ever", scenario("poisoned")),
    Story(6, "up, and takes no work", deaf),
    Story(7, "slots leak", capacity),
    Story(8, "cancelled, and runs anyway", scenario("cancelled_at_every_moment")),
    Story(
        9, "an audit log that cries wolf",
        suite("tests/service/audit/test_writers.py", "tests/service/audit/test_backup.py", "tests/attacks/test_ledger.py"),
    ),
    Story(
        10, "a download that is wrong",
        suite("tests/service/client/test_transport.py", "tests/service/checkpoints/test_checkpoints.py"),
    ),
]  # fmt: skip
