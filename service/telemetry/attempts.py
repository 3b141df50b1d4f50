"""Counting runs that have ended, each once, without reading all of them at every scrape."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.requests.lifecycle import PHASES
from service.tables import Attempt, UnlearnRequest
from service.telemetry.catalogue import BY_NAME

OVERLAP = timedelta(minutes=2)
"""A run's end is written by the clock, and seen when its transaction commits: rows may appear so much behind the newest."""
BATCH = 1_000


class Run(NamedTuple):
    """What is counted of a run that has ended. Its report is large, so only the verdict is read."""

    request_id: str
    fence: int
    started_at: datetime
    ended_at: datetime
    outcome: str | None
    detail: dict[str, Any] | None
    gpu_class: str
    verdict: str | None


class Runs:
    """Counters over the rows of ended runs. They begin with the first run ever, so a restart of the process resets nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = self._counter("expunge_attempts_total")
        self._errors = self._counter("expunge_attempt_errors_total")
        self._lost = self._counter("expunge_lease_expired_total")
        self._gpu = self._counter("expunge_gpu_seconds_total")
        self._failed = self._counter("expunge_verification_failed_total")
        phases = BY_NAME["expunge_phase_duration_seconds"]
        self._phases = Histogram(phases.name, phases.help, phases.labels, registry=self.registry, buckets=phases.buckets)
        self._newest: datetime | None = None
        self._recent: dict[tuple[str, int], datetime] = {}

    def _counter(self, name: str) -> Counter:
        metric = BY_NAME[name]
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def count(self, session: OrmSession) -> None:
        """Count the runs that ended since the last call."""
        for run in list(self._new(session)):
            self._one(run)

    def _new(self, session: OrmSession) -> Iterator[Run]:
        columns = Attempt.request_id, Attempt.fence, Attempt.started_at, Attempt.ended_at, Attempt.outcome, Attempt.detail
        query = (
            select(*columns, UnlearnRequest.gpu_class, Attempt.report["verdict"].as_string())
            .join(UnlearnRequest, UnlearnRequest.id == Attempt.request_id)
            .where(Attempt.ended_at.is_not(None))
            .order_by(Attempt.ended_at)
            .execution_options(yield_per=BATCH)
        )
        if self._newest is not None:
            query = query.where(Attempt.ended_at >= self._newest - OVERLAP)
        for row in session.execute(query):
            run = Run(*row)
            if (run.request_id, run.fence) not in self._recent:
                yield run

    def _one(self, row: Run) -> None:
        detail = row.detail or {}
        self._outcomes.labels(row.outcome or "unknown").inc()
        if row.outcome == "lost":
            self._lost.inc()
        if row.outcome not in ("succeeded", "cancelled") and (code := detail.get("code")):
            self._errors.labels(str(code)).inc()
        if row.verdict is not None and row.verdict != "PASS":
            self._failed.labels(row.verdict).inc()
        if gpus := int(detail.get("gpus", 0)):
            self._gpu.labels(row.gpu_class).inc(gpus * max((row.ended_at - row.started_at).total_seconds(), 0.0))
        for phase, seconds in phase_seconds(row):
            self._phases.labels(phase).observe(seconds)
        self._newest = max(self._newest or row.ended_at, row.ended_at)
        self._recent[row.request_id, row.fence] = row.ended_at
        if len(self._recent) > 2 * BATCH:
            oldest = self._newest - OVERLAP
            self._recent = {key: at for key, at in self._recent.items() if at >= oldest}


def phase_seconds(row: Run) -> list[tuple[str, float]]:
    """How long each phase of an ended run took, in order. Staging begins with the run."""
    entered = {"staging": row.started_at}
    for phase, at in ((row.detail or {}).get("phases") or {}).items():
        if phase in PHASES:
            entered[phase] = datetime.fromisoformat(at)
    marks = sorted(entered.items(), key=lambda pair: pair[1])
    ends = [at for _, at in marks[1:]] + [row.ended_at]
    return [(phase, max((end - at).total_seconds(), 0.0)) for (phase, at), end in zip(marks, ends, strict=True)]
