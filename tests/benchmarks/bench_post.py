"""How long `POST /unlearn-requests` takes: 50 a second on SQLite, spread over 100 models, no worker, over a real socket.

    python tests/benchmarks/bench_post.py [--rate 50] [--seconds 20]

Open loop: a request is sent when its time has come, whether or not the ones before it are answered, and its latency counts
from that time; so a stall of the service is not hidden by the client's politeness. Prints a table, and as its last line one
JSON object; exits with 1 when a request failed or p99 is over the target.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TARGET_P99_MS = 50.0
MODELS = 100
CLASSES = 100
HELD_OUT = 20
"""Images a class that verification has to itself."""
CONNECTIONS = 32


@dataclass(frozen=True)
class Sample:
    """One request: seconds from when it was due to its last byte, and its status (0: no answer)."""

    seconds: float
    status: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    wanted = parser.parse_args()
    result: dict[str, object] = {"benchmark": "post", "p99_ms": None, "target_p99_ms": TARGET_P99_MS, "passed": False}
    try:
        with tempfile.TemporaryDirectory(prefix="expunge-bench-") as folder:
            samples = _measure(Path(folder), wanted.rate, wanted.seconds)
        result |= _summary(samples, wanted.rate)
    finally:
        _print_table(result)
        print(json.dumps(result))
    return 0 if result["passed"] else 1


def _measure(folder: Path, rate: float, seconds: float) -> list[Sample]:
    os.environ |= {
        "EXPUNGE_DATA_DIR": str(folder),
        "EXPUNGE_DATABASE_URL": f"sqlite:///{folder / 'bench.db'}",
    }
    sys.path.insert(0, str(ROOT))
    models = prepare(folder)
    port = _free_port()
    command = ["-m", "uvicorn", "--factory", "service.app:create_app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen([sys.executable, *command, "--no-access-log"], cwd=ROOT)
    try:
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=10.0) as http:
            _wait(http)
            run(http, models, rate=rate, count=int(rate * 2))  # connections, caches, imports
            return run(http, models, rate=rate, count=int(rate * seconds))
    finally:
        server.terminate()
        server.wait(timeout=20)


def prepare(folder: Path) -> list[str]:
    """Migrate, and register a hundred models as rows, of a dataset that is a real file; their own files are of no matter."""
    from service import db, migrate
    from service.tables import Dataset, Model, ModelVersion, new_id

    migrate.upgrade()
    at, ids = datetime.now(UTC), []
    names = [f"class {k}" for k in range(CLASSES)]
    shared = {"created_at": at, "created_by": "user:local"}
    file, labels = folder / "bench.npz", np.repeat(np.arange(CLASSES), HELD_OUT + 1)
    np.savez(file, images=np.zeros((len(labels), 8, 8), np.uint8), labels=labels)
    with db.transaction() as session:
        dataset = Dataset(
            id=new_id("dset"), name="d", format="npz", location=str(folder), class_names=names, digest="0" * 64,
            held_out_ids=[str(k) for k in range(len(labels)) if k % (HELD_OUT + 1)],
            files=[{"path": file.name, "size": file.stat().st_size, "sha256": "0" * 64}], **shared,
        )  # fmt: skip
        session.add(dataset)
        session.flush()
        for number in range(MODELS):
            model = Model(
                id=new_id("mdl"), name=str(number), family="ddpm", dataset_id=dataset.id, class_names=names,
                current_version=1, **shared,
            )  # fmt: skip
            session.add(model)
            session.flush()
            session.add(
                ModelVersion(
                    id=new_id("mver"), model_id=model.id, number=1, location="/nowhere", files=[], digest="0" * 64,
                    forgotten_classes=[], created_at=at,
                )
            )  # fmt: skip
            ids.append(model.id)
    db.reset()
    return ids


_asked: dict[str, int] = {}


def run(http: httpx2.Client, models: list[str], *, rate: float, count: int) -> list[Sample]:
    """Send `count` requests on schedule. Each model is asked for its classes in turn, so that no request is a duplicate."""
    start = time.perf_counter() + 0.2
    lock = threading.Lock()

    def send(number: int) -> Sample:
        due = start + number / rate
        model = models[number % len(models)]
        with lock:
            index = _asked[model] = _asked.get(model, -1) + 1
        time.sleep(max(0.0, due - time.perf_counter()))
        body = {"model_id": model, "forget": {"classes": [index]}, "reason": "benchmark", "metadata": {"n": number}}
        try:
            status = http.post("/unlearn-requests", json=body).status_code
        except httpx2.HTTPError:
            status = 0
        return Sample(time.perf_counter() - due, status)

    with ThreadPoolExecutor(max_workers=CONNECTIONS) as pool:
        return list(pool.map(send, range(count)))


def _summary(samples: list[Sample], rate: float) -> dict[str, object]:
    times = sorted(s.seconds * 1000 for s in samples)
    failed = sum(s.status != 202 for s in samples)
    p50, p90, p99 = (round(times[min(len(times) - 1, int(len(times) * q))], 2) for q in (0.50, 0.90, 0.99))
    return {
        "requests": len(samples),
        "rate_per_second": rate,
        "models": MODELS,
        "failed": failed,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "max_ms": round(times[-1], 2),
        "passed": failed == 0 and p99 < TARGET_P99_MS,
    }


def _print_table(result: dict[str, object]) -> None:
    for name, value in result.items():
        print(f"{name:<18} {value}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(http: httpx2.Client) -> None:
    for _ in range(200):
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not become ready within 20 s")


if __name__ == "__main__":
    sys.exit(main())
