"""Pages of the lists, from the first to far behind it, as a client sees them."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from tests.benchmarks.ledger import history
from tests.benchmarks.service.filled import A_REQUEST
from tests.benchmarks.service.load import quantile

SEED = 7
LIMIT = 100


def measure(http: httpx2.Client, entries: int, model_ids: list[str], count: int) -> dict[str, float]:
    """p99 in milliseconds of `count` pages of each kind, `page_<kind>_p99_ms`, and of all of them, by one client.

    A page of entries is an entry itself: its transaction is part of the time.
    """
    chance, figures, all_times = random.Random(SEED), {}, []
    kinds = {**_entries(entries), **_requests(entries // A_REQUEST, model_ids)}
    for kind, ask in kinds.items():
        times = []
        for number in range(count + 1):
            path, query = ask(chance)
            began = time.perf_counter()
            answer = http.get(path, params={"limit": LIMIT, **query})
            taken = (time.perf_counter() - began) * 1000
            answer.raise_for_status()
            if not answer.json()["data"]:
                raise AssertionError(f"an empty page: {kind} {query}")
            if number:  # the first one finds the plan, and a connection
                times.append(taken)
        figures[f"page_{kind}_p99_ms"] = round(quantile(times, 0.99), 2)
        all_times += times
    return {"page_p50_ms": round(quantile(all_times, 0.5), 2), "page_p99_ms": round(quantile(all_times, 0.99), 2), **figures}


def _entries(size: int) -> Mapping[str, Any]:
    """Pages of /audit/entries that begin anywhere."""
    where = "/audit/entries"

    def at(seq: int) -> str:
        return (history.BEGIN + seq * history.APART).isoformat()

    def anywhere(chance: random.Random) -> str:
        return cursor(chance.randrange(size * 9 // 10))

    actions = [fact.action for fact in history.facts()]
    return {
        "entries": lambda c: (where, {"after": anywhere(c)}),
        "entries_newest": lambda c: (where, {"order": "desc"}),
        "entries_action": lambda c: (where, {"action": c.choice(actions), "after": anywhere(c)}),
        "entries_actions": lambda c: (where, {"action": c.sample(actions, 2), "after": anywhere(c)}),
        "entries_type": lambda c: (where, {"type": "certificate.", "after": anywhere(c)}),
        "entries_model": lambda c: (where, {"model_id": history.MODEL, "after": anywhere(c)}),
        "entries_actor": lambda c: (where, {"actor": "user:local", "after": anywhere(c)}),
        "entries_tenant": lambda c: (where, {"tenant": history.TENANT, "after": anywhere(c)}),
        "entries_request": lambda c: (where, {"request_id": f"ureq_{c.randrange(size // A_REQUEST):032x}"}),
        "entries_since": lambda c: (where, {"at[gte]": at(c.randrange(size * 9 // 10))}),
        "entries_newest_until": lambda c: (where, {"at[lt]": at(c.randrange(size // 10, size)), "order": "desc"}),
    }


def _requests(size: int, model_ids: list[str]) -> Mapping[str, Any]:
    """Pages of /unlearn-requests."""
    where = "/unlearn-requests"

    def anywhere(chance: random.Random) -> str:
        number = chance.randrange(size // 10, size)
        when = history.BEGIN.timestamp() + number
        return cursor(time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(when)), f"ureq_{number:032x}")

    return {
        "requests": lambda c: (where, {"after": anywhere(c)}),
        "requests_newest": lambda c: (where, {}),
        "requests_status": lambda c: (where, {"status": "cancelled", "after": anywhere(c)}),
        "requests_waiting": lambda c: (where, {"status": ["running", "cancelled"]}),
        "requests_model": lambda c: (where, {"model_id": c.choice(model_ids)}),
        "requests_external_id": lambda c: (where, {"external_id": f"case-{c.randrange(size)}"}),
    }


def cursor(*values: Any) -> str:
    """As the service makes it (`service.paging`)."""
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")
