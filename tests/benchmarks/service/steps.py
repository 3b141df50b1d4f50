"""From `POST /unlearn-requests` to the first step of a real engine, and the service's share of a whole run.

The shipped example: a class-conditional DDPM of scanned digits, which forgets one of them under the shipped policy. What torch
takes to load, and the weights' information that the method gathers first, lie between the claim and the first step. A run's
share is the time in which no engine process lived: queueing, staging, signing, publishing.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil

from service import policies
from service.demo import export_example
from service.requests.lifecycle import TERMINAL
from tests.benchmarks.service.claims import EMBEDDED, deployment
from tests.worker.conductor import house as h

WORKER = ("service.cli", "worker")
LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 300.0


def measure(mode: str, disk: Path, count: int) -> dict[str, float]:
    """Seconds of `count` requests that are cancelled once they step; embedded, one more goes on to its end."""
    policy = json.loads((Path(policies.__file__).parent / "basic-v1.json").read_text())
    with deployment(mode, disk, WORKER, policy, furnish=lambda folder: (folder, export_example(folder / "example"))) as made:
        http, (folder, example) = made
        model = _register(http, example)
        h.until(lambda: http.get("/workers").json()["data"], PATIENCE_SECONDS)
        firsts = [_first_step(http, folder, model, digit) for digit in range(count)]
        found = {
            f"first_step_{mode}_seconds": round(statistics.median(firsts), 2),
            f"first_step_{mode}_worst_seconds": round(max(firsts), 2),
        }
        if mode == EMBEDDED:
            whole, engine = _whole(http, model, 3)
            found |= {"run_seconds": round(whole, 1), "service_share": round(1 - engine / whole, 3)}
    return found


def _register(http: httpx2.Client, example: dict[str, Any]) -> str:
    keys = ("class_names", "held_out_ids")
    data = {"format": "npz", "location": example["dataset"], **{key: example[key] for key in keys}}
    dataset_id = _made(http, "/datasets", data)
    names = {"class_names": example["class_names"]}
    lies = {"family": example["family"], "location": example["model"], "dataset_id": dataset_id}
    return _made(http, "/models", {**lies, **names})


def _made(http: httpx2.Client, path: str, body: dict[str, Any]) -> str:
    answer = http.post(path, json=body)
    if answer.status_code not in (200, 201, 202):
        raise RuntimeError(answer.text)
    return str(answer.json()["id"])


def _first_step(http: httpx2.Client, folder: Path, model: str, digit: int) -> float:
    began = time.time()
    request_id = _made(http, "/unlearn-requests", {"model_id": model, "forget": {"classes": [digit]}})
    stepped = h.until(lambda: next(_steps(folder / "jobs" / request_id), None), PATIENCE_SECONDS)
    http.post(f"/unlearn-requests/{request_id}/cancel").raise_for_status()
    h.until(lambda: h.request(request_id).status in TERMINAL, PATIENCE_SECONDS)
    return stepped - began


def _steps(family: Path) -> Iterator[float]:
    """When the loop told of progress, by the engine's own clock, which is this host's."""
    for file in family.rglob("events.jsonl"):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            if event["kind"] == "progress" and event["phase"] == "unlearning":
                yield event["at"]


def _whole(http: httpx2.Client, model: str, digit: int) -> tuple[float, float]:
    """Seconds of a whole run, and those of them in which an engine lived."""
    began = datetime.now(UTC)
    request_id = _made(http, "/unlearn-requests", {"model_id": model, "forget": {"classes": [digit]}})
    alive, looked = 0.0, time.monotonic()
    end = looked + PATIENCE_SECONDS
    while (row := h.request(request_id)).status not in TERMINAL:
        if time.monotonic() > end:
            raise RuntimeError("the run did not end")
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        alive += (now - looked) * _engine_lives()
        looked = now
    if row.status != "succeeded" or row.finished_at is None:
        raise RuntimeError(f"the run ended as {row.status}")
    return (row.finished_at - began).total_seconds(), alive


def _engine_lives() -> bool:
    for process in psutil.Process().children(recursive=True):
        try:
            if "worker.engine" in process.cmdline():
                return True
        except psutil.Error:
            continue  # it has just ended
    return False
