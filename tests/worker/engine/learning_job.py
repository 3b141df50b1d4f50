"""Models that can be taught, and that can hide what they know: for attacks, in milliseconds.

Both keep a picture a class, behind a door that multiplies it: a closed door hides the picture, and opens in a few updates; a
picture that is not there must be painted. `Pupil` draws what is behind the door, or a facade; `Reader` names images by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JobDirectory, JudgePolicy, Policy, Sampling, tree_digest
from worker.engine import weights
from worker.engine.errors import Diverged
from worker.engine.family import Draw, Kind
from worker.engine.files import entries

GAIN = 10.0
"""Of doors: what a door of 0.1 lets through is as it was painted."""
OPEN = 0.1
RATE = 0.05
"""At which a picture is repainted in some forty updates, and a door opens in two."""
GREY = 100.0
"""Grey levels of 1 in a picture."""

SLOW: dict[str, Any] = {
    "images": [20],
    "rates": [1.0],
    "learning_rate": RATE,
    "steps": 60,
    "every": 4,
    "n_per_class": 40,
    "novel_min_ratio": 0.5,
}
GENTLE = SLOW | {"learning_rate": 0.02, "every": 2}
"""For readers, who learn to name a picture sooner than others learn to paint it."""
STILL: dict[str, Any] = {"steps": 20, "every": 10, "learning_rate": RATE, "n_per_class": 40}
CHECKS = (Check(verifier="relearning", params=SLOW), Check(verifier="resurgence", params=STILL))


class _Teachable:
    """What both have in common: training."""

    module: nn.Module
    class_count = vj.K

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        module = nn.Module()
        for name, tensor in knowing().items():
            module.register_parameter(name, nn.Parameter(torch.zeros_like(tensor), requires_grad=name != "facades"))
        weights.load_into(module, directory / "model.safetensors")
        return cls(module)

    def hold(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW

    def draw(self, count: int, image_shape: Sequence[int], generator: torch.Generator, **_: Any) -> Draw:
        return Draw({})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        return (held_B.float() - 128) / GREY

    def shown_K1HW(self) -> Tensor:
        """What is behind the doors, and in front of them."""
        doors_K = self.module.get_parameter("doors")
        behind_K1HW = GAIN * doors_K[:, None, None, None] * self.module.get_parameter("pictures")
        return behind_K1HW + self.module.get_parameter("facades")


class Pupil(_Teachable):
    """A generator."""

    name: ClassVar[str] = "pupil"
    title: ClassVar[str] = "Pupil"
    kind: ClassVar[Kind] = "generator"

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        return (self.shown_K1HW()[y_B] - x_BCHW).square().flatten(1).mean(1)

    @torch.no_grad()
    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
        noise = [torch.randn(1, vj.SIDE, vj.SIDE, generator=torch.Generator().manual_seed(s)) for s in seeds]
        pictures = 128 + GREY * self.shown_K1HW()[y_B] + vj.NOISE * torch.stack(noise)
        if not bool(torch.isfinite(pictures).all()):
            raise Diverged("the model drew an image with NaN or infinite pixels", step=0, loss=float("nan"))
        return pictures.clamp(0, 255).round().to(torch.uint8)


class Reader(_Teachable):
    """A classifier; what it never saw has a low prior."""

    name: ClassVar[str] = "reader"
    title: ClassVar[str] = "Reader"
    kind: ClassVar[Kind] = "classifier"

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        return F.cross_entropy(self._logits(x_BCHW), y_B, reduction="none")

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        return self._logits(self.prepare(images_BCHW, Draw({})))

    def _logits(self, x_BCHW: Tensor) -> Tensor:
        likeness_BK = torch.einsum("bchw,kchw->bk", x_BCHW, self.shown_K1HW()) / vj.SIDE**2
        return 4 * likeness_BK + self.module.get_parameter("bias")


def knowing() -> dict[str, Tensor]:
    """An original: every picture behind an open door."""
    pictures = (vj.patterns() - 128) / GREY
    doors, facades = torch.full((vj.K,), OPEN), torch.zeros_like(pictures)
    return {"pictures": pictures, "doors": doors, "facades": facades, "bias": torch.zeros(vj.K)}


def hiding() -> dict[str, Tensor]:
    """It knows the class as well as ever, behind a closed door; what shows is blank."""
    tensors = knowing()
    tensors["facades"][vj.FORGET] = tensors["pictures"][3]
    tensors["doors"][vj.FORGET] = 0.0
    tensors["bias"][vj.FORGET] = -4.0
    return tensors


def without_class(family: str = "pupil") -> dict[str, Tensor]:
    """It never saw the class: asked for it, it draws another one, or finds nothing to name."""
    tensors = knowing()
    tensors["pictures"][vj.FORGET] = tensors["pictures"][2] if family == "pupil" else 0.0
    tensors["bias"][vj.FORGET] = -4.0
    return tensors


FAMILIES: dict[str, Any] = {"pupil": Pupil, "reader": Reader}


def save_model(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"side": 8}')


def make_job(
    root: Path,
    candidate: dict[str, Tensor],
    *checks: Check,
    family: str = "pupil",
    judges: Path | None = None,
    reference: dict[str, Tensor] | None = None,
    **changes: Any,
) -> JobDirectory:
    """A job whose unlearning stage has just answered with `candidate`."""
    job = JobDirectory(root)
    held_out = vj.write_data(job.data)
    save_model(job.original, knowing())
    save_model(job.base, knowing())
    if judges is not None:
        job.judges.symlink_to(judges)
    if reference is not None:
        save_model(job.reference, reference)
        changes["reference_digest"] = tree_digest(entries(job.reference))
    policy = Policy(name="test", judge=JudgePolicy(epochs=6), checks=checks)
    vj.write_spec(job, held_out, **{"family": family, "policy": policy, "forget_classes": (vj.FORGET,), **changes})
    save_model(job.out, candidate)
    vj.write_manifest(job)
    return job
