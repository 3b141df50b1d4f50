"""A job directory that the unlearning stage can work on in a second: four classes of striped images and a tiny UNet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from worker.contract import Check, DatasetSpec, JobDirectory, Policy, Spec, tree_digest
from worker.engine import registry
from worker.engine.__main__ import main
from worker.engine.data import load_dataset
from worker.engine.distributed import Ranks
from worker.engine.events import Events
from worker.engine.files import entries
from worker.engine.method import Method
from worker.engine.unlearn import make_run

NAMES = ("rows", "columns", "diagonal", "blank")
SIDE = 8
ONE_RANK = Ranks(rank=0, world=1, device=torch.device("cpu"))
FAST = {
    "sfron": {"iterations": 6, "batch_size": 8, "fisher_samples": 16, "fisher_batch_size": 4},
    "gradient_ascent": {"iterations": 6, "batch_size": 8},
}
"""Parameters that make a run of a method short; a method that is missing here runs with 6 iterations."""
ROOT = Path(__file__).parents[3]


def params_of(method: str) -> dict[str, object]:
    """Short-run parameters of any method."""
    return dict(FAST.get(method, {"iterations": 6}))


def tiny_unet(rows: int = len(NAMES) + 1, channels: int = 1) -> UNet2DModel:
    """About 17,000 parameters, seeded."""
    torch.manual_seed(3)
    return UNet2DModel(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=rows,
    )


def striped(per_class: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N,8,8] and labels [N]; class k has its own pattern, an image its own noise."""
    noise = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    patterns = (y % 2, x % 2, (x + y) % 3 == 0, np.zeros_like(x))
    labels = np.repeat(np.arange(len(NAMES)), per_class)
    images = np.stack([200 * patterns[k] for k in labels]) + noise.integers(0, 50, (len(labels), SIDE, SIDE))
    return images.astype(np.uint8), labels.astype(np.int64)


def write_model(directory: Path, unet: UNet2DModel | None = None) -> None:
    """A plain diffusers folder."""
    (unet or tiny_unet()).save_pretrained(directory)
    DDPMScheduler().save_pretrained(directory)


def make_spec(job: JobDirectory, **changes: object) -> Spec:
    """A spec for what is in the job directory now."""
    base = tree_digest(entries(job.base))
    wanted: dict[str, object] = {
        "request_id": "r",
        "family": "ddpm",
        "method": "sfron",
        "params": params_of(str(changes.get("method", "sfron"))),
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
    images, labels = striped()
    job.data.mkdir(parents=True)
    np.savez(job.data / "data.npz", images=images, labels=labels)
    write_model(job.base)
    write_spec(job, **changes)
    return job


def write_spec(job: JobDirectory, **changes: object) -> Spec:
    """Write spec.json anew."""
    spec = make_spec(job, **changes)
    job.spec.write_text(spec.model_dump_json())
    return spec


def begin(job: JobDirectory, ranks: Ranks = ONE_RANK) -> Method:
    """The job's method at iteration 0, prepared; `.run` is not part of the protocol, so tests keep to `step`."""
    spec = job.read_spec()
    family = registry.families()[spec.family].load(job.base, class_count=len(spec.class_names), device=ranks.device)
    run = make_run(spec, family, load_dataset(job, spec), ranks, Events(job.events, "test", speaks=False))
    method_class = registry.methods()[spec.method]
    method = method_class.begin(method_class.Params.model_validate(spec.params), run)
    method.prepare()
    return method


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
