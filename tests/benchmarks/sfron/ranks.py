"""Throughput of two ranks with one thread each over twice that of one rank with one thread.

torchrun --nproc-per-node 2 -m tests.benchmarks.sfron.ranks ITERATIONS
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.sfron.jobs import make_job
from tests.benchmarks.sfron.speed import small_subject
from worker.engine import distributed
from worker.engine.data import load_dataset
from worker.engine.events import Events
from worker.engine.unlearn import make_run, read_work
from worker.engine.waiting import WAITING

ROOT = Path(__file__).resolve().parents[3]
WARM_UP = 2
BATCH = 32


def seconds_a_step(iterations: int) -> float:
    """Median over iterations of one SFR-on iteration on the small UNet, on this rank among its peers."""
    ranks = distributed.start("cpu")
    torch.set_num_threads(1)  # two ranks are given all the cores there are
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = {"preset": "cifar10-ddpm", "iterations": iterations + WARM_UP, "batch_size": BATCH, "fisher_samples": BATCH}
        job = make_job(root / "job", small_subject(root), "sfron", params, seed=1, forget_classes=(3,), ranks=ranks.world)
        work = read_work(job, ranks)
        family = work.family.load(job.base, labels=work.spec.labels, device=ranks.device)
        events = Events(job.events, "bench", speaks=False)
        run = make_run(work, family, load_dataset(job, work.spec), ranks, events, cache=job.fishers)
        method = work.method(work.params, run)
        method.prepare()
        times = []
        for i in range(iterations + WARM_UP):
            ranks.wait()
            began = time.monotonic()
            method.step(i)
            ranks.wait()
            times.append(time.monotonic() - began)
    distributed.close(ranks)
    return statistics.median(times[WARM_UP:])


def _launch(world: int, iterations: int) -> float:
    module = [__spec__.name if __spec__ else __name__, str(iterations)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    env = {**WAITING, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *module]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure(iterations: int = 20, rounds: int = 3) -> float:
    """Efficiency: the same global batch, so the ratio of throughputs is that of seconds a step. Median over rounds."""
    pairs = [(_launch(1, iterations), _launch(2, iterations)) for _ in range(rounds)]
    for one, two in pairs:
        print(f"ranks: one {one:.3f} s a step, two {two:.3f} s, efficiency {one / (2 * two):.2f}", flush=True)
    return statistics.median(one / (2 * two) for one, two in pairs)


if __name__ == "__main__":
    found = seconds_a_step(int(sys.argv[1]))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"seconds": found}))
