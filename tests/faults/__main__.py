"""`python -m tests.faults`: fifteen fault-injection tests on both stacks. A row a test, and last one JSON object."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.faults import running
from tests.faults.scenarios import FULL, SHORT
from tests.faults.stack import KINDS, Servers


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("only", nargs="*", help="names or numbers of scenarios; default: all, and the controls")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="the sizes that `make test` has")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: both")
    parser.add_argument("--controls", action="store_true", help="the controls alone")
    options = parser.parse_args()
    size = SHORT if options.short else FULL
    rows, as_they_must, wanted = [], 0, []
    with tempfile.TemporaryDirectory(prefix="expunge-faults-", ignore_cleanup_errors=True) as folder:
        servers = Servers(Path(folder))
        try:
            for seed in range(0 if options.controls else options.seeds):
                for kind in options.kind or KINDS:
                    for row in running.run(kind, servers, running.chosen(options.only), seed, size):
                        print(row, flush=True)
                        rows.append(row)
            wanted = [] if options.only else running.controls(size)
            for control in wanted:
                failed = running.failed_as_it_must(control, servers)
                as_they_must += failed
                end = "failed, as it must" if failed else "DID NOT FAIL AS IT MUST"
                print(f" c  {control.name:<34} {control.kind:<10} {end}", flush=True)
        finally:
            servers.stop()
    passed = sum(row.passed for row in rows)
    print(json.dumps({"tests": len(rows), "passed": passed, "controls_failed_as_they_must": as_they_must}))
    return 0 if passed == len(rows) and as_they_must == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
