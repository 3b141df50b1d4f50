"""The unlearning loop.

    resume, or prepare
    for every iteration: checkpoint if due -> stop if asked -> step -> tell -> enough?

It knows no method and no family. What makes a resumed run equal an unbroken one is that nothing here is random: a
method's `step(i)` depends on the weights, its own state and i, and whether it is enough on the weights and i.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from worker.engine import checkpoint, sharding
from worker.engine.distributed import Ranks
from worker.engine.errors import Stopped
from worker.engine.events import Eta, Events
from worker.engine.method import Method

SYNC_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """What the loop did. Seconds are this process's own: a resumed run does not count the time before it."""

    iterations_completed: int
    resumed_from: int
    seconds_prepare: float
    seconds_unlearn: float
    stopped_early: bool = False
    """It was enough before the last iteration."""


@dataclass(frozen=True)
class Loop:
    """Everything the loop needs besides the method."""

    module: nn.Module
    ranks: Ranks
    events: Events
    steps: Path
    key: str
    cadence: checkpoint.Cadence
    stop_asked: Callable[[], bool]
    check: Callable[[], None]
    """Raises Diverged when an update was not finite; waits for the device."""
    look_every: int = 0
    """Iterations between two looks at whether it is enough; 0: no look is taken."""
    enough: Callable[[int], bool] = lambda _: False
    """Asked after so many iterations: may the loop end here? Every rank is asked, and every rank gets the same answer."""

    def looks(self, completed: int, total: int) -> bool:
        """Is it time to ask after so many of all iterations? After the last one there is nothing left to save."""
        return self.look_every > 0 and completed % self.look_every == 0 and completed < total

    @property
    def every(self) -> int:
        """Iterations between two sync points: on an accelerator each one stalls the queue of work, on a CPU none does."""
        return 1 if self.ranks.device.type == "cpu" else SYNC_EVERY


def run(loop: Loop, method: Method, iterations: int) -> Outcome:
    """Take `method` through `iterations` steps, or fewer if they are enough, from the newest step checkpoint if there is one.

    Raises:
        Stopped: any rank was asked to stop; all ranks stopped before the same iteration and left a checkpoint.
        Diverged: a loss or gradient was not finite; the weights are those before that update.
    """
    began = time.monotonic()
    resumed = resume(loop, method)
    if resumed is None:
        method.prepare()
        loop.check()
    start = completed = resumed or 0
    seconds_prepare = time.monotonic() - began
    eta = Eta(start)
    loop.events.progress(start, iterations, "iteration")
    for i in range(start, iterations):
        if i % loop.every == 0:
            attend(loop, method, i)
        method.step(i)
        completed += 1
        loop.events.progress(completed, iterations, "iteration", remaining_seconds=eta.remaining(completed, iterations))
        if loop.looks(completed, iterations):
            loop.check()  # what spoiled weights draw would be no sign of forgetting
            if loop.enough(completed):
                break
    loop.check()
    seconds_unlearn = time.monotonic() - began - seconds_prepare
    return Outcome(completed, start, seconds_prepare, seconds_unlearn, stopped_early=completed < iterations)


def attend(loop: Loop, method: Method, iteration: int) -> None:
    """The sync point before an iteration: are the numbers sound, was a stop asked for, is a checkpoint due?

    Raises: Diverged, Stopped.
    """
    stop = loop.ranks.any(loop.stop_asked())
    due = loop.ranks.first and (stop or loop.cadence.due(iteration))
    if sharding.is_sharded(loop.module):
        due = loop.ranks.any(due)  # every rank holds a part of what is written
    if due or loop.every > 1:
        loop.check()  # so that no checkpoint holds what came after an update that failed
    if due:
        save(loop, method, iteration)
    if stop:
        loop.ranks.wait()
        raise Stopped(f"asked to stop; step checkpoint left before iteration {iteration}")


def resume(loop: Loop, method: Method) -> int | None:
    """Load the newest usable step checkpoint into the module and the method; the iteration to go on with, if any."""
    found = checkpoint.newest(loop.steps, loop.key) if loop.ranks.first else None
    start = loop.ranks.from_first(-1 if found is None else found)
    if start < 0:
        return None
    state = checkpoint.load(loop.steps, start)
    sharding.load(loop.module, state["weights"])
    method.load_state_dict(sharding.cut_alike(state["method"], [p for p in loop.module.parameters() if p.requires_grad]))
    loop.events.note({"resumed_from_iteration": start})
    return start


def save(loop: Loop, method: Method, iteration: int) -> None:
    """Write the step checkpoint taken before `iteration`; where the network is sharded, every rank gives its part."""
    began = time.monotonic()
    state: dict[str, Any] = {"weights": loop.module.state_dict(), "method": method.state_dict()}
    if sharding.is_sharded(loop.module):
        state = sharding.whole(state, keep=loop.ranks.first)
    if loop.ranks.first:
        checkpoint.save(loop.steps, iteration, state, loop.key)
        loop.cadence.wrote(iteration, time.monotonic() - began)
