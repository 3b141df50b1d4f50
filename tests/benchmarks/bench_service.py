"""The service under load, on PostgreSQL: requests, pages over a million entries, listeners, downloads, claims, steps, memory.

Run with `make bench-service` (ARGS='--only posts' for a part, ARGS=--small for a look). One API process, or `--processes` of
them, answers all parts but `claims` and `steps`, over real sockets; PostgreSQL is the wheel's server with its defaults, fsync
among them. Load is an open loop: a request is sent when its time has come, and its latency counts from that time. Prints a
table and, as its last line, one JSON object with every figure and, under `targets`, what it is measured against; exit status 1
when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil

from service import db
from tests.benchmarks import bench_post, told
from tests.benchmarks.ledger.places import database
from tests.benchmarks.service import claims, downloads, filled, listeners, pages, steps
from tests.benchmarks.service.load import quantile
from tests.serving import Served, served

TARGETS: dict[str, tuple[float | None, str]] = {
    "post_p50_ms": (None, "le"),
    "post_p99_ms": (50.0, "le"),
    "post_errors": (0, "le"),
    "page_p99_ms": (50.0, "le"),
    "sse_delivered_share": (None, "ge"),
    "sse_lag_p99_ms": (None, "le"),
    "download_ratio": (0.5, "ge"),
    "claim_embedded_seconds": (1.0, "le"),
    "claim_production_seconds": (1.0, "le"),
    "first_step_embedded_seconds": (None, "le"),
    "first_step_production_seconds": (None, "le"),
    "service_share": (None, "le"),
    "rss_mb": (250.0, "le"),
}
PARTS = ("posts", "pages", "listeners", "download", "claims", "steps")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rate: float = 100.0
    seconds: float = 60.0
    entries: int = 1_000_000
    pages: int = 200
    listeners: int = 500
    followed: int = 50
    events: int = 20
    patience: float = 30.0
    megabytes: int = 512
    rounds: int = 5
    claims: int = 8
    """And one before them: of the model's ten classes one must be left."""
    steps: int = 3


SMALL = Size(
    seconds=10, entries=50_000, pages=30, listeners=50, followed=10, events=5, patience=10, megabytes=64, rounds=3, claims=3,
    steps=1,
)  # fmt: skip
"""Enough to see that each part works; its figures say little."""


@dataclass(frozen=True)
class Stage:
    """What the parts that share an API process work on."""

    size: Size
    server: Served
    models: list[str]
    folder: Path


def of_posts(stage: Stage) -> dict[str, Any]:
    """POST /unlearn-requests at a steady rate, over a hundred models."""
    limits = httpx2.Limits(max_connections=bench_post.CONNECTIONS, max_keepalive_connections=bench_post.CONNECTIONS)
    with httpx2.Client(base_url=stage.server.url, limits=limits, timeout=30.0) as http:
        bench_post.run(http, stage.models, rate=stage.size.rate, count=int(stage.size.rate * 2))  # connections, caches
        samples = bench_post.run(http, stage.models, rate=stage.size.rate, count=int(stage.size.rate * stage.size.seconds))
    times = [sample.seconds * 1000 for sample in samples]
    return {
        "post_p50_ms": round(quantile(times, 0.5), 2),
        "post_p99_ms": round(quantile(times, 0.99), 2),
        "post_errors": sum(sample.status != 202 for sample in samples),
        "post_count": len(samples),
    }


def of_pages(stage: Stage) -> dict[str, Any]:
    """Pages of entries and requests, from anywhere in the list."""
    with httpx2.Client(base_url=stage.server.url, timeout=60.0) as http:
        return pages.measure(http, stage.size.entries, stage.models, stage.size.pages)


def of_listeners(stage: Stage) -> dict[str, Any]:
    """Listeners of requests that are at work."""
    size = stage.size
    followed = filled.running(size.followed, stage.models)
    return listeners.measure(stage.server.url, followed, size.listeners, size.events, size.patience)


