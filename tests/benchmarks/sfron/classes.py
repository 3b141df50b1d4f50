"""ResNet-20 on CIFAR-10: the public weights adapted to the JPEG images, then every class forgotten in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.sfron.cifar import CLASSES, MEAN, STD, Cifar, write_resnet20
from tests.benchmarks.sfron.jobs import Subject, device, make_job, run_unlearning, save_npz
from worker.engine import resnet
from worker.engine.families.classifier import ImageClassifier
from worker.engine.family import Augment
from worker.engine.statistics import paired_drop_upper, upper_bound

ADAPT_SEED = 7
ADAPT_EPOCHS = 2
BATCH = 128


def load(folder: Path, on: str = "cpu") -> ImageClassifier:
    """A model folder of ten classes."""
    return ImageClassifier.load(folder, labels=CLASSES, device=torch.device(on))


def tensors(data: Cifar) -> tuple[Tensor, Tensor, Tensor]:
    """images uint8 (N, C, H, W), labels, held out."""
    images_NCHW = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
    return images_NCHW, torch.from_numpy(data.labels), torch.from_numpy(data.held_out)


def train(
    model: ImageClassifier,
    data: Cifar,
    *,
    epochs: int,
    rate: float,
    seed: int,
    weight_decay: float = 5e-4,
    augment: Augment = "crop_flip",
) -> None:
    """Plain training, in place: SGD with momentum, one cycle down to zero, trained BatchNorm."""
    images_NCHW, labels_N, held_N = tensors(data)
    train_N = torch.nonzero(~held_N).squeeze(1)
    generator = torch.Generator().manual_seed(seed)
    module = model.module.train()
    steps = epochs * (len(train_N) // BATCH)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    held_NCHW = model.hold(images_NCHW)
    for _ in range(epochs):
        order_N = train_N[torch.randperm(len(train_N), generator=generator)]
        for index_B in order_N[: len(order_N) // BATCH * BATCH].split(BATCH):
            draw = model.draw(BATCH, images_NCHW.shape[1:], generator, label_drop=0.0, augment=augment).to(model.device)
            x_BCHW, y_B = model.prepare(held_NCHW[index_B.to(model.device)], draw), labels_N[index_B].to(model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                loss = model.loss(x_BCHW, y_B, draw).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()


def logits(model: ImageClassifier, data: Cifar, *, held_out: bool = True) -> tuple[Tensor, Tensor]:
    """(N, K) answers for the test (or the training) images, and their labels."""
    images_NCHW, labels_N, held_N = tensors(data)
    rows = held_N if held_out else ~held_N
    return model.logits(images_NCHW[rows]), labels_N[rows]


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Top-1, 0-1."""
    return float((logits_NK.argmax(1) == labels_N).float().mean())


def original(root: Path, data: Cifar, *, epochs: int = ADAPT_EPOCHS, on: str = "cpu") -> Subject:
    """The adapted model and the data, as they are registered. Raises: DataMissing."""
    write_resnet20(root / "public")
    return registered(root, data, load(root / "public", on), epochs=epochs, rate=0.01)


def resnet18(root: Path, data: Cifar, *, epochs: int, on: str = "cpu") -> Subject:
    """A ResNet-18 with a 3x3 stem, from fresh weights by the one recipe, and the data, as they are registered."""
    (root / "public").mkdir(parents=True)
    config = resnet.Config(depth=18, class_count=len(CLASSES), mean=MEAN, std=STD)
    (root / "public" / "config.json").write_text(config.model_dump_json())
    torch.manual_seed(ADAPT_SEED)
    save_file(resnet.ResNet(config).state_dict(), root / "public" / "model.safetensors")
    return registered(root, data, load(root / "public", on), epochs=epochs, rate=0.1)


def registered(root: Path, data: Cifar, model: ImageClassifier, *, epochs: int, rate: float) -> Subject:
    """A model of the folder `public`, after training, and the data."""
    train(model, data, epochs=epochs, rate=rate, seed=ADAPT_SEED)
    model.save(root / "model", root / "public")
    save_npz(root / "data", data.images, data.labels, data.ids)
    held = tuple(data.ids[data.held_out].tolist())
    return Subject("classifier", root / "model", root / "data", CLASSES, held, root / "shared")


def forgetting_scores(before: ImageClassifier, after: ImageClassifier, data: Cifar, forgotten: int) -> dict[str, float]:
    """Test accuracy on the forgotten class, and what is lost on all others, pair by pair; with one-sided 95 % bounds."""
    (logits_NK, labels_N), (old_NK, _) = logits(after, data), logits(before, data)
    gone_N = labels_N == forgotten
    right_N, was_right_N = logits_NK.argmax(1) == labels_N, old_NK.argmax(1) == labels_N
    hits, n = int(right_N[gone_N].sum()), int(gone_N.sum())
    worse, better = int((was_right_N & ~right_N)[~gone_N].sum()), int((~was_right_N & right_N)[~gone_N].sum())
    kept = int((~gone_N).sum())
    return {
        "forget_accuracy": hits / n,
        "forget_upper95": upper_bound(hits, n),
        "retain_accuracy": accuracy(logits_NK[~gone_N], labels_N[~gone_N]),
        "retain_drop_points": 100 * (worse - better) / kept,
        "retain_drop_upper95_points": 100 * paired_drop_upper(worse, better, kept),
    }


def sample_scores(model: ImageClassifier, data: Cifar, forgotten: Tensor) -> dict[str, float]:
    """Accuracy on the items that `forgotten` (N,) marks, on all other training images, and on the test images."""
    images_NCHW, labels_N, held_N = tensors(data)
    parts = {"forget_accuracy": forgotten, "retain_accuracy": ~forgotten & ~held_N, "test_accuracy": held_N}
    return {name: accuracy(model.logits(images_NCHW[rows]), labels_N[rows]) for name, rows in parts.items()}


def measure(
    data: Cifar, classes: Sequence[int], seeds: Sequence[int], params: dict[str, Any], method: str = "sfron", on: str = "cpu"
) -> list[dict[str, Any]]:
    """One row a class and seed; the seconds are of the whole stage: loading, preparing, unlearning, saving."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = original(Path(folder) / "original", data, on=on)
        before = load(model.model, on)
        for seed in seeds:
            for k in classes:
                began = time.monotonic()
                job = make_job(Path(folder) / f"{seed}-{k}", model, method, params, seed=seed, forget_classes=(k,))
                manifest = run_unlearning(job, device(on))
                seconds = time.monotonic() - began
                scores = forgetting_scores(before, load(job.out, on), data, k)
                row = {
                    "class": CLASSES[k],
                    "seed": seed,
                    **scores,
                    "seconds": seconds,
                    "seconds_prepare": manifest.seconds_prepare,
                    "seconds_unlearn": manifest.seconds_unlearn,
                    "peak_memory_mb": manifest.peak_memory_mb,
                }
                rows.append(row)
                print(shown(row), flush=True)
    return rows


def shown(row: dict[str, Any]) -> str:
    """A row in one line."""
    return (
        f"{row['class']:<11} seed {row['seed']}: forgotten {row['forget_accuracy']:.3f} (≤ {row['forget_upper95']:.3f})  "
        f"retained {row['retain_accuracy']:.4f}, drop {row['retain_drop_points']:+.2f} "
        f"(≤ {row['retain_drop_upper95_points']:.2f}) points  {row['seconds']:.0f} s"
    )


def cross_entropy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """(N,) in float64."""
    return F.cross_entropy(logits_NK.double(), labels_N, reduction="none")
