"""A job directory that the unlearning stage can work on in a second: four classes of striped images and a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.worker.engine.tiny import NAMES, case, striped
from worker.contract import Check, DatasetSpec, JobDirectory, Policy, Spec, tree_digest
from worker.engine import registry
from worker.engine.__main__ import main
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.events import Events
from worker.engine.family import Draw
from worker.engine.files import entries
from worker.engine.method import Method
from worker.engine.run import Run
from worker.engine.unlearn import make_run, read_work

ITERATIONS = 6
ONE_RANK = Ranks(rank=0, world=1, device=torch.device("cpu"))
FAST: dict[str, dict[str, object]] = {
    "encoder_l2_epsilon": {"phase_one_share": 0.7, "phase_two_rate": 0.1, "learning_rate": 3e-4},
    "esd": {"learning_rate": 1e-4},
    "retrain": {"learning_rate": 1e-3},
    "salun": {"saliency_samples": 8, "saliency_batch_size": 4},
    "selective_amnesia": {"fisher_samples": 8, "fisher_batch_size": 4, "replay_per_class": 2, "replay_steps": 2},
    "sfron": {"fisher_samples": 8, "fisher_batch_size": 4, "saliency": "gamma"},
}
"""Parameters that make preparations short, steps long enough to be seen, phases two steps each, and a bound one that binds."""
PAIRS = [
    (name, family) for name, method in registry.methods().items() for family in method.families if family in registry.families()
]
"""Every method on every family that it can work on."""
ROOT = Path(__file__).parents[3]


def params_of(method: str, family: str = "ddpm") -> dict[str, object]:
    """Short-run parameters of any method on a family."""
    statistics = {"batch_norm": "frozen"} if family == "classifier" else {}
    return {"iterations": ITERATIONS, "batch_size": 8, "precision": "fp32", **statistics, **FAST.get(method, {})}


def _run(method: str, family: str, leave: str = "", **params: object) -> dict[str, object]:
    short = {key: value for key, value in params_of(method, family).items() if key != leave}
    return {"method": method, "family": family, "params": short | params}


SHARED: dict[str, object] = {"optimizer": "shared", "forget_loss": "ascent", "fisher": "batch", "fisher_clip": 1.0}

RUNS: dict[str, dict[str, object]] = {
    **{f"{method}-{family}": _run(method, family) for method, family in PAIRS},
    "sfron-ddpm-published": _run("sfron", "ddpm", **SHARED, loss_scale=64.0, alpha_decay="cosine", forget_label_drop=0.1),
    "sfron-classifier-published": _run("sfron", "classifier", **SHARED, algorithm="sgd", forget_every=2),
    "sfron-ddpm-per-sample": _run("sfron", "ddpm", "fisher_batch_size", fisher="per_sample"),
    "sfron-classifier-samples": _run("sfron", "classifier")
    | {"forget_classes": (), "forget_samples": ("1", "2", "14", "27", "40", "41")},
    "encoder_l2-mae-mean": _run("encoder_l2", "mae", target="mean_embedding", forget_batch_size=5),
    "encoder_l2-mae-neighbour": _run("encoder_l2", "mae", target="retain_neighbour"),
    "encoder_l2-mae-kept": _run("encoder_l2", "mae", target_masks=3),
    "encoder_l2-mae-proxy": _run("encoder_l2", "mae") | {"retain": {"classes": (0,), "proxy_classes": (3,), "real": 0.3}},
    "retain_label-mae-uneven": _run("retain_label", "mae", forget_batch_size=11),
    "encoder_l2_epsilon-mae-cosine": _run("encoder_l2_epsilon", "mae", decay="cosine", epsilon_ratio=0.1, forget_batch_size=5),
    "esd-stable_diffusion-generated": _run("esd", "stable_diffusion", inputs="generated", steps=5, scope="xattn"),
}
"""Changes of `make_job`: every pair as it is by default, and the modes of a method that do other work."""


def make_spec(job: JobDirectory, **changes: object) -> Spec:
    """A spec for what is in the job directory now."""
    base = tree_digest(entries(job.base))
    wanted: dict[str, object] = {
        "request_id": "r",
        "family": "ddpm",
        "method": "sfron",
        "params": params_of(str(changes.get("method", "sfron")), str(changes.get("family", "ddpm"))),
        "seed": 11,
        "verification_seed": 12,
        "class_names": NAMES,
        "forget_classes": (1,),
        "base_digest": base,
        "original_digest": base,
        "dataset": DatasetSpec(format="npz", digest=tree_digest(entries(job.data)), held_out_ids=("0", "12", "24", "36")),
        "policy": Policy(name="none", checks=(Check(verifier="integrity"),)),
    }
    return Spec.model_validate(wanted | changes)


def make_job(root: Path, **changes: object) -> JobDirectory:
    """Lay out base/, data/ and spec.json below `root`."""
    job = JobDirectory(root)
    subject = case(str(changes.get("family", "ddpm")))
    images, labels = striped(channels=subject.channels, side=subject.side)
    job.data.mkdir(parents=True)
    np.savez(job.data / "data.npz", images=images, labels=labels)
    subject.write(job.base)
    write_spec(job, **changes)
    return job


def write_spec(job: JobDirectory, **changes: object) -> Spec:
    """Write spec.json anew."""
    spec = make_spec(job, **changes)
    job.spec.write_text(spec.model_dump_json())
    return spec


def begin(job: JobDirectory, ranks: Ranks = ONE_RANK, *, prepare: bool = True) -> Method:
    """The job's method at iteration 0, prepared unless a loop is to do that; `.run` is no part of the protocol."""
    spec = job.read_spec()
    work = read_work(job, ranks)
    family = work.family.load(job.base, labels=spec.labels, device=ranks.device)
    events = Events(job.events, "test", speaks=False)
    run = make_run(work, family, load_dataset(job, spec), ranks, events, cache=job.fishers)
    method = work.method(work.params, run)
    if prepare:
        method.prepare()
    return method


def memory_for(rows: int, run: Run, patch: pytest.MonkeyPatch) -> list[int]:
    """Let the native loss of no more than so many rows fit; the rows of every pass that did."""
    loss, seen = run.family.loss, list[int]()

    def limited(x_BCHW: torch.Tensor, y_B: torch.Tensor, draw: Draw, **options: nn.Module) -> torch.Tensor:
        if len(y_B) > rows:
            raise torch.OutOfMemoryError(f"no memory for {len(y_B)} rows")
        seen.append(len(y_B))
        return loss(x_BCHW, y_B, draw, **options)

    patch.setattr(run.family, "loss", limited)
    return seen


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the folder's one safetensors file."""
    return load_file(next(folder.glob("*.safetensors")))


def start_engine(job: JobDirectory, *options: str, ranks: int = 1, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m worker.engine unlearn`, under torchrun when `ranks` > 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else ["-m"]
    command = [sys.executable, *launcher, "worker.engine", "unlearn", str(job.root), "--device", "cpu", *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_engine(job: JobDirectory, *options: str) -> int:
    """The exit status of a whole run of the command line, in this process (importing torch anew takes seconds).

    One thread, as in `start_engine`: sums over another number of threads round differently.
    """
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            return main(["unlearn", str(job.root), "--device", "cpu", *options])
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
