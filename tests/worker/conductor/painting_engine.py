"""The real engine in a process of its own, with the tests' painter among its families: `painting_engine.py STAGE DIR`."""

from __future__ import annotations

import sys

from tests.worker.engine.verification_job import Painter
from worker.engine import registry
from worker.engine.__main__ import main

if __name__ == "__main__":
    registry.families = lambda: {"painter": Painter}  # type: ignore[assignment,dict-item]
    sys.exit(main(sys.argv[1:]))
