"""Image-to-image unlearning: what encoder distillation forgets and keeps beside four baselines, and how fast.

Run with `make bench-i2i` (60 minutes or less on 2 cores: interleaved split, one seed, centre hole), `make bench-i2i QUICK=1`
(10 minutes), or `make bench-i2i-full` (both splits, every corruption, 3 seeds; hours). MAE and VQ-GAN need EXPUNGE_DATA. The
models are trained here, from new weights, and kept in `--cache` under the hash of all that decides them. Prints tables and, as
its last line, one JSON object.

`--smoke` runs every line on tiny networks and random images in about a minute: to know that it works, not how well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from worker.engine.waiting import WAITING

os.environ.update({**WAITING, **os.environ})  # before torch is loaded, as the engine's own entry does
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from tests.benchmarks.bench_sfron import machine
from tests.benchmarks.i2i import rows, speed, subjects, tasks
from tests.benchmarks.i2i.subjects import Images
from tests.benchmarks.sfron import cifar
from tests.benchmarks.sfron.jobs import device
from worker.engine.distributed import Ranks

KEYS = (
    "retain_distance_ratio", "forget_accuracy", "never_seen_accuracy", "proxy_retain_distance_ratio", "best_baseline",
    "speedup", "frozen_unchanged",
)  # fmt: skip
"""Of every family, measured or not."""
SPEEDUP: Mapping[str, float] = {"mae": 2.0, "vqgan": 4.0, "i2i_diffusion": 2.0}
MAX_RATIO, MAX_PROXY = 1.05, 1.10
PARTS = ("quality", "speed")


cifar_images = cache(subjects.cifar_images)
"""Decoded once for both families."""


def images_of(family: str, size: tasks.SizeName) -> Images:
    """Raises: cifar.DataMissing."""
    if size == "smoke":
        side, channels = (8, 1) if family == "i2i_diffusion" else (32, 3)
        return subjects.random_images(side, channels, 12, 4)
    return cifar_images() if family in tasks.NEEDS_CIFAR else subjects.digit_images()


def of_family(family: str, size: tasks.SizeName, parts: Sequence[str], kept: Path, ranks: Ranks) -> dict[str, Any]:
    """The figures of one family. Without its data, those of its speed alone, and why."""
    found: dict[str, Any] = dict.fromkeys(KEYS)
    made, began = tasks.task(family, size), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if "quality" in parts:
            try:
                images = images_of(family, size)
            except cifar.DataMissing as missing:
                print(f"{family}: quality not measured: {missing}")
                found["not_measured"] = str(missing)
            else:
                found |= rows.figures(made, list(rows.measure(made, images, Path(folder), kept, ranks)))
        if "speed" in parts:
            found |= speed.measure(made, size, Path(folder), kept, ranks)
    return {**found, "seconds": round(time.monotonic() - began)}


def verdicts(family: str, found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure beside its target, value, word) of what was measured; a row without power proves nothing."""
    shown: list[tuple[str, str, str]] = []

    def tell(what: str, value: float | bool | None, good: bool | None) -> None:
        word = "not measured" if value is None else "underpowered" if good is None else "ok" if good else "MISSED"
        shown.append((f"{family}: {what}", "" if value is None else f"{value:.4g}", word))

    ratio, proxy, weak = found["retain_distance_ratio"], found["proxy_retain_distance_ratio"], found.get("underpowered")
    tell(f"retain distance ratio ≤ {MAX_RATIO}", ratio, ratio is not None and ratio <= MAX_RATIO)
    level, low = found["never_seen_accuracy"], found.get("forget_accuracy_lower95")
    at_level = None if weak or low is None or level is None else low <= level
    tell(
        f"forget accuracy down to never seen ({level if level is None else round(level, 4)})",
        found["forget_accuracy"],
        at_level,
    )
    tell(
        "at least as good as every baseline on both",
        found.get("as_good_as_every_baseline"),
        None if weak else found.get("as_good_as_every_baseline"),
    )
    near = None if proxy is None or ratio is None else proxy / ratio
    tell(f"proxy ratio / ratio ≤ {MAX_PROXY}", near, near is not None and near <= MAX_PROXY)
    tell(
        f"speedup ≥ {SPEEDUP[family]:g}", found["speedup"], found["speedup"] is not None and found["speedup"] >= SPEEDUP[family]
    )
    tell("frozen tensors unchanged", found["frozen_unchanged"], bool(found["frozen_unchanged"]))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for; exit status 1 when a target was missed, or not measured though asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="10 minutes, less of everything")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="both splits, every corruption, 3 seeds")
    size.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="random images, tiny networks")
    parser.add_argument("--only", choices=tasks.FAMILIES, action="append", help="measure these families alone")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure these parts alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where trained models and judges are kept")
    asked = parser.parse_args(arguments)
    chosen: tasks.SizeName = asked.size or "default"
    began, ranks = time.monotonic(), device(asked.device)
    figures: dict[str, Any] = {"quick": chosen == "quick", "size": chosen}
    asked.cache.mkdir(parents=True, exist_ok=True)
    for family in asked.only or tasks.FAMILIES:
        figures[family] = of_family(family, chosen, asked.part or PARTS, asked.cache, ranks)
        print(f"\n{family}: {figures[family]['seconds']} s\n", flush=True)
    figures |= {"seconds": round(time.monotonic() - began), **machine()}
    missed = 0
    for family in asked.only or tasks.FAMILIES:
        for what, value, word in verdicts(family, figures[family]):
            missed += word == "MISSED" or (word == "not measured" and not asked.part)
            print(f"{what:<62} {value:>10}   {word}")
    print(json.dumps(figures))
    return 1 if missed and chosen != "smoke" else 0


def default_cache() -> Path:
    """A folder of this user's."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expunge" / "bench-i2i"


if __name__ == "__main__":
    sys.exit(main())
