"""One trace from a POST to the engine that carries it out. OpenTelemetry where it is installed and told where to send spans.

The message between service and worker is only a doorbell, so the trace's context (W3C `traceparent`) is a column of the
request: written by the POST, read by the claim. Without configuration every function here does nothing.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry.http import METHODS, route_of

log = logging.getLogger("expunge.tracing")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own variables: one of them says that spans are wanted."""
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context §3.2, version 00."""
Attributes = Mapping[str, str | int | float]

_tracer: Any = None


def setup(process: str) -> None:
    """Send this process's spans where the environment says; without it, or without the extra `otel`, do nothing.

    Args:
        process: `api` or `worker`; the service's name is `expunge-` and this, unless OTEL_SERVICE_NAME says otherwise.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("tracing.not_installed", extra={"extra": "otel"})
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or f"expunge-{process}"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # a thread of its own: no request waits for it
    install(provider)
    log.info("tracing.started", extra={"service": name})


def install(provider: Any) -> None:
    """Make spans with this provider from now on; None: make none."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("expunge")


@contextmanager
def span(name: str, *, parent: str | None = None, **attributes: str | int | float) -> Iterator[Any]:
    """A span around the block, below the current one, or below `parent` (a traceparent); None where tracing is off."""
    if _tracer is None:
        yield None
        return
    context = _context(parent)
    # an exception's text may quote what a client wrote, so only its type is noted
    options = {"record_exception": False, "set_status_on_exception": False}
    with _tracer.start_as_current_span(name, context=context, attributes=attributes, **options) as made:
        try:
            yield made
        except BaseException as error:
            _failed(made, type(error).__name__)
            raise


def record(name: str, parent: str | None, began: float, ended: float, **attributes: str | int | float) -> None:
    """A span that is over. `began` and `ended` are in seconds since the epoch."""
    if _tracer is not None:
        made = _tracer.start_span(name, context=_context(parent), start_time=int(began * 1e9), attributes=attributes)
        made.end(int(ended * 1e9))


def traceparent() -> str | None:
    """The current span for another process or a row; None where tracing is off."""
    ids = current()
    return f"00-{ids['trace_id']}-{ids['span_id']}-{ids['flags']}" if ids else None


def current() -> dict[str, str]:
    """`trace_id`, `span_id` and `flags` of the current span; empty where there is none."""
    if _tracer is None:
        return {}
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    return {**ids, "flags": f"{context.trace_flags:02x}"}


def _context(parent: str | None) -> Any:
    if parent is None or not TRACEPARENT.fullmatch(parent):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent})


def _failed(made: Any, why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    made.set_status(Status(StatusCode.ERROR, why))


class Traced:
    """A span around every request, named by its route's template; below the client's span where it sends one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _tracer is None:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "other"
        parent = Headers(scope=scope).get("traceparent")
        with span(method, parent=parent, **{"http.request.method": method}) as made:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    made.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        _failed(made, str(message["status"]))
                await send(message)

            try:
                await self._app(scope, receive, seen)
            finally:
                made.set_attribute("http.route", route_of(scope))
                made.update_name(f"{method} {route_of(scope)}")
