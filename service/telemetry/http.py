"""What the API counts of itself: answers by route and status, how long they took, and what did not answer it."""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.catalogue import BY_NAME

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Others are counted as `other`: a client may send any word, and each would be a series."""
UNMATCHED = "unmatched"

PROBES = frozenset({"/healthz", "/readyz"})
"""Asked every few seconds: their lines would hide the others."""

log = logging.getLogger("expunge.http")

REGISTRY = CollectorRegistry()


def _counter(name: str) -> Counter:
    metric = BY_NAME[name]
    return Counter(metric.name, metric.help, metric.labels, registry=REGISTRY)


def _histogram(name: str) -> Histogram:
    metric = BY_NAME[name]
    return Histogram(metric.name, metric.help, metric.labels, registry=REGISTRY, buckets=metric.buckets)


REQUESTS = _counter("expunge_http_requests_total")
DURATION = _histogram("expunge_http_request_duration_seconds")
DATABASE_ERRORS = _counter("expunge_api_database_errors_total")
STORE_ERRORS = _counter("expunge_api_store_errors_total")
RATE_LIMITED = _counter("expunge_api_rate_limited_total")
RATE_LIMIT_STORE_ERRORS = _counter("expunge_api_rate_limit_store_errors_total")


def route_of(scope: Scope) -> str:
    """The template of the route that answered, never the address itself: an address may hold anything."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNMATCHED


class Measured:
    """Counts every answer of the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route_of(scope), str(status)).inc()
            seconds = time.perf_counter() - began
            DURATION.labels(method, route_of(scope)).observe(seconds)
            level = logging.DEBUG if route_of(scope) in PROBES else logging.INFO
            told = {"method": method, "route": route_of(scope), "status": status, "seconds": round(seconds, 6)}
            log.log(level, "http.answered", extra=told)
