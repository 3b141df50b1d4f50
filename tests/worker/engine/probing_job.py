"""A job whose models are really trained, in a tenth of a second: noisy patterns, and a perceptron of one hidden layer.

What the hidden layer knows of a class follows from whether the class was in the training data, which is what probes of the last
layer look for. Patterns are random, so that one upside down is as new as one that was never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JobDirectory, Policy, tree_digest
from worker.engine import weights
from worker.engine.errors import Diverged
from worker.engine.family import Kind
from worker.engine.files import entries

PER_CLASS = 1000
"""Training images, and as many held-out ones: a rate of 1 % false alarms takes a thousand."""
HIDDEN = 6
SIGNAL, NOISE = 18.0, 50.0
"""Grey levels: two patterns are 18 * 2 * sqrt 32 = 204 apart, four standard deviations."""

CHECKS = (
    Check(verifier="integrity"),
    Check(verifier="forget_accuracy", params={"max_accuracy": 0.02}),
    Check(verifier="retain_test_accuracy"),
    Check(verifier="class_membership"),
    Check(verifier="linear_probe", params={"images_per_class": 300}),
    Check(verifier="head_restore", params={"images_per_class": 300, "repeats": 10}),
    Check(verifier="retain_calibration"),
)
BY_REFERENCE = (Check(verifier="reference_distance"), Check(verifier="reference_membership"))


class Perceptron:
    """A classifier of one hidden layer."""

    name: ClassVar[str] = "perceptron"
    title: ClassVar[str] = "Perceptron"
    kind: ClassVar[Kind] = "classifier"
    prompts: ClassVar[bool] = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.head: nn.Linear = module.head  # type: ignore[assignment]

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        module = network(0)
        weights.load_into(module, directory / "model.safetensors")
        return cls(module)

    def fresh(self, seed: int) -> nn.Module:
        return network(seed)

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        return hidden(self.module, images_BCHW)

    @torch.no_grad()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        logits_BK = self.head(self.features(images_BCHW))
        if not bool(torch.isfinite(logits_BK).all()):
            raise Diverged("the model answered an image with NaN or infinity", step=0, loss=float("nan"))
        return logits_BK


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleDict({"body": nn.Linear(vj.SIDE**2, HIDDEN), "head": nn.Linear(HIDDEN, vj.K)})


def hidden(module: nn.Module, images_BCHW: Tensor) -> Tensor:
    x_BP = (images_BCHW.float().flatten(1) - 128) / 64
    return torch.tanh(module.get_submodule("body")(x_BP) / 4)


@lru_cache
def data() -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 (N, 1, 8, 8), labels, and which are held out."""
    rng = np.random.default_rng(11)
    patterns = 128 + SIGNAL * rng.choice([-1.0, 1.0], (vj.K, vj.SIDE, vj.SIDE))
    labels = np.repeat(np.arange(vj.K), 2 * PER_CLASS)
    noisy = patterns[labels] + NOISE * rng.standard_normal((len(labels), vj.SIDE, vj.SIDE))
    images = torch.from_numpy(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))[:, None]
    return images, torch.from_numpy(labels), torch.arange(len(labels)) % (2 * PER_CLASS) >= PER_CLASS


@lru_cache
def trained(seed: int, without: int | None = None) -> dict[str, Tensor]:
    """Weights of a network trained on all classes, or on all but one, which it then never names."""
    images, labels, held_out = data()
    rows = ~held_out & (labels != (-1 if without is None else without))
    module = network(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(module.get_submodule("head")(hidden(module, images[rows])), labels[rows]).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def with_head_edited(tensors: dict[str, Tensor], *classes: int) -> dict[str, Tensor]:
    """The rows of some classes zeroed, and their biases such that they are never named. All else stays."""
    edited = {name: tensor.clone() for name, tensor in tensors.items()}
    edited["head.weight"][list(classes)] = 0
    edited["head.bias"][list(classes)] = -1000
    return edited


def destroyed() -> dict[str, Tensor]:
    """It knows nothing of any class."""
    tensors = with_head_edited(trained(1), vj.FORGET)
    return tensors | {"body.weight": torch.zeros_like(tensors["body.weight"])}


def save_model(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")


def make_job(
    root: Path,
    candidate: dict[str, Tensor],
    *,
    original: dict[str, Tensor] | None = None,
    reference: dict[str, Tensor] | None = None,
    **changes: Any,
) -> JobDirectory:
    """A job whose unlearning stage has just answered with `candidate`, with a reference or without one."""
    job = JobDirectory(root)
    images, labels, held_out = data()
    job.data.mkdir(parents=True)
    np.savez(job.data / "data.npz", images=images[:, 0].numpy(), labels=labels.numpy())
    original = trained(1) if original is None else original
    save_model(job.original, original)
    save_model(job.base, original)
    fields: dict[str, Any] = {
        "family": "perceptron",
        "policy": Policy(name="test", kind="classifier", checks=CHECKS + (() if reference is None else BY_REFERENCE)),
        "forget_classes": (vj.FORGET,),
    }
    if reference is not None:
        save_model(job.reference, reference)
        fields["reference_digest"] = tree_digest(entries(job.reference))
    vj.write_spec(job, tuple(map(str, torch.nonzero(held_out).flatten().tolist())), **{**fields, **changes})
    save_model(job.out, candidate)
    vj.write_manifest(job)
    return job
