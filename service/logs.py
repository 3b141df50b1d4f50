"""Logs: one line a fact, a dotted name and its fields. Never a key, an image or a payload.

Whatever is bound (`bind`) is in every line of the same request or run; with tracing on, so are the ids of the trace.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from service.telemetry import tracing

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}
_bound: ContextVar[Mapping[str, Any]] = ContextVar("expunge_log_fields", default={})  # noqa: B039 — never changed in place
QUIET = ("uvicorn.access", "httpx2")
"""Loggers whose lines hold whole addresses."""
OURS = frozenset({"service", "worker", "migrations"})
"""Packages whose exceptions never quote what a client wrote."""


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Put these fields into every line that this thread or task logs until the block ends."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


class JsonLines(logging.Formatter):
    """Every record as one JSON object: time, level, logger, fact, and the fields that are bound or given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "fact": record.getMessage(),
            **{k: v for k, v in tracing.current().items() if k != "flags"},
            **_bound.get(),
            **{k: v for k, v in record.__dict__.items() if k not in _STANDARD},
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = trace_of(record.exc_info[1])
        return json.dumps(fields, default=str)


def trace_of(error: BaseException) -> str:
    """Where an error came from, and of what kind it is: a traceback without the texts that may quote a value.

    A database's message names the key that is taken, pydantic's the input that was wrong; either may be somebody's name.
    """
    told: list[str] = []
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        frames = "".join(traceback.format_tb(step.__traceback__))
        told.append(f"Traceback (most recent call last):\n{frames}{_said(step)}")
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return "\n\nThe above came of this:\n\n".join(told)


def _said(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__.partition(".")[0] in OURS:
        return f"{kind.__qualname__}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{kind.__qualname__}: {error.strerror}"
    return kind.__qualname__


def configure(level: int) -> None:
    """Log to stderr as JSON lines; `expunge.http` is the access log, which says the route and not the address."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
