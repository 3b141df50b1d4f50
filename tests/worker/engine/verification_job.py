"""A job directory that verification can work on in a second: striped images, and a model that paints what it stores.

`Painter` is a whole family: its saved safetensors hold one picture a class, and a sample is that picture with noise from the
image's own seed. So a test decides exactly what a saved model draws. Its pictures are all that it can draw: another label is
one of them, learned as a mixture, and an image that it is to finish becomes the one to which it is nearest, or the label's
where too little is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.contract import (
    Check,
    DatasetSpec,
    Environment,
    JobDirectory,
    JudgePolicy,
    Manifest,
    Policy,
    Sampling,
    Spec,
    document_digest,
    tree_digest,
)
from worker.engine import registry, verify, weights
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged
from worker.engine.family import Draw, Kind, Start
from worker.engine.files import entries, write_document

K, SIDE, TRAIN, HELD_OUT = 4, 8, 40, 50
"""50 held-out images of each of 3 retained classes: 150, and the feature distance asks for 4 x 32 = 128."""
NAMES = ("rows", "columns", "diagonal", "blank")
FORGET = 1
LOST = 0.85
"""The depth from which on nothing is left of an image that is to be finished."""
NOISE = 20.0
"""Grey levels; the patterns differ by 200, so they stay recognisable."""

CHECKS = (
    Check(verifier="integrity"),
    Check(verifier="forget_rate", params={"n_per_class": 59, "max_rate": 0.05}),
    Check(verifier="retain_accuracy", params={"n_per_class": 62, "max_drop": 0.02}),
    Check(verifier="feature_distance", params={"n_per_class": 62, "resamples": 100}),
)
"""The fewest samples that can pass: 0 of 59 hits bound a rate by 0.0495; 0 of 186 changed pairs bound a drop by 0.0197."""

PROBES = (
    Check(verifier="label_inversion", params={"n_per_class": 62, "steps": 60, "restarts": 2}),
    Check(verifier="sdedit", params={"n_per_class": 30}),
    Check(verifier="compression", params={"n_per_class": 62, "report": ["int4"]}),
    Check(verifier="side_channels"),
    Check(verifier="diffusion_membership", params={"max_auc": 0.7, "max_true_alarms": 0.5, "resamples": 200}),
)
"""As small as they can be on this data."""

EFFICACY = (
    Check(verifier="forget_confidence", params={"n_per_class": 100, "max_probability": 0.1}),
    Check(verifier="forget_distance", params={"n_per_class": 64, "resamples": 100}),
    Check(verifier="leakage", params={"n_null": 150, "n_per_label": 62, "n_blend": 62}),
    Check(verifier="setting_sweep", params={"n_per_setting": 70}),
    Check(verifier="form_of_forgetting", params={"n_per_class": 59}),
    Check(verifier="retain_coverage", params={"n_per_class": 62}),
    Check(verifier="retain_drift", params={"n_per_class": 62}),
)
"""The other checks of the second tier, of hardly more samples."""


class Painter:
    """A generator that is what it stores."""

    name: ClassVar[str] = "painter"
    title: ClassVar[str] = "Painter"
    kind: ClassVar[Kind] = "generator"

    ignores: ClassVar[frozenset[str]] = frozenset()
    timesteps = 1000
    prompts: ClassVar[bool] = False
    null_label = K
    label_count = K + 1

    def __init__(self, module: nn.Module, rows_MK: Tensor | None = None) -> None:
        self.module = module
        self.class_count = K
        self.rows_MK = rows_MK

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        module = nn.Module()
        module.register_parameter("pictures", nn.Parameter(torch.zeros(len(labels), 1, SIDE, SIDE)))
        weights.load_into(module, directory / "model.safetensors")
        return cls(module)

    @torch.no_grad()
    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
        noise = [torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds]
        # Without a label any of the pictures, as the noise has it.
        y_B = torch.where(y_B == K, torch.tensor([seed % K for seed in seeds]), y_B)
        pictures = self.drawn(y_B, sharp=True)
        if start is not None and start.depth < LOST:
            known = self.module.get_parameter("pictures")
            apart_BK = (start.images_BCHW[:, None].float() - known).square().flatten(2).mean(dim=2)
            pictures = known[apart_BK.argmin(dim=1)]
        if not bool(torch.isfinite(pictures).all()):
            raise Diverged("the model drew an image with NaN or infinity", step=0, loss=float("nan"))
        return (pictures + NOISE * torch.stack(noise)).clamp(0, 255).round().to(torch.uint8)

    def begins_at(self, depth: float, sampling: Sampling) -> float:
        return depth

    def conditioning(self, y_B: Tensor) -> Tensor:
        return torch.cat([8 * torch.eye(K), torch.zeros(1, K)])[y_B]

    def with_labels(self, rows_MX: Tensor) -> Self:
        return type(self)(self.module, rows_MX)

    def drawn(self, y_B: Tensor, *, sharp: bool = False) -> Tensor:
        """(B, 1, H, W): the picture of a label; of one of others' a mixture, or where it is to be sharp most of it."""
        known = self.module.get_parameter("pictures")
        if self.rows_MK is None:
            return known[y_B]
        mixed_MCHW = torch.einsum("mk,kchw->mchw", self.rows_MK.softmax(dim=1), known)
        return (known[self.rows_MK.argmax(dim=1)] if sharp else mixed_MCHW)[y_B - self.label_count]

    def hold(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.float()

    def draw(self, count: int, shape: Sequence[int], generator: torch.Generator, *, label_drop: float) -> Draw:
        return Draw({"t": torch.zeros(count), "eps": torch.randn(count, *shape, generator=generator)})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        return held_B

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw) -> Tensor:
        return ((self.drawn(y_B) - x_BCHW) / 255).square().flatten(1).mean(dim=1)


