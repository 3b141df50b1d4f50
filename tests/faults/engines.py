"""Which engine a job gets: the fake one, real ranks that only count, or the real engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from worker.conductor import launch
from worker.contract import JobDirectory

FAKE = Path(__file__).with_name("quick_engine.py")


def engine(stage: launch.Stage, job: JobDirectory, ranks: int) -> list[str]:
    """The command for a stage. The job's metadata are not the engine's to see, so its parameters and its model say which."""
    spec = json.loads(job.spec.read_text())
    if stage == "unlearn" and spec["params"].get("ranks"):
        return torchrun("tests.faults.ranks", job, int(spec["params"]["ranks"]))
    if stage == "unlearn" and is_real(spec):
        return launch.torchrun(stage, job, 1)
    return [sys.executable, "-S", str(FAKE), stage, str(job.root)]


def is_real(spec: dict[str, Any]) -> bool:
    """A model of four classes is the tiny network, which the real engine trains. Only its verdict is the fake judge's."""
    return len(spec["class_names"]) == 4


def torchrun(module: str, job: JobDirectory, ranks: int) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "0",
        "--log-dir", str(job.root / "agent"), "-m", module, str(job.root),
    ]  # fmt: skip
