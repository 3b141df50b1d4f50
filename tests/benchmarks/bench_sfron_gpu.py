"""SFR-on on one NVIDIA H200: how much faster than the plain way, how well beside other methods, digits and CIFAR-10.

Run with `make bench-sfron-gpu` (every part is 8 minutes or less, 25 in all) or with QUICK=1. One part at a time:
`make bench-sfron-gpu ARGS='--only quality --keep DIR'`; `retrain` then finds the original of `quality` in DIR.
All but the digits need EXPUNGE_DATA. Prints rows and, as its last line, one JSON object.

`--device cpu --smoke` runs every line on tiny networks in minutes: to know that it works, not how well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worker.engine.waiting import WAITING

os.environ.update({**WAITING, **os.environ})  # before torch is loaded, as the engine's own entry does
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from tests.benchmarks import bench_sfron, told
from tests.benchmarks.sfron import cifar, classes, diffusion, speed
from worker.contract import JudgePolicy, Sampling

TARGETS: Mapping[str, tuple[float | None, str]] = {
    **{name: target for name, target in bench_sfron.TARGETS.items() if name != "two_rank_efficiency"},
    "ddpm_speedup": (10.0, "ge"),
    "classifier_speedup": (5.0, "ge"),
    "ddpm_seconds": (20.0, "le"),
    "classifier_seconds": (15.0, "le"),
    "quality_judge_accuracy": (None, "ge"),
    "quality_original_forget_rate": (None, "ge"),
    "quality_sfron_forget_upper95": (None, "le"),
    "quality_sfron_feature_ratio_upper95": (None, "le"),
}
PARTS = ("speed", "quality", "retrain", "digits", "cifar")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    per_class: int | None
    """Training images of each class; None: all."""
    rounds: int
    warm_steps: int
    epochs: int
    generation: speed.Generation
    classification: speed.Classification
    protocol: diffusion.Protocol


def full(on: torch.device, seconds: float) -> Size:
    """The published batch, loop and data; but the engine's Fisher information is of 512 images a class."""
    return Size(
        per_class=None,
        rounds=1,
        warm_steps=200,
        epochs=12,
        generation=speed.Generation(
            on, diffusion.published_unet, 2e-4, batch=128, engine={"fisher": "class_batch", "fisher_samples": 512}
        ),
        classification=speed.Classification(
            on, share=0.1, iterations=1500, alpha=25.0, trained_statistics=True, engine={"preset": "cifar10-resnet18"}
        ),
        protocol=diffusion.Protocol(diffusion.Recipe(seconds)),
    )


def quick(size: Size) -> Size:
    """A fifth of the data for speed, a quarter of the training, fewer samples."""
    recipe, protocol = size.protocol.recipe, size.protocol
    return replace(
        size,
        per_class=1000,
        epochs=3,
        classification=replace(size.classification, iterations=300),
        protocol=replace(protocol, recipe=replace(recipe, seconds=recipe.seconds / 4), forget_samples=200, retain_samples=80),
    )


def smoke(size: Size) -> Size:
    """Networks, data and loops so small that a CPU is done in minutes; the figures mean nothing."""
    generation, classification, protocol = size.generation, size.classification, size.protocol
    tiny = {"iterations": 3, "batch_size": 8}
    params = {name: {**given, **tiny} for name, given in protocol.params.items()}
    params["sfron"] |= {"fisher_samples": 8, "fisher_batch_size": 8}
    return replace(
        size,
        per_class=20,
        warm_steps=5,
        epochs=1,
        generation=replace(generation, unet=speed.small_unet, iterations=3, batch=8),
        classification=replace(classification, iterations=6, batch=8),
        protocol=replace(
            protocol,
            recipe=replace(protocol.recipe, seconds=min(protocol.recipe.seconds, 10.0), batch=32),
            unet=speed.small_unet,
            judge=JudgePolicy(epochs=2, min_accuracy=0.0),
            sampling=Sampling(steps=2, batch_size=64),
            forget_samples=16,
            retain_samples=16,
            params=params,
        ),
    )


