"""The audit ledger: appends on both databases, proofs and verification at a million entries, signing 200 MB.

Run with `make bench-ledger` (10 minutes or less on 2 cores; ARGS='--only appends' for a part). Figures are medians of three.
PostgreSQL is the wheel's server with its defaults, fsync among them; writers are processes, one and four, and the better of
both counts. Appends are measured on a disk and in memory: what differs is the disk's share. Prints a table and, as its last
line, one JSON object; exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import told
from tests.benchmarks.ledger import appends, history, signing
from tests.benchmarks.ledger.places import MEMORY, database, syncs

TARGETS: Mapping[str, tuple[float | None, str]] = {
    "append_per_second_sqlite": (1000.0, "ge"),
    "append_per_second_postgresql": (1000.0, "ge"),
    "request_append_per_second_sqlite": (800.0, "ge"),
    "request_append_per_second_postgresql": (400.0, "ge"),
    "inclusion_ms_1m": (1.0, "le"),
    "verify_1m_seconds": (30.0, "le"),
    "verify_1m_peak_mb": (1000.0, "le"),
    "sign_200mb_seconds": (1.0, "le"),
    "verify_200mb_seconds": (1.0, "le"),
}
PARTS = ("appends", "million", "signing")
DATABASES, WRITERS = ("sqlite", "postgresql"), (1, 4)
KEYS = {"append": "append_per_second", "request": "request_append_per_second", "post": "post_per_second"}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    appends: int = 1000
    requests: int = 240
    past: int = 2000
    """Entries that are there already."""
    entries: int = 1_000_000
    megabytes: int = 200
    rounds: int = 3


def of_appends(size: Size, disk: Path) -> dict[str, Any]:
    """Transactions a second: on the disk, and in memory, where nothing but our own work and the database's is left."""
    figures: dict[str, Any] = syncs(disk)
    counts = {"append": size.appends, "request": size.requests, "post": size.requests}
    for base, suffix in ((disk, ""), (MEMORY, "_memory")):
        for name in DATABASES:
            with database(name, base) as folder:
                appends.settle(size.past)
                found = {writers: appends.rates(folder, counts, writers, size.rounds) for writers in WRITERS}
            for kind, key in KEYS.items():
                by = {writers: round(found[writers][kind], 1) for writers in WRITERS}
                figures[f"{key}_{name}{suffix}"] = max(by.values())
                figures |= {f"{key}_{name}{suffix}_by_{writers}": rate for writers, rate in by.items()}
            print(f"{name}{suffix}: {found}, load {_load()}", flush=True)
    return figures


def of_a_million(size: Size, disk: Path) -> dict[str, Any]:
    """A proof out of the stored tree, and the verification of the whole export by another process."""
    with database("sqlite", disk):
        history.fill(size.entries)
        proof = statistics.median(history.inclusion_ms(size.entries) for _ in range(size.rounds))
    with tempfile.TemporaryDirectory(prefix="expunge-bench-", dir=disk) as folder:
        history.exported(Path(folder), size.entries)
        runs = [history.verified(Path(folder), size.entries) for _ in range(size.rounds)]
    return {
        "inclusion_ms_1m": round(proof, 3),
        "verify_1m_seconds": round(statistics.median(run.seconds for run in runs), 2),
        "verify_1m_cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 2),
        "verify_1m_peak_mb": round(max(run.peak_mb for run in runs), 1),
    }


def of_signing(size: Size, disk: Path) -> dict[str, Any]:
    """The signer's work on a publication, and the verifier's on the download."""
    with tempfile.TemporaryDirectory(prefix="expunge-bench-", dir=disk) as folder:
        signed, verified = signing.measure(Path(folder), size.megabytes, size.rounds)
    return {"sign_200mb_seconds": round(signed, 3), "verify_200mb_seconds": round(verified, 3)}


def main() -> int:
    """Measure the parts asked for; exit status 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these parts alone")
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()), help="folder whose disk is measured")
    asked = parser.parse_args()
    return 1 if measured(Size(), asked.only or PARTS, asked.on) else 0


def measured(size: Size, parts: Any, disk: Path) -> int:
    """Measure some parts and say how many targets were missed."""
    measures: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
        "appends": of_appends,
        "million": of_a_million,
        "signing": of_signing,
    }
    figures: dict[str, Any] = {"load_before": _load()}
    for part in parts:
        began = time.monotonic()
        figures |= measures[part](size, disk)
        print(f"{part}: {time.monotonic() - began:.0f} s, load {_load()}", flush=True)
    figures |= {"load_after": _load(), **told.machine()}
    print()
    rest = {name: (None, "ge") for name, value in figures.items() if name not in TARGETS and isinstance(value, float)}
    return told.concluded(figures, {**TARGETS, **rest}, complete=set(parts) == set(PARTS))


def _load() -> float:
    return round(os.getloadavg()[0], 2)


if __name__ == "__main__":
    sys.exit(main())
