"""Accepting requests while the API dies, and bells that ring too often."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from service.client import ApiError, Client, Unreachable
from tests.faults.scenarios import Size, scenario
from tests.faults.stack import PATIENCE_SECONDS, Stack
from tests.worker.conductor import house as h

CLASSES = 9
"""Of a model's ten: something must be left."""


def post(client: Client, body: dict[str, Any], key: str, seconds: float = PATIENCE_SECONDS) -> str:
    """Ask as a careful client does: the same key until there is an answer. Returns the request's id."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return str(client.post("/unlearn-requests", body, idempotency_key=key)["id"])
        except Unreachable:
            pass
        except ApiError as error:
            if error.status != 503:
                raise
        assert time.monotonic() < deadline, f"no answer in {seconds} s"
        time.sleep(0.1)


@scenario(1)
def api_killed_during_posts(stack: Stack, rng: random.Random, size: Size) -> None:
    """Every key has one row, whatever was killed between the row and the answer."""
    houses = [stack.fresh_house() for _ in range(-(-size.posts // CLASSES))]
    wishes = []
    for k in range(size.posts):
        body = {"model_id": houses[k // CLASSES].model_id, "forget": {"classes": [str(k % CLASSES)]}}
        wishes.append((body, f"key-{rng.getrandbits(64):x}"))
    done, answered = threading.Event(), 0

    def ask(wish: tuple[dict[str, Any], str]) -> str:
        nonlocal answered
        with stack.client() as client:
            found = post(client, *wish)
        answered += 1
        return found

    def kill() -> None:
        for n in range(size.kills):  # spread over the posts, and at a random moment of each stretch
            while not done.is_set() and answered < n * size.posts // size.kills:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            stack.kill("serve")

    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(ask, wishes))
    done.set()
    killer.join()
    stack.wait_ready()
    stack.accepted.update(ids)
    assert len(set(ids)) == size.posts, "two keys share a request"
    with stack.client() as client:
        again = [post(client, *wish) for wish in wishes]
    assert again == ids, "a key led to another request than before"


@scenario(8)
def fifty_bells_for_one_request(stack: Stack, rng: random.Random, size: Size) -> None:
    """One claim, one publication; a visibility timeout of 2 s redelivers nothing (story 1: ten deliveries while it runs)."""
    request_id = stack.ask(stack.fresh_house(), seconds=4, steps=20)
    h.until(lambda: stack.journal(request_id), PATIENCE_SECONDS)
    for which in range(len(stack.pids("worker"))):
        stack.order(f"ring {request_id} 50", which)
    h.until(lambda: h.request(request_id).status == "succeeded", PATIENCE_SECONDS)
    assert [a.outcome for a in h.attempts(request_id)] == ["succeeded"]
    steps = [n["step"] for n in stack.journal(request_id)]
    assert steps == list(range(1, 21)), "it was worked on by two"
