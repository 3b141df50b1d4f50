"""Starting the engine: which command, in which environment, how many ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from service.config import Settings
from service.requests.leases import Lease
from worker.conductor.processes import FENCE, JOB
from worker.contract import JobDirectory

Stage = Literal["unlearn", "verify"]
Command = Callable[[Stage, JobDirectory, int], list[str]]
"""What to run for a stage of a job with so many ranks."""

PROJECT = Path(__file__).resolve().parents[2]
PASSED_ON = frozenset({"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT"})
PASSED_ON_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "MKL_", "KMP_", "CUBLAS_")
"""The engine sees these of our environment and nothing else: no database URL, no broker, no cloud credentials."""
TRACEPARENT = "TRACEPARENT"
LOG_NAME = "engine.log"
LOG_TAIL_BYTES = 8_192


def torchrun(stage: Stage, job: JobDirectory, ranks: int) -> list[str]:
    """The engine under torch's agent. One agent start is one try: what a restart means is decided here, not there."""
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "0", "--log-dir", str(job.root / "agent"),
        "-m", "worker.engine", stage, str(job.root),
    ]  # fmt: skip


def start(
    command: list[str], job: JobDirectory, lease: Lease, *, ranks: int, traceparent: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command that dies with this thread's process, in a session of its own, its output in the job's log.

    Call it from a thread that outlives the run: the kernel ties the child to the thread that forked it.
    """
    shim = [sys.executable, "-m", "worker.conductor.shim", str(os.getpid()), *command]
    with (job.root / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            shim,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(os.environ, lease, ranks=ranks, traceparent=traceparent),
            start_new_session=True,
        )


def environment(ours: Mapping[str, str], lease: Lease, *, ranks: int, traceparent: str | None = None) -> dict[str, str]:
    """What the engine may know: where Python and CUDA are, and which run it belongs to."""
    kept = {k: v for k, v in ours.items() if k in PASSED_ON or k.startswith(PASSED_ON_PREFIXES)}
    threads = ours.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // ranks))
    return {
        **kept,
        "PYTHONPATH": str(PROJECT),
        "PYTHONSAFEPATH": "1",  # `-m` puts the current folder first otherwise, and a job directory holds strangers' files
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        JOB: lease.request_id,
        FENCE: str(lease.fence),
        **({TRACEPARENT: traceparent} if traceparent else {}),
    }


def log_tail(job: JobDirectory) -> str:
    """The end of the engine's output, for people: bounded, printable, without the job's path."""
    path = job.root / LOG_NAME
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        text = log.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
    text = text.replace(str(job.root), "<job>")
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


# ---------------------------------------------------------------------------------------------------------------- ranks


def ranks_for(wanted: int | None, settings: Settings) -> int:
    """How many ranks a run gets: what it asked for, or all of this worker, within what the worker allows and has.

    Without a GPU a run gets one rank unless it asks for more; more ranks than processors would only wait for each other.
    """
    gpus = gpu_count()
    ranks = wanted or settings.ranks or gpus or 1
    if settings.ranks:
        ranks = min(ranks, settings.ranks)
    return max(1, min(ranks, gpus or os.cpu_count() or 1))


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """GPUs that the engine will see. Asks the driver's own tool, since importing torch here is what this room never does."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60, check=False)
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    chosen = [d for d in visible.split(",") if d.strip() and d.strip() != "-1"]
    return min(present, len(chosen))