def of_download(stage: Stage) -> dict[str, Any]:
    """A checkpoint's file, and the same from a server that only sends files."""
    checkpoint_id = filled.checkpoint(stage.folder, stage.models[0], stage.size.megabytes)
    path = f"/checkpoints/{checkpoint_id}/files/model.safetensors"
    return downloads.measure(stage.server.url, path, stage.folder / "weights.tmp", stage.size.rounds)


SHARED: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "posts": of_posts, "pages": of_pages, "listeners": of_listeners, "download": of_download,
}  # fmt: skip
"""Listeners after posts and pages: what they leave in memory counts."""


def of_claims(size: Size, disk: Path) -> dict[str, Any]:
    """Both modes, one after the other."""
    return {**claims.measure(claims.EMBEDDED, disk, size.claims), **claims.measure(claims.PRODUCTION, disk, size.claims)}


def of_steps(size: Size, disk: Path) -> dict[str, Any]:
    """Both modes, with the real engine."""
    return {**steps.measure(claims.EMBEDDED, disk, size.steps), **steps.measure(claims.PRODUCTION, disk, size.steps)}


ALONE: dict[str, Callable[[Size, Path], dict[str, Any]]] = {"claims": of_claims, "steps": of_steps}
"""With an installation of their own."""


@contextmanager
def staged(size: Size, parts: Sequence[str], disk: Path, processes: int) -> Iterator[Stage]:
    """A database as large as the parts want it, and the API on it."""
    with database("postgresql", disk) as folder:
        models = bench_post.prepare(folder)
        if "pages" in parts:
            filled.ledger(size.entries)
            filled.requests(size.entries // filled.A_REQUEST, models)
            filled.analyse()
        with served(folder / "server.log", {"EXPUNGE_API_WORKERS": str(processes)}) as server:
            try:
                yield Stage(size, server, models, folder)
            except BaseException:
                print((folder / "server.log").read_text()[-5000:], file=sys.stderr)
                raise


def measured(size: Size, parts: Sequence[str], disk: Path, processes: int = 1) -> int:
    """Measure some parts and say how many targets were missed. Memory is the API's after all of them, of all its processes."""
    figures: dict[str, Any] = {"load_before": _load(), "api_processes": processes}
    together = [part for part in SHARED if part in parts]
    if together:
        with staged(size, together, disk, processes) as stage:
            for part in together:
                figures |= _timed(part, partial(SHARED[part], stage))
            figures["rss_mb"] = _resident_mb(stage.server.pid)
    for part in (part for part in ALONE if part in parts):
        figures |= _timed(part, partial(ALONE[part], size, disk))
    targets = {name: limit for name, (limit, _) in TARGETS.items() if limit is not None}
    figures |= {"load_after": _load(), **told.machine(), "targets": targets}
    print()
    rest = {name: (None, "le") for name, value in figures.items() if name not in TARGETS and isinstance(value, float)}
    return told.concluded(figures, {**TARGETS, **rest}, complete=set(parts) == set(PARTS))


def _timed(part: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Its figures, said at once: a later part that fails does not take them along."""
    began = time.monotonic()
    found = measure()
    print(f"{part}: {time.monotonic() - began:.0f} s, load {_load()}: {json.dumps(found)}", flush=True)
    return found


def _resident_mb(pid: int) -> float:
    """Of a process and its children, each by itself: what they share counts once for each."""
    server = psutil.Process(pid)
    return round(sum(one.memory_info().rss for one in (server, *server.children(recursive=True))) / 2**20, 1)


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def main() -> int:
    """Measure the parts asked for; exit status 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these parts alone")
    parser.add_argument("--small", action="store_true", help="little of everything")
    parser.add_argument("--processes", type=int, default=1, help="API processes for all parts but claims and steps")
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()), help="folder whose disk is measured")
    asked = parser.parse_args()
    missed = measured(SMALL if asked.small else Size(), asked.only or PARTS, asked.on, asked.processes)
    db.reset()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
