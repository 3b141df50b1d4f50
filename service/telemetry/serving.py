"""`/metrics` on a port of its own: whoever may scrape need not be let near the API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

log = logging.getLogger("expunge.metrics")

TOGETHER = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: where it is set, its counters live in files of that folder, one for each process."""


def of_several(folder: str) -> CollectorRegistry:
    """What the processes that count into a folder have counted together, those among them that have died, too."""
    made = CollectorRegistry()
    MultiProcessCollector(made, path=folder)  # type: ignore[no-untyped-call]
    return made


@contextmanager
def served(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Answer scrapes in threads of this process until the block ends; yields the port, which 0 leaves to the system.

    Raises: OSError: the port is taken.
    """
    server, thread = start_http_server(port, addr=host, registry=registry)
    log.info("metrics.served", extra={"host": host, "port": server.server_port})
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve_until(stop: threading.Event, registry: CollectorRegistry, host: str, port: int) -> None:
    """The exporter's whole life. Raises: OSError."""
    with served(registry, host, port):
        stop.wait()
