"""Job directories for measurements, and running the engine's real stages on them, in this process."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.contract import Check, DatasetSpec, JobDirectory, Manifest, Policy, Report, Spec, tree_digest
from worker.engine import distributed, unlearn, verify
from worker.engine.checkpoint import Cadence
from worker.engine.distributed import Ranks
from worker.engine.files import entries


@dataclass(frozen=True)
class Subject:
    """A model folder and the data it was trained on, registered once and used by many jobs."""

    family: str
    model: Path
    data: Path
    class_names: tuple[str, ...]
    held_out_ids: tuple[str, ...]
    shared: Path
    """Judges and Fisher tables that jobs hand on to each other, as a worker's do."""
    prompts: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)

    def digest(self, folder: Path) -> str:
        """Of a folder's files, computed once."""
        key = str(folder)
        if key not in self.digests:
            self.digests[key] = tree_digest(entries(folder))
        return self.digests[key]


def save_npz(folder: Path, images: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
    """The dataset of a job, uncompressed: reading it is not what is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", images=images, labels=labels, ids=ids)


def device(name: str = "cpu") -> Ranks:
    """One rank on a device; on a GPU with the reproducible kernels that a worker asks for."""
    return distributed.start("cuda") if torch.device(name).type == "cuda" else Ranks(0, 1, torch.device(name))


def settled(on: torch.device) -> float:
    """Seconds of a clock, once the device has done all that was asked of it."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.monotonic()


def fresh_peak(on: torch.device) -> None:
    """Let the next peak be of what comes next alone; a process on a CPU has only one, of its whole life."""
    if on.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(on)


@contextmanager
def any_kernel(on: torch.device) -> Iterator[None]:
    """Kernels that are fast rather than reproducible, for what is not the engine: the reference must not pay for its rule."""
    strict, lenient = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    searching = torch.backends.cudnn.benchmark
    if on.type == "cuda":
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        torch.backends.cudnn.benchmark = searching


def make_job(root: Path, subject: Subject, method: str, params: dict[str, Any], *, seed: int, policy: Policy | None = None,
             base: Path | None = None, keep_tables: bool = True, ranks: int = 1,
             **wish: Any) -> JobDirectory:  # fmt: skip
    """Lay out a job that forgets what `wish` says: forget_classes=(3,) or forget_samples=(…)."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    job, start = JobDirectory(root), base or subject.model
    job.base.symlink_to(start.resolve())
    job.original.symlink_to(subject.model.resolve())
    job.data.symlink_to(subject.data.resolve())
    if keep_tables:
        for name in ("judges", "fishers"):
            (subject.shared / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to((subject.shared / name).resolve())
    spec = Spec(
        request_id=root.name,
        family=subject.family,
        method=method,
        params=params,
        seed=seed,
        ranks=ranks,
        verification_seed=seed + 1_000_003,
        class_names=subject.class_names,
        prompts=subject.prompts,
        base_digest=subject.digest(start),
        original_digest=subject.digest(subject.model),
        dataset=DatasetSpec(format="npz", digest=subject.digest(subject.data), held_out_ids=subject.held_out_ids),
        policy=policy or Policy(name="none", checks=(Check(verifier="integrity"),)),
        **wish,
    )
    job.spec.write_text(spec.model_dump_json())
    return job


def run_unlearning(job: JobDirectory, ranks: Ranks) -> Manifest:
    """The real stage; no step checkpoints, which a benchmark's baseline does not write either."""
    fresh_peak(ranks.device)
    return unlearn.run(job, ranks, cadence=Cadence(10**9, math.inf), stop_asked=lambda: False)


def run_verification(job: JobDirectory, ranks: Ranks) -> Report:
    """The real gate."""
    return verify.run(job, ranks)
