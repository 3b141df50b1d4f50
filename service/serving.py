"""The API as processes: one, or several that share a socket. SIGTERM ends them all, streams that are open among them.

Several are for PostgreSQL: each is one interpreter, so one core. They share nothing but the database. A key that was revoked in
one works at most `TRUST_SECONDS` in the others (`access.authenticate`), refusals are counted by each for itself
(`access.denials`), and each reads events for its own listeners (`requests.tailer`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service import logs
from service.config import Settings
from service.processes import die_with

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 5
"""For answers that are under way, and streams, once the process was told to end."""
PATIENCE_SECONDS = 30
"""A process that does not say for so long that it lives is replaced: on a busy host it may be late, and no worse for it."""


class OneProcess(Exception):
    """Several processes were asked for, and the database is one that they could not share."""


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OneProcess: several, on SQLite.
        OSError: a port is taken, or there is no room for what is counted.
    """
    if settings.api_workers > 1 and settings.database.startswith("sqlite"):
        raise OneProcess("api_workers above 1 needs PostgreSQL: SQLite's writers take turns within one process alone")
    if settings.api_workers == 1:
        _serve("service.serving:alone", settings)
        return
    with _counted_together(settings):
        _serve("service.serving:one_of_several", settings)


def _serve(app: str, settings: Settings) -> None:
    import uvicorn

    uvicorn.run(
        app,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.api_workers,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_worker_healthcheck=PATIENCE_SECONDS,
    )


@contextmanager
def _counted_together(settings: Settings) -> Iterator[None]:
    """One port cannot be several processes' own: they count into files of one folder, and this process adds up and answers."""
    from service.telemetry.serving import TOGETHER, of_several, served

    with tempfile.TemporaryDirectory(prefix="expunge-metrics-") as folder:
        os.environ[TOGETHER] = folder  # for the processes that are started from here on
        if not settings.api_metrics_port:
            yield
            return
        with served(of_several(folder), settings.metrics_host, settings.api_metrics_port):
            yield


def alone() -> FastAPI:
    """The application in the process that was started for it."""
    from service.app import create_app
    from service.telemetry import tracing

    tracing.setup("api")
    return create_app()


def one_of_several() -> FastAPI:
    """The application in a process that another one started, and must not outlive: it has neither its log nor its tracer."""
    die_with(os.getppid())
    logs.configure(logging.INFO)
    return alone()
