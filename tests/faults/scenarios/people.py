"""People who change their mind at the worst moment."""

from __future__ import annotations

import random
import time

from service.client import ApiError
from tests.faults.scenarios import Size, scenario
from tests.faults.stack import PATIENCE_SECONDS, Stack
from tests.worker.conductor import house as h

SOON_SECONDS = 120.0
"""The design says 3 on a machine of its own, and one lease and 5 s where the worker is dead. On a starved one a worker that was
killed needs half a minute to be there again."""


def cancel(stack: Stack, request_id: str) -> bool:
    """False: it was too late, and the service said so."""
    with stack.client() as client:
        try:
            client.post(f"/unlearn-requests/{request_id}/cancel")
        except ApiError as error:
            if error.status != 409:
                raise
            return False
    return True


def ends_cancelled(stack: Stack, request_id: str) -> None:
    h.until(lambda: h.request(request_id).status == "cancelled", SOON_SECONDS)
    h.until(lambda: not stack.engines(request_id), SOON_SECONDS)


@scenario(9)
def cancelled_at_every_moment(stack: Stack, rng: random.Random, size: Size) -> None:
    """Queued, running, while it leaves a checkpoint, while it publishes, with its worker dead (story 8)."""
    house = stack.fresh_house()
    running = stack.ask(house, 1, seconds=60, steps=100)
    queued = stack.ask(house, 2)
    h.until(lambda: stack.journal(running), PATIENCE_SECONDS)
    assert cancel(stack, queued)
    ends_cancelled(stack, queued)
    assert h.attempts(queued) == []
    assert cancel(stack, running)
    ends_cancelled(stack, running)

    leaving = stack.ask(stack.fresh_house(), seconds=60, steps=100, farewell=2)
    h.until(lambda: stack.journal(leaving), PATIENCE_SECONDS)
    assert cancel(stack, leaving)
    ends_cancelled(stack, leaving)

    dead = stack.ask(stack.fresh_house(), seconds=60, steps=100)
    h.until(lambda: stack.journal(dead), PATIENCE_SECONDS)
    pid = stack.holder(dead)
    stack.kill("worker", stack.pids("worker").index(pid))
    assert cancel(stack, dead)
    ends_cancelled(stack, dead)
    assert {n["fence"] for n in stack.journal(dead)} <= {1, 3}  # 2 is the sweeper's, 3 one that was quicker than us

    for _ in range(6 if size.kills > 1 else 1):
        publishing = stack.ask(stack.fresh_house())
        h.until(lambda r=publishing: h.request(r).phase in ("certifying", "publishing") or _over(r), PATIENCE_SECONDS)
        time.sleep(rng.uniform(0, 0.3))
        cancel(stack, publishing)
        h.until(lambda r=publishing: _over(r), SOON_SECONDS)
        # published exactly when it succeeded: counted afterwards
        assert h.request(publishing).status in ("succeeded", "cancelled")


def _over(request_id: str) -> bool:
    return h.request(request_id).status in ("succeeded", "failed", "cancelled")
