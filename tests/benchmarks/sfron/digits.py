"""Every digit of the example model in turn: forgotten by a preset, by default the default one, judged by a packaged policy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.policies import packaged
from tests.benchmarks.sfron.jobs import Subject, device, make_job, run_unlearning, run_verification
from worker.contract import Report
from worker.examples.digits.__main__ import lay_out

BASIC = "basic-v1"


def subject(folder: Path) -> Subject:
    """The example as it is registered."""
    laid = lay_out(folder)
    return Subject(
        family="ddpm",
        model=Path(str(laid["model"])),
        data=Path(str(laid["dataset"])),
        class_names=tuple(laid["class_names"]),  # type: ignore[arg-type]
        held_out_ids=tuple(laid["held_out_ids"]),  # type: ignore[arg-type]
        shared=folder / "shared",
    )


def figures_of(report: Report) -> dict[str, Any]:
    """The numbers of a report that the benchmark keeps, drops in points."""
    found = {(f.check, f.metric, f.subject): f for f in report.findings if f.gating}
    forget = found["forget_rate", "unlearning_accuracy", "candidate"]
    drop = found["retain_accuracy", "retain_accuracy_drop", "candidate"]
    ratio = next(f for (check, _, _), f in found.items() if check == "feature_distance")
    taught = next((f for (check, _, _), f in found.items() if check == "relearning"), None)
    return {
        "verdict": report.verdict,
        "forget_hits": forget.count,
        "forget_upper95": 1 - (forget.lower95 or 0.0),
        "retain_drop_points": 100 * (drop.value or 0.0),
        "retain_drop_upper95_points": 100 * (drop.upper95 or 0.0),
        "feature_ratio": ratio.value,
        "feature_ratio_upper95": ratio.upper95,
        "relearning_ratio": None if taught is None else taught.value,
        "relearning_ratio_lower95": None if taught is None else taught.lower95,
        "refused_by": sorted({f.check for f in found.values() if f.passed is not True}),
    }


def measure(
    digits: Sequence[int], seeds: Sequence[int], params: dict[str, Any], judged_by: str = BASIC, on: str = "cpu"
) -> list[dict[str, Any]]:
    """One row a digit and seed."""
    named = packaged(judged_by, "generator")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = subject(Path(folder) / "example")
        for seed in seeds:
            for digit in digits:
                job = make_job(
                    Path(folder) / f"{seed}-{digit}", model, "sfron", params, seed=seed, policy=named, forget_classes=(digit,)
                )
                manifest = run_unlearning(job, device(on))
                report = run_verification(job, device(on))
                row = {
                    "digit": digit,
                    "seed": seed,
                    "iterations": manifest.iterations_completed,
                    "seconds_prepare": manifest.seconds_prepare,
                    "seconds_unlearn": manifest.seconds_unlearn,
                    "peak_memory_mb": manifest.peak_memory_mb,
                    **figures_of(report),
                }
                rows.append(row)
                print(
                    f"digit {digit} seed {seed}: {row['verdict']}  forget ≤ {row['forget_upper95']:.3f}  "
                    f"drop {row['retain_drop_points']:+.2f} (≤ {row['retain_drop_upper95_points']:.2f}) points  "
                    f"distance ratio {row['feature_ratio']:.2f} (≤ {row['feature_ratio_upper95']:.2f})  "
                    f"{_relearned(row)}{row['seconds_prepare']:.1f} + {row['seconds_unlearn']:.1f} s  "
                    f"{', '.join(row['refused_by'])}",
                    flush=True,
                )
    return rows


def _relearned(row: dict[str, Any]) -> str:
    ratio = row["relearning_ratio"]
    return "" if ratio is None else f"relearning {ratio:.3f} (≥ {row['relearning_ratio_lower95']:.3f})  "
