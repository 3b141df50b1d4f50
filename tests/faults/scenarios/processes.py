"""Real ranks: who outlives whom, and what their exit statuses are worth. And everything at once, for a while."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.faults.scenarios import Size, scenario
from tests.faults.scenarios.people import cancel
from tests.faults.scenarios.workers import agent_of, rank_pids
from tests.faults.stack import PATIENCE_SECONDS, Stack
from tests.worker.conductor import house as h

RANKS = 2
GONE_SECONDS = 10.0
"""The design says 2 on a machine of its own; a control outlives 10 as well."""


def two_ranks(stack: Stack, seconds: float, **more: object) -> tuple[str, set[int]]:
    """A request with two gloo ranks at work: its id, and their pids."""
    request_id = stack.ask(stack.fresh_house(), ranks=RANKS, seconds=seconds, steps=40, **more)
    pids = h.until(lambda: p if len(p := rank_pids(stack, request_id)) == RANKS else None, PATIENCE_SECONDS)
    return request_id, pids


@scenario(11)
def no_rank_outlives_its_launcher(stack: Stack, rng: random.Random, size: Size) -> None:
    """kill -9 of worker, agent, one rank, supervisor: all ranks are gone (story 8's other half)."""
    targets = ["worker", "agent", "rank", *(["up"] if stack.embedded else [])]
    for target in targets if size.kills > 1 else [rng.choice(targets[:2])]:
        request_id, pids = two_ranks(stack, size.ranks_seconds)
        kill_one(stack, request_id, pids, target)
        h.until(lambda pids=pids: not any(h.is_running(pid) for pid in pids), GONE_SECONDS)
        if target != "worker" or size.kills == 1:  # one full resumption will do: torch takes its time to start
            stack.wait_ready()
            cancel(stack, request_id)
            h.until(lambda r=request_id: h.request(r).status == "cancelled", PATIENCE_SECONDS)
        else:
            h.until(lambda r=request_id: h.request(r).status == "succeeded", PATIENCE_SECONDS)


def kill_one(stack: Stack, request_id: str, pids: set[int], target: str) -> None:
    match target:
        case "worker":
            victim = stack.holder(request_id)
        case "agent":
            victim = agent_of(min(pids))
        case "rank":
            victim = min(pids)
        case _:
            victim = stack.pids("up")[0]
    os.kill(victim, signal.SIGKILL)


def control_ranks_outlive_their_agent(stack: Stack) -> None:
    """Without the ranks' death signal they go on. Raises AssertionError, as `no_rank_outlives_its_launcher` would."""
    request_id, pids = two_ranks(stack, 60.0, outlive=True)
    try:
        # the worker too, at once: it would otherwise find and kill them itself
        agent, worker = agent_of(min(pids)), stack.holder(request_id)
        stack.want("up", False)
        os.kill(stack.pids("up")[0], signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        os.kill(agent, signal.SIGKILL)
        h.until(lambda: not any(h.is_running(pid) for pid in pids), GONE_SECONDS)
    finally:
        for pid in pids:
            if h.is_running(pid):
                os.kill(pid, signal.SIGKILL)


@scenario(12)
def no_exit_status_is_believed(stack: Stack, rng: random.Random, size: Size) -> None:
    """Ranks told to stop, ranks that say 0 too early, a torn file, no manifest: none of it is a success."""
    for mode in ("good", "early_exit") if size.kills > 1 else ():
        request_id, pids = two_ranks(stack, size.ranks_seconds, unlearn=mode)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        h.until(lambda r=request_id: h.attempts(r)[0].outcome is not None, PATIENCE_SECONDS)
        assert h.attempts(request_id)[0].outcome == "failed"
        h.until(lambda r=request_id: h.request(r).status == "succeeded", PATIENCE_SECONDS)
        assert max(n["step"] for n in stack.journal(request_id)) == 40  # the attempt that published ran to the end
    false = {mode: stack.ask(stack.fresh_house(), unlearn=mode) for mode in ("exit_0", "torn", "no_manifest", "incomplete")}
    stack.drain()
    assert {mode: h.request(r).status for mode, r in false.items()} == dict.fromkeys(false, "failed")


@scenario(15)
def soaked(stack: Stack, rng: random.Random, size: Size) -> None:
    """One random process killed every few seconds while requests come: nothing leaks, progress is monotone within a fence."""
    deadline, asked = time.monotonic() + size.soak_seconds, []
    houses = [stack.fresh_house() for _ in range(4)]
    roles = ["serve", "worker", "worker", "signer", *(["up"] if stack.embedded else [])]
    with no_leak(stack):
        while time.monotonic() < deadline:
            if len(asked) < 36:
                asked.append(stack.ask(houses[len(asked) % 4], len(asked) // 4, seconds=1, steps=10))
            time.sleep(rng.uniform(1, 4) if size.soak_seconds < 30 else rng.uniform(5, 12))
            stack.kill(rng.choice(roles), rng.randrange(4))
        stack.wait_ready()
        stack.drain()
    assert {h.request(r).status for r in asked} == {"succeeded"}
    for request_id in asked:
        notes = stack.journal(request_id)
        for fence in {n["fence"] for n in notes}:
            steps = [n["step"] for n in notes if n["fence"] == fence]
            assert steps == sorted(set(steps)), f"{request_id} fence {fence}: {steps}"


@contextmanager
def no_leak(stack: Stack) -> Iterator[None]:
    """The process that lives longest opens no more files at the end than at the beginning, but for a few."""
    oldest = psutil.Process(os.getpid() if not stack.embedded else stack.pids("up")[0])
    before = oldest.num_fds()
    yield
    if oldest.is_running():
        assert oldest.num_fds() <= before + 20, f"{before} open files have become {oldest.num_fds()}"
