"""`expunge metrics`: what the rows say, for Prometheus. One process for a whole deployment, so that no gauge is told twice."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as OrmSession

from service import db, outbox
from service.config import Settings
from service.requests.lifecycle import PENDING, TERMINAL
from service.tables import RequestCompliance, UnlearnRequest
from service.telemetry.attempts import Runs
from service.telemetry.catalogue import BY_NAME
from service.telemetry.ledger import Check
from service.webhooks import deliveries
from service.workers import repository as workers

log = logging.getLogger("expunge.exporter")

Family = CounterMetricFamily | GaugeMetricFamily


def _family(name: str, values: Mapping[str, float] | float) -> Family:
    metric = BY_NAME[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    if not isinstance(values, Mapping):
        return kind(metric.name, metric.help, value=values)
    family = kind(metric.name, metric.help, labels=metric.labels)
    for label, value in sorted(values.items()):
        family.add_metric([label], value)
    return family


class Database(Collector):
    """Reads everything at each scrape, in one snapshot; scrapes take turns."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runs = Runs()
        self._ledger = Check(settings)
        self._turn = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """All families, or the one that says that the database is away."""
        with self._turn:
            try:
                with db.snapshot() as session:
                    families = [
                        *self._requests(session),
                        *self._deadlines(session),
                        *self._webhooks(session),
                        *self._book(session),
                    ]
                    self._runs.count(session)
            except SQLAlchemyError as error:
                log.warning("scrape.failed", extra={"kind": type(error).__name__})
                return [_family("expunge_database_up", 0)]
            return [_family("expunge_database_up", 1), *families, *self._runs.registry.collect()]

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not need a database."""
        return []

    def _requests(self, session: OrmSession) -> Iterator[Family]:
        at = db.now(session)
        standing: Counter[str] = Counter()
        depth: Counter[str] = Counter()
        oldest: dict[str, datetime] = {}
        grouped = select(
            UnlearnRequest.status, UnlearnRequest.gpu_class, func.count(), func.min(UnlearnRequest.created_at)
        ).group_by(UnlearnRequest.status, UnlearnRequest.gpu_class)
        for status, gpu_class, count, first in session.execute(grouped):
            standing[status] += count
            if status == "queued":
                depth[gpu_class], oldest[gpu_class] = count, first
        ready_rows = (
            select(UnlearnRequest.gpu_class, func.count()).where(outbox.claimable(at)).group_by(UnlearnRequest.gpu_class)
        )
        ready = Counter({gpu_class: int(count) for gpu_class, count in session.execute(ready_rows)})
        alive, idle = self._workers(session)
        classes = {*depth, *alive, *self._settings.gpu_classes}  # a class without workers has to say 0, or no alert can fire
        yield _family("expunge_requests_total", {s: standing[s] for s in TERMINAL})
        yield _family("expunge_requests_open", {s: standing[s] for s in PENDING})
        yield _family("expunge_queue_depth", {c: depth[c] for c in classes})
        yield _family("expunge_queue_ready", {c: ready[c] for c in classes})
        ages = {c: max((at - oldest[c]).total_seconds(), 0.0) if c in oldest else 0.0 for c in classes}
        yield _family("expunge_queue_age_seconds", ages)
        yield _family("expunge_workers_alive", {c: alive[c] for c in classes})
        yield _family("expunge_workers_idle", {c: idle[c] for c in classes})

    def _workers(self, session: OrmSession) -> tuple[Counter[str], Counter[str]]:
        alive: Counter[str] = Counter()
        idle: Counter[str] = Counter()
        for row in workers.taking(session, self._settings, db.now(session)):
            for gpu_class in row.gpu_classes:
                alive[gpu_class] += 1
                idle[gpu_class] += row.request_id is None
        return alive, idle

    def _deadlines(self, session: OrmSession) -> Iterator[Family]:
        at = db.now(session)
        waiting = UnlearnRequest.status.in_(("queued", "paused"))
        latest = session.scalars(select(func.min(UnlearnRequest.latest_start_at)).where(waiting)).one()
        if latest is not None:
            yield _family("expunge_deadline_slack_seconds", (latest - at).total_seconds())
        late = RequestCompliance.due_at < at, RequestCompliance.answered_at.is_(None)
        yield _family(
            "expunge_deadlines_overdue", session.scalars(select(func.count()).select_from(RequestCompliance).where(*late)).one()
        )

    def _webhooks(self, session: OrmSession) -> Iterator[Family]:
        first = deliveries.due_since(session)
        late = (db.now(session) - first).total_seconds() if first is not None else 0.0
        yield _family("expunge_webhooks_overdue_seconds", max(late, 0.0))

    def _book(self, session: OrmSession) -> Iterator[Family]:
        seen = self._ledger.look(session)
        yield _family("expunge_ledger_ok", float(seen.ok))
        yield _family("expunge_ledger_entries", seen.entries)
        yield _family("expunge_ledger_checked_entries", seen.checked)
        yield _family("expunge_ledger_unsigned_entries", seen.unsigned)
        if seen.checkpoint_at is not None:
            age = (db.now(session) - seen.checkpoint_at).total_seconds()
            yield _family("expunge_ledger_checkpoint_age_seconds", max(age, 0.0))


def registry(settings: Settings) -> CollectorRegistry:
    """A registry that reads the database when it is asked."""
    made = CollectorRegistry()
    made.register(Database(settings))
    return made
