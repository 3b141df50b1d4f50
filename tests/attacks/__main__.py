"""`python -m tests.attacks`: every attack on what Expunge publishes; the last line says how many, and how many went unseen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.attacks.conftest import Tally

if __name__ == "__main__":
    tally = Tally()
    status = pytest.main(["-q", "-m", "attack", str(Path(__file__).parent), *sys.argv[1:]], plugins=[tally])
    print(tally.line())
    sys.exit(int(status))