def patterns() -> Tensor:
    """(K, 1, 8, 8) float32 grey levels: rows, columns, a diagonal, nothing."""
    i = torch.arange(SIDE)
    rows, columns = (i[:, None] % 2).expand(SIDE, SIDE), (i[None, :] % 2).expand(SIDE, SIDE)
    diagonal = ((i[:, None] - i[None, :]).abs() <= 1).long()
    return 25 + 200.0 * torch.stack([rows, columns, diagonal, torch.zeros(SIDE, SIDE).long()])[:, None].float()


def forgotten_patterns() -> Tensor:
    """What a good result draws: the forgotten class has become the diagonal, all others are as before."""
    pictures = patterns()
    pictures[FORGET] = pictures[2]
    return pictures


def save_model(folder: Path, pictures: Tensor, *, metadata: dict[str, str] | None = None, **more: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"pictures": pictures, **more}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
    (folder / "config.json").write_text('{"side": 8}')


def write_data(folder: Path) -> tuple[str, ...]:
    """The dataset; returns the held-out ids."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), TRAIN + HELD_OUT)
    noisy = patterns().numpy()[labels, 0] + NOISE * rng.standard_normal((len(labels), SIDE, SIDE))
    np.savez(folder / "data.npz", images=np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels=labels)
    return tuple(str(i) for i in range(len(labels)) if i % (TRAIN + HELD_OUT) >= TRAIN)


def make_job(
    root: Path, candidate: Tensor, *, parent: Tensor | None = None, mounted: Path | None = None, **changes: Any
) -> JobDirectory:
    """A job whose unlearning stage has just answered with `candidate`; `mounted` has the networks of published figures."""
    job = JobDirectory(root)
    if mounted is not None:
        job.root.mkdir(parents=True, exist_ok=True)
        job.metric_weights.symlink_to(mounted)
        changes = {"metric_weights_digest": tree_digest(entries(mounted)), **changes}
    save_model(job.original, patterns())
    save_model(job.base, patterns() if parent is None else parent)
    held_out = write_data(job.data)
    write_spec(job, held_out, **{"forget_classes": (FORGET,), **changes})
    save_model(job.out, candidate)
    write_manifest(job)
    return job


def write_spec(job: JobDirectory, held_out: tuple[str, ...], **changes: Any) -> None:
    """The spec for what lies in the job directory now."""
    fields: dict[str, Any] = {
        "request_id": "request",
        "family": "painter",
        "method": "none",
        "seed": 1,
        "verification_seed": 7,
        "class_names": NAMES,
        "base_digest": tree_digest(entries(job.base)),
        "original_digest": tree_digest(entries(job.original)),
        "dataset": DatasetSpec(format="npz", digest=tree_digest(entries(job.data)), held_out_ids=held_out),
        "policy": Policy(name="test", judge=JudgePolicy(epochs=6), checks=CHECKS),
    }
    write_document(job.spec, Spec(**{**fields, **changes}))


def write_manifest(job: JobDirectory, **changes: Any) -> None:
    """The manifest of what lies in `out/` now."""
    fields: dict[str, Any] = {
        "spec_digest": document_digest(job.read_spec()),
        "files": entries(job.out),
        "effective_params": {},
        "iterations_completed": 5,
        "iterations_total": 5,
        "seconds_prepare": 0,
        "seconds_unlearn": 0,
        "peak_memory_mb": 0,
        "environment": Environment(code_version="0", python="3", torch="2", device="cpu", ranks=1, threads=1),
    }
    write_document(job.manifest, Manifest(**{**fields, **changes}))


def verify_on_rank(rank: int, root: str, port: int) -> None:
    """One of two gloo ranks; writes the report that it returns to `rank-N.json`. Here, so that a spawned process finds it."""
    registry.families = lambda: {"painter": Painter}  # type: ignore[assignment,dict-item]
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    report = verify.run(JobDirectory(root), Ranks(rank, 2, torch.device("cpu")))
    (Path(root) / f"rank-{rank}.json").write_text(report.model_dump_json())
    dist.destroy_process_group()
