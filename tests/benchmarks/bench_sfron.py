"""SFR-on: how much faster than the plain way, how well on digits and CIFAR-10, how it scales to two ranks.

Run with `make bench-sfron` (3 seeds, every class; 90 minutes or less on 2 cores) or `make bench-sfron QUICK=1` (10 minutes).
The CIFAR-10 parts need EXPUNGE_DATA. Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.engine.waiting import WAITING

os.environ.update({**WAITING, **os.environ})  # before torch is loaded, as the engine's own entry does

import torch

from tests.benchmarks import told
from tests.benchmarks.sfron import cifar, classes, digits, ranks, speed

TARGETS: Mapping[str, tuple[float | None, str]] = {
    "ddpm_speedup": (5.0, "ge"),
    "classifier_speedup": (2.5, "ge"),
    "second_request_prepare_ratio": (0.1, "le"),
    "digits_worst_forget_upper95": (0.05, "le"),
    "digits_worst_retain_drop_points": (2.0, "le"),
    "digits_max_iterations": (50, "le"),
    "cifar_worst_forget_accuracy": (0.02, "le"),
    "cifar_worst_retain_drop_points": (1.0, "le"),
    "cifar_max_seconds": (180.0, "le"),
    "two_rank_efficiency": (None, "ge"),
    "peak_memory_mb": (None, "le"),
}
PARTS = ("speed", "digits", "cifar", "ranks")


def of_digits(
    quick: bool, on: str = "cpu", few: Sequence[int] = (2, 3, 8), *, seeds: int = 3, preset: str | None = None,
    policy: str = digits.BASIC,
) -> dict[str, Any]:  # fmt: skip
    """Figures of forgetting every digit (`few` of them) on a device."""
    params = {} if preset is None else {"preset": preset}
    rows = digits.measure(few if quick else range(10), range(1 if quick else seeds), params, policy, on=on)
    return {
        "digits_worst_forget_upper95": max(r["forget_upper95"] for r in rows),
        "digits_worst_retain_drop_points": max(r["retain_drop_upper95_points"] for r in rows),
        "digits_max_iterations": max(r["iterations"] for r in rows),
        "digits_worst_feature_ratio_upper95": max(r["feature_ratio_upper95"] for r in rows),
        "digits_refused_by_the_gate": sum(r["verdict"] != "PASS" for r in rows),
        "digits_runs": len(rows),
    }


def of_speed(data: cifar.Cifar, quick: bool) -> dict[str, Any]:
    """Figures of both ways side by side, on the CPU."""
    part = data.part(200 if quick else 1000)
    ddpm = speed.ddpm(part, rounds=1 if quick else 3, steps=40 if quick else 150)
    with tempfile.TemporaryDirectory() as folder:
        some = data.part(1000) if quick else data
        original = classes.original(Path(folder), some, epochs=1 if quick else classes.ADAPT_EPOCHS)
        classifier = speed.classifier(original, some, rounds=1 if quick else 3)
    return {
        "ddpm_speedup": ddpm["ddpm_speedup"],
        "second_request_prepare_ratio": ddpm["second_request_prepare_ratio"],
        "classifier_speedup": classifier["classifier_speedup"],
        "peak_memory_mb": max(r["peak_memory_mb"] for r in (*ddpm["rounds"], *classifier["rounds"])),
    }


def of_cifar(data: cifar.Cifar, quick: bool, on: str = "cpu", few: Sequence[int] = (2, 3, 5)) -> dict[str, Any]:
    """Figures of forgetting every class (`few` of them) with ResNet-20 on a device."""
    rows = classes.measure(data, few if quick else range(10), [0] if quick else [0, 1, 2], {}, on=on)
    return {
        "cifar_worst_forget_accuracy": max(r["forget_upper95"] for r in rows),
        "cifar_worst_retain_drop_points": max(r["retain_drop_upper95_points"] for r in rows),
        "cifar_max_seconds": max(r["seconds"] for r in rows),
    }


def main() -> int:
    """Measure the parts asked for; exit status 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 seed, 3 digits, 3 classes, a fifth of the data for speed")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these parts alone")
    parser.add_argument("--seeds", type=int, default=3, help="of the digits")
    parser.add_argument("--preset", help="of the digits, in place of the default one")
    parser.add_argument("--policy", default=digits.BASIC, help="that judges the digits")
    asked = parser.parse_args()
    parts, began = asked.only or list(PARTS), time.monotonic()
    figures: dict[str, Any] = {"quick": asked.quick}
    data: cifar.Cifar | None = None
    if {"speed", "cifar"} & set(parts):
        try:
            data = cifar.load()
        except cifar.DataMissing as missing:
            print(f"skipped speed and cifar: {missing}")
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: of_speed(data, asked.quick) if data else {},
        "digits": lambda: of_digits(asked.quick, seeds=asked.seeds, preset=asked.preset, policy=asked.policy),
        "cifar": lambda: of_cifar(data, asked.quick) if data else {},
        "ranks": lambda: {"two_rank_efficiency": ranks.measure(5 if asked.quick else 20, 1 if asked.quick else 3)},
    }
    for part in parts:
        start = time.monotonic()
        figures |= measures[part]()
        print(f"{part}: {time.monotonic() - start:.0f} s\n", flush=True)
    figures |= {"seconds": round(time.monotonic() - began), **machine()}
    return 1 if told.concluded(figures, TARGETS, complete=asked.only is None) else 0


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return told.machine() | {"torch": str(torch.__version__)}


if __name__ == "__main__":
    sys.exit(main())
