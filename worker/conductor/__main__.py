"""`python -m worker.conductor [--check]`: a worker. Celery with one thread, and the sweeper beside it.

SIGTERM drains: no new claims, the running engine leaves a step checkpoint, its request goes back unharmed, exit 0. SIGKILL
leaves nothing running: the kernel kills the engine with its worker.
"""

from __future__ import annotations

import logging
import sys
import threading

from celery.signals import setup_logging
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from service import logs, migrate
from service.access import names
from service.audit.logsigner import SocketLog
from service.audit.notary import Notary
from service.certificates.signing import SocketSigner
from service.config import Settings, get_settings
from service.storage import get_store
from service.telemetry import tracing
from service.webhooks.guard import TIMEOUT_SECONDS
from service.webhooks.sender import Sender
from worker.conductor import identity, launch, tasks
from worker.conductor.app import make_app, queue_of
from worker.conductor.control import Sweeper
from worker.conductor.pipeline import Room

log = logging.getLogger("expunge.worker")


class NotMigrated(Exception):
    """The database's schema is not the one that this code was written for."""


def require_schema() -> None:
    """Raises: NotMigrated."""
    current, head = migrate.current(), migrate.head()
    if current != head:
        raise NotMigrated(f"the database is at revision {current}, this worker needs {head}; run `expunge migrate`")


def make_room(settings: Settings, command: launch.Command = launch.torchrun) -> Room:
    """What this process works with."""
    return Room(
        settings=settings,
        store=get_store(settings),
        signer=SocketSigner(settings.socket_path),
        owner=identity.owner(),
        command=command,
        notary=Notary(SocketLog(settings.socket_path), settings),
    )


def main(command: launch.Command = launch.torchrun) -> int:
    """Run a worker until it is told to stop. Returns the exit status."""
    logs.configure(logging.INFO)
    setup_logging.connect(lambda **_: None, weak=False)  # Celery leaves logging alone when somebody answers
    settings = get_settings()
    tracing.setup("worker")
    try:
        require_schema()
        names.require_own()
    except (NotMigrated, names.NameTaken) as error:
        log.critical("worker.refused", extra={"why": str(error)})
        return 2
    except OperationalError as error:
        log.critical("worker.refused", extra={"why": "the database does not answer", "kind": type(error.orig).__name__})
        return 2
    room = make_room(settings, command)
    app = make_app(settings)
    tasks.register(app, room)
    stop = threading.Event()
    control = Sweeper(app, room)
    sweeper = threading.Thread(target=control.run, args=(stop,), name="sweeper", daemon=True)
    sweeper.start()
    sender = threading.Thread(target=Sender(settings).run, args=(stop,), name="webhooks", daemon=True)
    sender.start()
    served = {"gpus": launch.gpu_count(), "gpu_classes": settings.gpu_classes}
    log.info("worker.started", extra={"embedded": settings.embedded, **served})
    queues = [queue_of(name) for name in settings.gpu_classes]
    worker = app.Worker(pool="threads", concurrency=1, queues=queues, without_gossip=True, without_mingle=True, quiet=True)
    worker.start()
    room.draining.set()
    stop.set()
    sweeper.join(timeout=settings.sweep_seconds + 5)
    sender.join(timeout=TIMEOUT_SECONDS)
    control.leave()
    log.info("worker.stopped", extra={"status": worker.exitcode})
    return int(worker.exitcode or 0)


def check() -> int:
    """For a container's health check: 0 when a worker could work with this database now."""
    try:
        require_schema()
    except (NotMigrated, SQLAlchemyError) as error:
        print(f"not healthy: {type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(check() if sys.argv[1:] == ["--check"] else main())
