"""A broker that dies, forgets, fills up, or neither answers nor hangs up. The rows are the queue; a bell may always be lost."""

from __future__ import annotations

import random
import time

from tests.faults.scenarios import Size, scenario
from tests.faults.stack import PATIENCE_SECONDS, Stack
from tests.worker.conductor import house as h

RECOVER_SECONDS = 120.0
"""After a half-open connection. The design says 60: two socket timeouts and a bell's pause. A deaf worker stays deaf."""


def fill(stack: Stack, count: int) -> tuple[str, list[str]]:
    """A request that runs for a while, and many that wait, over four models."""
    running = stack.ask(stack.fresh_house(), seconds=8, steps=20)
    h.until(lambda: stack.journal(running), PATIENCE_SECONDS)
    houses = [stack.fresh_house() for _ in range(4 if count > 8 else 1)]
    return running, [stack.ask(houses[k % len(houses)], k // len(houses) % 9) for k in range(count)]


def untouched(running: str) -> None:
    """It went on as if nothing had been."""
    h.until(lambda: h.request(running).status == "succeeded", PATIENCE_SECONDS)
    assert [a.outcome for a in h.attempts(running)] == ["succeeded"]


@scenario(3, "production")
def redis_killed(stack: Stack, rng: random.Random, size: Size) -> None:
    """Without persistence every bell is gone; all is published, and what ran was not touched."""
    for down in size.outages:
        running, waiting = fill(stack, size.queued // len(size.outages))
        stack.servers.redis.kill()
        time.sleep(down)
        stack.servers.redis.start()
        untouched(running)
        h.until(lambda waiting=waiting: any(h.attempts(r) for r in waiting), RECOVER_SECONDS)


@scenario(4)
def bells_lost_again_and_again(stack: Stack, rng: random.Random, size: Size) -> None:
    """FLUSHALL while it waits and while it runs (story 2)."""
    running, waiting = fill(stack, min(size.queued, 50))
    while h.request(running).status == "running":
        stack.lose_bells()
        time.sleep(rng.uniform(0.2, 1))
    untouched(running)
    stack.drain()
    assert {h.request(r).status for r in waiting} == {"succeeded"}


@scenario(6, "production")
def broker_half_open(stack: Stack, rng: random.Random, size: Size) -> None:
    """Connections that swallow what they are sent: the workers hear again by themselves (story 6)."""
    assert stack.wire is not None
    assert stack.wire.freeze() > 0, "nobody is connected: the test would prove nothing"
    request_id = stack.ask(stack.fresh_house())
    h.until(lambda: h.request(request_id).status == "succeeded", RECOVER_SECONDS)


@scenario(6, "production")
def broker_full_and_cut(stack: Stack, rng: random.Random, size: Size) -> None:
    """No memory for a bell, then nobody on the line: nothing is lost, and what runs goes on."""
    assert stack.wire is not None
    stack.servers.redis.limit(1)
    running = stack.ask(stack.fresh_house(), seconds=8, steps=20)
    time.sleep(3)
    stack.servers.redis.limit(0)
    h.until(lambda: stack.journal(running), PATIENCE_SECONDS)
    stack.wire.cut()
    time.sleep(size.outages[-1])
    stack.wire.mend()
    untouched(running)
