"""Ranks under torchrun that do what the engine's do at a boundary, with a number in place of a network.

    torchrun --nproc-per-node N -m tests.faults.ranks JOB

Each step is an all-reduce over gloo; a stop is agreed on by all ranks. `"unlearn": "early_exit"` is a bug that published half
a training once: ranks that end with 0 when they are told to stop. `"outlive": true` leaves out their death signal: the control.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from tests.faults import quick_engine as quick
from worker.engine.__main__ import die_with_parent


def main() -> int:
    job = Path(sys.argv[1])
    spec = json.loads((job / "spec.json").read_text())
    params = spec["params"]
    if not params.get("outlive"):
        die_with_parent()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    import torch

    from worker.engine import distributed

    ranks = distributed.start("cpu")
    total, seconds, resumed = int(params.get("steps", 20)), float(params.get("seconds", 2)), quick.last_step(job)
    counted = torch.zeros(1)
    for step in range(resumed + 1, total + 1):
        quick.note(step, resumed)
        counted += ranks.sum_(torch.ones(1)) / ranks.world
        time.sleep(seconds / total)
        stop = ranks.any(bool(asked))
        if ranks.first:
            quick.tell(job, "unlearning", step, total)
            if stop or (step % 5 == 0 and step < total):
                quick.leave_step(job, step)
        if stop:
            distributed.close(ranks)
            return quick.DONE if params.get("unlearn") == "early_exit" else quick.STOPPED
    if ranks.first:
        quick.leave_result(job, spec, done=resumed + int(counted), total=total, resumed=resumed)
    ranks.wait()
    distributed.close(ranks)
    return quick.DONE


if __name__ == "__main__":
    sys.exit(main())