def of_speed(data: cifar.Cifar, size: Size, on: torch.device) -> dict[str, Any]:
    """Both ways side by side, on the same device."""
    part = data.part(size.per_class) if size.per_class else data
    ddpm = speed.ddpm(part, rounds=size.rounds, steps=size.warm_steps, task=size.generation)
    with tempfile.TemporaryDirectory() as folder:
        original = classes.resnet18(Path(folder), part, epochs=size.epochs, on=on.type)
        classifier = speed.classifier(original, part, rounds=size.rounds, task=size.classification)
    peaks = {
        f"{kind}_{whose}peak_memory_mb": max(r[f"{whose}peak_memory_mb"] for r in found["rounds"])
        for kind, found in (("ddpm", ddpm), ("classifier", classifier))
        for whose in ("", "reference_")
    }
    return {
        **{name: value for found in (ddpm, classifier) for name, value in found.items() if name != "rounds"},
        **peaks,
        "ddpm_rounds": ddpm["rounds"],
        "classifier_rounds": classifier["rounds"],
        "peak_memory_mb": max(peaks["ddpm_peak_memory_mb"], peaks["classifier_peak_memory_mb"]),
    }


def of_quality(data: cifar.Cifar, size: Size, on: torch.device, root: Path, names: list[str]) -> dict[str, Any]:
    """Every method under one protocol; what `root` keeps of earlier parts is in the table too."""
    some = data.part(size.per_class) if size.protocol.unet is speed.small_unet and size.per_class else data
    rows = diffusion.Bench(some, size.protocol, on, root).measure(names)
    print("\n".join(diffusion.shown(name, row) for name, row in rows.items()))
    chosen = rows.get("sfron", {})
    return {
        "quality": rows,
        "quality_judge_accuracy": rows["original"]["judge_accuracy"],
        "quality_original_forget_rate": rows["original"]["forget_rate"],
        **{f"quality_sfron_{key}": chosen.get(key) for key in ("forget_upper95", "feature_ratio_upper95")},
    }


def asked_size(asked: argparse.Namespace, on: torch.device) -> Size:
    """What the command line asks for."""
    size = full(on, asked.train_seconds)
    for change, wanted in ((quick, asked.quick), (smoke, asked.smoke)):
        size = change(size) if wanted else size
    params = {name: {**given, **asked.params.get(name, {})} for name, given in size.protocol.params.items()}
    return replace(size, rounds=asked.rounds, protocol=replace(size.protocol, params=params))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the data, a quarter of the training, three classes")
    parser.add_argument("--smoke", action="store_true", help="tiny networks and loops: does every line run?")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these parts alone")
    parser.add_argument("--rounds", type=int, default=1, help="of the speed part; the median counts")
    parser.add_argument("--train-seconds", type=float, default=240.0, help="of the original and of the retrained model, each")
    parser.add_argument("--methods", nargs="*", choices=sorted(diffusion.METHODS), default=list(diffusion.METHODS))
    parser.add_argument("--params", type=json.loads, default={}, help='of methods of `quality`: {"sfron": {"gamma": 1}}')
    parser.add_argument("--keep", type=Path, help="folder in which the trained original, its judge and rows outlive this run")
    return parser.parse_args()


def main() -> int:
    """Measure the parts asked for; exit status 1 when a target was missed or there is no GPU."""
    asked = parsed()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch sees no CUDA device; --device cpu --smoke shows whether the benchmark itself works")
        return 1
    on, began = torch.device(asked.device), time.monotonic()
    figures: dict[str, Any] = {"quick": asked.quick, "smoke": asked.smoke}
    try:
        data = cifar.load()
    except cifar.DataMissing as missing:
        print(f"skipped all but digits: {missing}")
        asked.only, data = ["digits"] if "digits" in (asked.only or PARTS) else [], None
    few, one = asked.quick or asked.smoke, {"few": [speed.FORGET]} if asked.smoke else {}
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.keep or Path(scratch)
        size = asked_size(asked, on)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "speed": lambda: of_speed(data, size, on),
            "quality": lambda: of_quality(data, size, on, root, asked.methods),
            "retrain": lambda: of_quality(data, size, on, root, ["retrain"]),
            "digits": lambda: bench_sfron.of_digits(few, on.type, **one),
            "cifar": lambda: bench_sfron.of_cifar(data.part(150) if asked.smoke else data, few, on.type, **one),
        }
        for part in PARTS if asked.only is None else asked.only:
            start = time.monotonic()
            figures |= measures[part]()
            print(f"{part}: {time.monotonic() - start:.0f} s\n", flush=True)
    name = torch.cuda.get_device_name(on) if on.type == "cuda" else "cpu"
    figures |= {"seconds": round(time.monotonic() - began), "device": name, **bench_sfron.machine()}
    targets = {name: (None if asked.smoke else target, kind) for name, (target, kind) in TARGETS.items()}
    complete = asked.only is None and not asked.smoke
    return 1 if told.concluded(figures, targets, complete=complete) else 0


if __name__ == "__main__":
    sys.exit(main())
