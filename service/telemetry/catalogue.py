"""Every metric by name. The code makes none that is not here; run as a module it prints `docs/reference/metrics.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["api", "exporter"]

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PHASE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)


@dataclass(frozen=True)
class Metric:
    """One metric as Prometheus sees it. `name` includes a counter's `_total`."""

    name: str
    kind: Kind
    process: Process
    help: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] = ()
    """Upper bounds, seconds; of histograms."""

    @property
    def series(self) -> frozenset[str]:
        """Names of the samples that queries may use."""
        if self.kind == "histogram":
            return frozenset(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return frozenset({self.name})


METRICS = (
    Metric("expunge_http_requests_total", "counter", "api", "answers of the API", ("method", "route", "status")),
    Metric(
        "expunge_http_request_duration_seconds",
        "histogram",
        "api",
        "from a request's first byte to its answer's last one; streams count from first to last event",
        ("method", "route"),
        REQUEST_SECONDS,
    ),
    Metric("expunge_api_database_errors_total", "counter", "api", "requests that the database did not answer"),
    Metric("expunge_api_store_errors_total", "counter", "api", "reads of the API that the store did not answer"),
    Metric("expunge_api_rate_limited_total", "counter", "api", "calls that a rate limit refused, by its kind", ("limit",)),
    Metric(
        "expunge_api_rate_limit_store_errors_total",
        "counter",
        "api",
        "times that Redis did not count a call in time; for 5 s after each, this process counts alone",
    ),
    Metric("expunge_database_up", "gauge", "exporter", "1: the exporter's last look at the database succeeded"),
    Metric("expunge_requests_total", "counter", "exporter", "requests that have ended, by their last status", ("status",)),
    Metric("expunge_requests_open", "gauge", "exporter", "requests that have not ended", ("status",)),
    Metric("expunge_queue_depth", "gauge", "exporter", "queued requests", ("gpu_class",)),
    Metric("expunge_queue_ready", "gauge", "exporter", "queued requests that a worker may take now", ("gpu_class",)),
    Metric("expunge_queue_age_seconds", "gauge", "exporter", "age of the oldest queued request; 0: none", ("gpu_class",)),
    Metric("expunge_workers_alive", "gauge", "exporter", "workers there that take requests of the class", ("gpu_class",)),
    Metric("expunge_workers_idle", "gauge", "exporter", "of these, those with nothing to do", ("gpu_class",)),
    Metric(
        "expunge_deadline_slack_seconds",
        "gauge",
        "exporter",
        "until the latest start of the waiting request that is most pressed; negative: too late; absent: no law's clock runs",
    ),
    Metric("expunge_deadlines_overdue", "gauge", "exporter", "requests past their legal deadline without an answer"),
    Metric("expunge_attempts_total", "counter", "exporter", "runs that have ended", ("outcome",)),
    Metric(
        "expunge_attempt_errors_total",
        "counter",
        "exporter",
        "runs that ended with a problem, by its code; `store_unavailable` and `disk_full` among them",
        ("code",),
    ),
    Metric("expunge_lease_expired_total", "counter", "exporter", "runs whose worker fell silent or died"),
    Metric(
        "expunge_phase_duration_seconds",
        "histogram",
        "exporter",
        "phases of runs that have ended",
        ("phase",),
        PHASE_SECONDS,
    ),
    Metric(
        "expunge_gpu_seconds_total",
        "counter",
        "exporter",
        "GPUs of a run times its length, of runs that have ended; a run without a GPU adds nothing",
        ("gpu_class",),
    ),
    Metric("expunge_verification_failed_total", "counter", "exporter", "results that verification did not pass", ("verdict",)),
    Metric(
        "expunge_webhooks_overdue_seconds",
        "gauge",
        "exporter",
        "how long the webhook message that is due longest has waited for a sender; 0: none is due",
    ),
    Metric(
        "expunge_ledger_ok",
        "gauge",
        "exporter",
        "0: entries, stored hashes and the newest signed checkpoint do not agree; stays 0 until the exporter is restarted",
    ),
    Metric("expunge_ledger_entries", "gauge", "exporter", "entries of the ledger"),
    Metric(
        "expunge_ledger_checked_entries",
        "gauge",
        "exporter",
        "entries whose text was hashed again since the exporter's pass over the ledger began; a pass a day",
    ),
    Metric("expunge_ledger_unsigned_entries", "gauge", "exporter", "entries that no signed checkpoint covers yet"),
    Metric("expunge_ledger_checkpoint_age_seconds", "gauge", "exporter", "age of the newest checkpoint; absent: there is none"),
)

BY_NAME = {metric.name: metric for metric in METRICS}


def reference() -> str:
    """The metrics reference, as `docs/reference/metrics.md` holds it."""
    rows = [f"| `{m.name}` | {m.kind} | {', '.join(f'`{n}`' for n in m.labels) or '-'} | {m.help} |" for m in METRICS]
    api = [row for row, m in zip(rows, METRICS, strict=True) if m.process == "api"]
    exporter = [row for row, m in zip(rows, METRICS, strict=True) if m.process == "exporter"]
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join(
        [
            "# Metrics",
            "",
            "<!-- printed by `python -m service.telemetry.catalogue`; do not edit -->",
            "",
            "In Prometheus' text format, at `/metrics` of a port of its own, never of the API's. Both listen on",
            "`EXPUNGE_METRICS_HOST`. No label holds a name, an id or anything that a client wrote.",
            "",
            "## The API",
            "",
            "Where `EXPUNGE_API_METRICS_PORT` is set. `route` is the route's template, and `unmatched` for an address that no",
            "route has. Counts are this process's own, so several processes are summed.",
            "",
            *head,
            *api,
            "",
            "## The exporter",
            "",
            "`expunge metrics`, on `EXPUNGE_METRICS_PORT`. Everything here is read from the database at each scrape, so **one",
            "exporter is enough, and workers have none**: with several, take `max`, not `sum`. What runs report is counted",
            "from the rows; a restart of the exporter counts the same rows again and resets nothing. While the database does",
            "not answer, `expunge_database_up` is 0 and the rest is absent.",
            "",
            *head,
            *exporter,
            "",
            "`expunge_ledger_ok` compares the ledger with itself and with its signed checkpoints, by this installation's keys",
            "where the exporter can read them (`EXPUNGE_PUBLIC_KEY`). Who can change both is not seen here; `expunge verify",
            "ledger` on an export sees it, with a policy that was kept elsewhere: [the ledger](ledger.md).",
            "",
            "Alerts and a dashboard over these metrics are in `deploy/observability/`; what to do on each alert is in",
            "[operations](../operations.md).",
            "",
        ]
    )


if __name__ == "__main__":
    print(reference(), end="")
