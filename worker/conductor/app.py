"""The Celery app: a doorbell. Every setting here was measured, or read in a bug report, before it was chosen."""

from __future__ import annotations

from typing import Any

from celery import Celery

from service.config import Settings

QUEUE = "expunge"
RUN = "expunge.run"
"""The one task's name; its message is a request id."""


def queue_of(gpu_class: str) -> str:
    """The bells of a GPU class: a worker hears those of the classes that it serves."""
    return f"{QUEUE}.{gpu_class}"


def make_app(settings: Settings) -> Celery:
    """The app for these settings; it connects to nothing yet."""
    app = Celery("expunge", broker=settings.broker_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],  # never pickle
        # Early ack: an unacknowledged message would come again after the visibility timeout, in parallel with its run.
        # The lease, not the broker, notices a death.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,  # and no result backend: the state is in the rows
        task_store_errors_even_if_ignored=False,
        task_publish_retry=False,  # the next sweep is the retry
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not settings.embedded,  # Redis only: a busy worker hoards no message
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a broker's hiccup must not end hours of work
        worker_enable_remote_control=False,  # cancellation is a column; a pub/sub connection may only go deaf
        worker_send_task_events=False,
        worker_soft_shutdown_timeout=0,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport(settings),
    )
    return app


def _transport(settings: Settings) -> dict[str, Any]:
    if settings.embedded:
        return {"polling_interval": 0.05}
    return {
        # Without a socket timeout a half-open connection leaves the worker deaf for ever, and no line in the log.
        "socket_timeout": 15,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "visibility_timeout": 3600,
        "global_keyprefix": "expunge:",
    }


def ring(app: Celery, request_id: str, gpu_class: str) -> None:
    """Ring for a request. Ringing twice is harmless, and so is a ring that gets lost.

    Over a connection of its own: one that broke since the last ring costs that ring and no more.

    Raises:
        kombu.exceptions.OperationalError, OSError: the broker does not answer.
    """
    with app.connection_for_write() as connection:
        app.send_task(RUN, args=[request_id], queue=queue_of(gpu_class), connection=connection, retry=False, ignore_result=True)
