"""The classifiers' side of `verification_job`: a model that names images by the pattern they are nearest to.

`Namer` is a whole family: its saved safetensors hold one pattern and one bias a class, and images that it remembers. So a test
decides exactly what a saved model answers: a bias of -1000 never names a class, and a remembered image is answered with more
certainty than an unseen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JobDirectory, Policy
from worker.engine import weights
from worker.engine.errors import Diverged
from worker.engine.family import Kind

SOFTNESS = 600.0
"""Divides squared distances, in squared grey levels a pixel; so soft that losses differ from image to image."""
CERTAINTY = 8.0
"""Multiplies the logits of a remembered image."""

FORGOTTEN_IDS = tuple(str(k * (vj.TRAIN + vj.HELD_OUT) + i) for k in range(vj.K) for i in range(25))
"""The first 25 training images of every class."""

CLASS_CHECKS = (
    Check(verifier="integrity"),
    Check(verifier="forget_accuracy", params={"max_accuracy": 0.06}),
    Check(verifier="retain_test_accuracy", params={"max_drop": 0.03}),
)
"""As strict as 50 held-out images a class allow: 0 of 50 hits bound a rate by 0.0582; 0 of 150 pairs a drop by 0.0243."""

SAMPLE_CHECKS = (
    Check(verifier="integrity"),
    Check(verifier="sample_membership", params={"max_auc": 0.6, "resamples": 200}),
    Check(verifier="retain_test_accuracy", params={"max_drop": 0.03}),
)
"""25 items and 50 unseen of each of 4 classes: a standard error of sqrt(76 / (12 * 25 * 50) / 4) = 0.0356; bounds of 0.559."""


class Namer:
    """A classifier that is what it stores."""

    name: ClassVar[str] = "namer"
    title: ClassVar[str] = "Namer"
    kind: ClassVar[Kind] = "classifier"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        module = nn.Module()
        for name, tensor in knowing().items():
            module.register_parameter(name, nn.Parameter(torch.zeros_like(tensor)))
        weights.load_into(module, directory / "model.safetensors")
        return cls(module)

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW, get = images_BCHW.float(), self.module.get_parameter
        distance_BK = (x_BCHW[:, None] - get("patterns")).square().mean(dim=(2, 3, 4))
        known_B = (x_BCHW[:, None] == get("memory")).flatten(2).all(dim=2).any(dim=1)
        logits_BK = -distance_BK / SOFTNESS * torch.where(known_B, CERTAINTY, 1.0)[:, None] + get("bias")
        if not bool(torch.isfinite(logits_BK).all()):
            raise Diverged("the model answered an image with NaN or infinity", step=0, loss=float("nan"))
        return logits_BK


def knowing(**changes: Tensor) -> dict[str, Tensor]:
    """An original: it names all four classes and remembers nothing."""
    tensors = {
        "patterns": (vj.patterns() - 128) / 8 + 128,  # pale, so that noise makes the answers uncertain
        "bias": torch.zeros(vj.K),
        "memory": torch.full((len(FORGOTTEN_IDS), 1, vj.SIDE, vj.SIDE), -1.0),
    }
    return tensors | changes


def without_class() -> dict[str, Tensor]:
    """What a good result answers: never the forgotten class."""
    return knowing(bias=torch.tensor([0.0, -1000.0, 0.0, 0.0]))


def remembering(data: Path) -> dict[str, Tensor]:
    """An original that has learned the forgotten samples by heart."""
    with np.load(data / "data.npz") as arrays:
        images = torch.from_numpy(arrays["images"][[int(i) for i in FORGOTTEN_IDS]])
    return knowing(memory=images[:, None].float())


def save_model(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"side": 8}')


def make_job(
    root: Path,
    candidate: dict[str, Tensor],
    *,
    samples: bool = False,
    original: dict[str, Tensor] | None = None,
    parent: dict[str, Tensor] | None = None,
    **changes: Any,
) -> JobDirectory:
    """A job whose unlearning stage has just answered with `candidate`; a request for the class, or for `samples`."""
    job = JobDirectory(root)
    held_out = vj.write_data(job.data)
    if original is None:
        original = remembering(job.data) if samples else knowing()
    save_model(job.original, original)
    save_model(job.base, original if parent is None else parent)
    checks = SAMPLE_CHECKS if samples else CLASS_CHECKS
    wish = {"forget_samples": FORGOTTEN_IDS} if samples else {"forget_classes": (vj.FORGET,)}
    fields = {"family": "namer", "policy": Policy(name="test", checks=checks), **wish, **changes}
    vj.write_spec(job, held_out, **fields)
    save_model(job.out, candidate)
    vj.write_manifest(job)
    return job
