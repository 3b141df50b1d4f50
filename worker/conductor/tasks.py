"""Answering the doorbell."""

from __future__ import annotations

import logging

from celery import Celery
from celery.signals import worker_shutting_down

from worker.conductor import app as bell
from worker.conductor import pipeline
from worker.conductor.heart import database_is_away
from worker.conductor.pipeline import Room

log = logging.getLogger("expunge.conductor")


def register(app: Celery, room: Room) -> None:
    """Give the app its one task, and drain the room when the worker shuts down."""

    @app.task(name=bell.RUN)  # type: ignore[untyped-decorator]
    def run(request_id: str) -> None:
        answer(request_id, room)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**_: object) -> None:
        log.info("worker.draining")
        room.draining.set()


def answer(request_id: str, room: Room) -> None:
    """Take the request that comes first now. The rows decide; a message may be old, and only says that there is something."""
    if not isinstance(request_id, str):
        log.warning("bell.unreadable", extra={"kind": type(request_id).__name__})
        return
    room.busy.set()
    try:
        pipeline.run_next(room)
    except Exception as error:
        if not database_is_away(error):
            raise
        log.warning("request.not_answered", extra={"request": request_id, "kind": type(error).__name__})
    finally:
        room.busy.clear()
