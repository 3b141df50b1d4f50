"""Fuzz the HTTP API: `make fuzz`, or `python -m tests.fuzz [--seconds 300] [--seed 1] [--as local --as auditor]`.

Schemathesis reads the OpenAPI document and makes calls that fit it and calls that do not, with ids from earlier answers and
along links; a real server answers, on a database with a model, a request of each kind and a checkpoint. Once without access
control, and once with each role's key. Exit status 1 when an answer breaks a check.

The last line is one JSON object: `operations` that were called, `cases` sent, and three counts of findings: `nonconforming`
(media type or body differ from the description, or the answer shows what it must not), `server_errors` (5xx other than the
documented 503), and `undocumented_statuses`, each counted once for an operation and a status.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.fuzz import target
from tests.fuzz.run import Findings, Size, fuzz

SECONDS, EXAMPLES, SEED = 300, 100, 20261122


def main() -> int:
    """Fuzz as each caller in turn; exit status 1 when anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of all callers together, at most")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="calls of an operation, at most, in each phase")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--as", dest="callers", choices=target.CALLERS, action="append", help="these callers alone")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    asked = parser.parse_args()
    callers = asked.callers or target.CALLERS
    size = Size(seconds=max(1, asked.seconds // len(callers)), examples=asked.examples, seed=asked.seed)
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="expunge-fuzz-") as folder, target.prepared(asked.database, Path(folder)):
        for caller in callers:
            with target.reached(caller, Path(folder)) as (url, headers):
                found.add(fuzz(url, headers, size))
            print(f"{caller:<10} {found.cases} cases so far, {len(found.problems)} findings", flush=True)
        if found.counts["server_errors"]:
            print((Path(folder) / "server.log").read_text()[-20_000:])
    for problem in sorted(found.problems):
        print(f"\n{problem.check}: {problem.operation} {problem.status}\n{found.problems[problem]}")
    print(json.dumps({"operations": len(found.operations), "cases": found.cases, **found.counts}))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
