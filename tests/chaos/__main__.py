"""`python -m tests.chaos`: at least 200 faults over at least 50 requests on each stack. Last, one JSON object."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import tiny
from tests.chaos.breaking import Breaker
from tests.chaos.stories import STORIES, Story
from tests.faults import invariants
from tests.faults.scenarios.submitting import CLASSES, post
from tests.faults.stack import KINDS, Kind, Servers, Stack, opened

SETTINGS = {"EXPUNGE_MAX_ATTEMPTS": "1000", "FAULTS_SOCKET": "5", "TORCH_FAULTS_SECONDS": "1"}
"""Workers die here as often as in years: that a request gives up one day is another test's."""
DRAIN_SECONDS = 900.0
MEANT, WORK_SECONDS = 0.5, 20.0
"""So many of the faults wait for a run to hit; on a slow machine the others would all hit processes that are starting."""
TINY_CLASSES = 3
"""Of a tiny model's four: something must be left."""


@dataclass(frozen=True)
class Plan:
    """How much of it."""

    requests: int
    faults: int
    real: int
    """Of the requests: trained by the real engine."""
    pause: tuple[float, float]
    """Seconds between two faults."""
    cut: float


FULL = Plan(requests=50, faults=200, real=6, pause=(0.5, 5.0), cut=60.0)
QUICK = Plan(requests=16, faults=30, real=2, pause=(0.5, 3.0), cut=15.0)


def submit(stack: Stack, plan: Plan, failed: list[BaseException]) -> None:
    """Requests, spread over the faults, from a client that repeats what was not answered."""
    real = [tiny.furnish(stack.home / f"tiny-{k}") for k in range(-(-plan.real // TINY_CLASSES))]
    plain = [stack.fresh_house() for _ in range(-(-plan.requests // CLASSES))]
    pause, every = plan.faults * sum(plan.pause) / 2 / plan.requests, plan.requests // plan.real
    try:
        for k in range(plan.requests):
            with stack.client() as client:
                if k % every == every - 1 and k // every < plan.real:
                    nth = k // every
                    forget = {"classes": [tiny.NAMES[nth % TINY_CLASSES]]}
                    body = {"model_id": real[nth // TINY_CLASSES].model_id, "forget": forget}
                    found = post(client, body | {"method": "sfron", "params": tiny.PARAMS}, f"chaos-{k}", DRAIN_SECONDS)
                else:
                    body = {"model_id": plain[k % len(plain)].model_id, "forget": {"classes": [str(k // len(plain))]}}
                    found = post(client, body, f"chaos-{k}", DRAIN_SECONDS)
            stack.accepted.add(found)
            time.sleep(pause)
    except BaseException as error:
        failed.append(error)


def wait_for_work(stack: Stack) -> None:
    """Until an engine is at work, but not for ever: what is broken may keep it from starting."""
    deadline = time.monotonic() + WORK_SECONDS
    while not stack.engines() and time.monotonic() < deadline:
        time.sleep(0.2)


def chaos(kind: Kind, servers: Servers, plan: Plan, seed: int) -> dict[str, Any]:
    """One installation, broken and counted."""
    rng, failed = random.Random(f"{seed} {kind}"), list[BaseException]()
    with opened(kind, servers, **SETTINGS) as stack:
        breaker = Breaker(stack, rng, plan.cut)
        began = time.monotonic()
        client = threading.Thread(target=submit, args=(stack, plan, failed))
        client.start()
        while breaker.done.total() < plan.faults:
            time.sleep(rng.uniform(*plan.pause))
            if rng.random() < MEANT:
                wait_for_work(stack)
            breaker.once()
        breaker.mend()
        client.join()
        if failed:
            raise failed[0]
        broke = time.monotonic() - began
        try:
            stack.drain(DRAIN_SECONDS)
        except AssertionError as error:
            print(error, file=sys.stderr)  # counted below, as stuck
        counts = invariants.check(stack)
        for why in counts.why:
            print(f"    {why}", flush=True)
        runs = stack.logs('"request.claimed"')
        print(f"{kind}: {dict(breaker.done)}", flush=True)
        print(
            f"{kind}: broken for {broke:.0f} s, at rest {time.monotonic() - began - broke:.0f} s later, {runs} claims",
            flush=True,
        )
        return {"requests": len(stack.accepted), "faults": breaker.done.total(), **counts.shown()}


def told(kind: Kind, servers: Servers, seed: int, stories: list[Story]) -> int:
    """How many stories end well."""
    passed = 0
    for story in stories:
        began, why = time.monotonic(), ""
        try:
            with opened(kind, servers, FAULTS_SOCKET="5") as stack:
                story.tell(stack, seed)
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        passed += not why
        took = time.monotonic() - began
        print(f"story {story.number:>2}  {story.title:<42} {kind:<10} {took:6.1f} s  {why or 'passed'}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--no-stories", action="store_true")
    parser.add_argument("--story", type=int, choices=[story.number for story in STORIES], action="append", help="these alone")
    options = parser.parse_args()
    plan, result = QUICK if options.quick else FULL, dict[str, Any]()
    stories = [story for story in STORIES if not options.no_stories and (not options.story or story.number in options.story)]
    with tempfile.TemporaryDirectory(prefix="expunge-chaos-", ignore_cleanup_errors=True) as folder:
        servers = Servers(Path(folder))
        try:
            for kind in options.kind or reversed(KINDS):
                counted = {} if options.story else chaos(kind, servers, plan, options.seed)
                counted["stories_passed"] = told(kind, servers, options.seed, stories)
                result |= {"embedded": counted} if kind == "embedded" else counted
        finally:
            servers.stop()
    print(json.dumps(result))
    stacks = [r for r in (result, result.get("embedded")) if r and "stories_passed" in r]
    return 0 if all(_is_well(r, len(stories)) for r in stacks) else 1


def _is_well(counted: dict[str, Any], stories: int) -> bool:
    zeros = ("lost", "doubled", "zombie_publishes", "unaudited_changes", "stuck")
    return not any(counted.get(name) for name in zeros) and counted["stories_passed"] == stories


if __name__ == "__main__":
    sys.exit(main())
