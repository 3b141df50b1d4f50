"""Does the gate see? Models that only seem to have forgotten, each with a check that was made to refuse it, and true retrains.

Run with `make gate-matrix` (90 minutes or less on 2 cores, the retrained models trained within it and kept), or
`make gate-matrix QUICK=1` (digits alone, one retrained model, 15 minutes). CIFAR-10 needs EXPUNGE_DATA. Prints a row a model,
two tables and, as its last line, one JSON object; exit status 1 when a fake passed or a retrain failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.engine.waiting import WAITING

os.environ.update({**WAITING, **os.environ})  # before torch is loaded, as the engine's own entry does

from tests.benchmarks.bench_i2i import default_cache
from tests.benchmarks.bench_sfron import machine
from tests.benchmarks.gate import fakes, matrix, subjects
from tests.benchmarks.gate.matrix import Row
from tests.benchmarks.sfron import cifar
from tests.benchmarks.sfron.jobs import device

STAGES = ("digits", "cifar")


def run(stage: str, policy: str, root: Path, cache: Path, names: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """All rows of a data set, retrained models of these seeds among them. Raises: cifar.DataMissing."""
    if stage == "digits":
        made, some, kind = subjects.digit_stage(root, cache, seeds), fakes.generator_fakes(), "generator"
    else:
        made, some, kind = subjects.cifar_stage(root, cache, seeds), fakes.classifier_fakes(), "classifier"
    chosen = [fake for fake in some if not names or any(part in fake.name for part in names)]
    rows = list(matrix.measure(made, chosen, matrix.policy(policy, kind), root / stage / "rows", device("cpu")))
    print(f"\n{stage}, policy {policy}\n{matrix.table(rows)}\n", flush=True)
    return rows


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """The counts, and what the checks of the digits' retrains took."""
    pretenders, retrains = [row for row in rows if not row.due], [row for row in rows if row.due]
    generated = [row for row in retrains if row.stage == "ddpm"]
    return {
        "fakes": len(pretenders),
        "false_passes": sum(not row.right for row in pretenders),
        "retrains": len(retrains),
        "false_fails": sum(not row.right for row in retrains),
        "seconds_l2": round(matrix.seconds(generated, ("L0", "L1", "L2")), 1),
        "seconds_l3": round(matrix.seconds(generated, ("L3",)), 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; exit status 1 when anything went the wrong way, or a data set was not measured though asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="digits alone, and one retrained model of them")
    parser.add_argument("--only", choices=STAGES, action="append", help="measure these data sets alone")
    parser.add_argument("--fake", action="append", default=[], help="only fakes whose name has this in it; and the retrains")
    parser.add_argument("--policy", default="fast-v1")
    parser.add_argument("--cache", type=Path, default=default_cache().with_name("gate-matrix"), help="where models are kept")
    asked = parser.parse_args(arguments)
    asked.cache.mkdir(parents=True, exist_ok=True)
    began, rows, missing = time.monotonic(), [], ""
    seeds = subjects.RETRAIN_SEEDS[: 1 if asked.quick else None]
    with tempfile.TemporaryDirectory() as folder:
        for stage in asked.only or (STAGES[:1] if asked.quick else STAGES):
            try:
                rows += run(stage, asked.policy, Path(folder), asked.cache, asked.fake, seeds)
            except cifar.DataMissing as error:
                missing = str(error)
                print(f"{stage}: not measured: {missing}")
    found = {**figures(rows), "quick": asked.quick, "seconds": round(time.monotonic() - began), **machine()}
    print(json.dumps({**found, **({"not_measured": missing} if missing else {})}))
    return 1 if missing or found["false_passes"] or found["false_fails"] else 0


if __name__ == "__main__":
    sys.exit(main())
