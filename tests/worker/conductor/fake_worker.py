"""A real worker process that starts the fake engine."""

import sys

from tests.worker.conductor.house import fake_engine
from worker.conductor.__main__ import main

if __name__ == "__main__":
    sys.exit(main(command=fake_engine))
