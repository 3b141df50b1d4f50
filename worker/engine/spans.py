"""How long a stage took, for whoever traces the request. The engine has no network: its worker reads this and sends it on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.contract import SPAN, Event

TRACEPARENT = "TRACEPARENT"
"""Set by the worker when the request is traced: W3C Trace Context of the span that this process belongs to."""


@contextmanager
def told(events: Path, name: str) -> Iterator[None]:
    """Note when the block began and ended; on the first rank, and only where there is a trace."""
    parent = os.environ.get(TRACEPARENT)
    began = time.time()
    try:
        yield
    finally:
        if parent and os.environ.get("RANK", "0") == "0" and events.parent.is_dir():
            ended = time.time()
            values = {SPAN: name, "began": began, "ended": ended, "traceparent": parent}
            note = Event(at=ended, kind="note", phase=name, values=values)
            with events.open("a", encoding="utf-8") as stream:
                stream.write(note.model_dump_json(exclude_none=True) + "\n")
