"""`expunge metrics`: the exporter."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Annotated

import typer

from service.commands import fail


def metrics(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the exporter: what the database says, at /metrics, for Prometheus. One is enough for all workers."""
    from service.config import get_settings
    from service.logs import configure
    from service.processes import die_with_supervisor
    from service.telemetry import exporter, serving

    die_with_supervisor()
    configure(logging.INFO)
    settings = get_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    where = host or settings.metrics_host, settings.metrics_port if port is None else port
    try:
        serving.serve_until(stop, exporter.registry(settings), *where)
    except OSError as error:
        raise fail(f"cannot listen on {where[0]}:{where[1]}: {error.strerror}", 2) from error
