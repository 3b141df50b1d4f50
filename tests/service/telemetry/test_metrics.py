"""Metrics: every one is documented and made, once for a deployment, and says what the rows say."""

from __future__ import annotations

import threading
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError

from service import db
from service.audit.leaves import RunFinished
from service.config import get_settings
from service.requests import endings, leases
from service.requests.endings import Problem
from service.requests.leases import Lease
from service.tables import Attempt, UnlearnRequest, WebhookEndpoint, Worker
from service.telemetry import exporter, http, serving
from service.telemetry.attempts import Run, phase_seconds
from service.telemetry.catalogue import METRICS, reference
from service.webhooks import deliveries
from tests.service.audit.logs import notary
from tests.worker.conductor import house as h

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"


def families(registry: CollectorRegistry) -> dict[str, str]:
    """Type by the name that the catalogue uses: counters with their `_total`."""
    return {f.name + ("_total" if f.type == "counter" else ""): f.type for f in registry.collect()}


def tamper() -> None:
    """Change an entry's text past the guards, as somebody with the database's own rights can."""
    with db.transaction() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("ALTER TABLE ledger_entry DISABLE TRIGGER ALL"))
        else:
            for name in session.scalars(text("SELECT name FROM sqlite_schema WHERE type = 'trigger'")).all():
                session.execute(text(f"DROP TRIGGER {name}"))
        session.execute(text("UPDATE ledger_entry SET leaf = :leaf"), {"leaf": b"another story"})


def held(request_id: str) -> Lease:
    with db.transaction() as session:
        lease = leases.claim(session, request_id, owner="w1", lease_seconds=60)
    assert lease is not None
    return lease


@pytest.fixture
def house(database: str, tmp_path: Path) -> h.House:
    return h.furnish(tmp_path)


@pytest.fixture
def metrics(house: h.House) -> CollectorRegistry:
    return exporter.registry(get_settings())


def test_the_reference_is_what_the_catalogue_says() -> None:
    """`python -m service.telemetry.catalogue > docs/reference/metrics.md` after a change."""
    assert REFERENCE.read_text() == reference()


@pytest.mark.one_database
def test_every_documented_metric_exists_and_every_metric_is_documented(house: h.House, metrics: CollectorRegistry) -> None:
    h.ask(house)
    with db.transaction() as session:  # what is absent while nothing waits and nothing was signed
        session.execute(update(UnlearnRequest).values(latest_start_at=db.now(session)))
    notary().round()
    made = {name: ("exporter", kind) for name, kind in families(metrics).items()}
    made |= {name: ("api", kind) for name, kind in families(http.REGISTRY).items()}
    assert made == {m.name: (m.process, m.kind) for m in METRICS}


def test_the_queue_is_counted_by_gpu_class_and_a_class_without_workers_says_so(
    house: h.House, metrics: CollectorRegistry
) -> None:
    first, second = h.ask(house, 1), h.ask(house, 2)
    with db.transaction() as session:
        at = db.now(session)
        session.execute(update(UnlearnRequest).where(UnlearnRequest.id == first).values(gpu_class="large"))
        session.execute(update(UnlearnRequest).values(created_at=UnlearnRequest.created_at, latest_start_at=None))
        session.execute(
            update(UnlearnRequest).where(UnlearnRequest.id == first).values(latest_start_at=at - timedelta(seconds=500))
        )
        common = {"host": "h", "state": "active", "started_at": at, "seen_at": at}
        session.add(Worker(id="w1", gpu_classes=["default", "small"], request_id=None, **common))
        session.add(Worker(id="w2", gpu_classes=["small"], request_id=second, **common))
        gone = {**common, "seen_at": at - timedelta(minutes=5)}
        session.add(Worker(id="w3", gpu_classes=["large"], request_id=None, **gone))

    def value(name: str, gpu_class: str) -> float | None:
        return metrics.get_sample_value(name, {"gpu_class": gpu_class})

    assert [value("expunge_queue_depth", c) for c in ("large", "default", "small")] == [1, 1, 0]
    assert [value("expunge_queue_ready", c) for c in ("large", "default")] == [1, 0]  # of one model, the older comes first
    assert [value("expunge_workers_alive", c) for c in ("large", "default", "small")] == [0, 1, 2]
    assert [value("expunge_workers_idle", c) for c in ("large", "default", "small")] == [0, 1, 1]
    slack = metrics.get_sample_value("expunge_deadline_slack_seconds")
    assert slack is not None
    assert -560 < slack <= -500
    age = value("expunge_queue_age_seconds", "large")
    assert age is not None
    assert 0 < age < 60


def test_runs_are_counted_once_and_again_after_a_restart(house: h.House, metrics: CollectorRegistry) -> None:
    lost, failed = h.ask(house, 1), h.ask(house, 2)
    held(lost)
    with db.transaction() as session:
        endings.reap(session, lost, 1, max_attempts=1, reason="silent", only_expired=False)
    lease = held(failed)
    with db.transaction() as session:
        leases.renew(session, lease, lease_seconds=60, phase="unlearning")
        leases.record(session, lease, RunFinished(fence=1, candidate_digest="d" * 64, iterations=1), detail={"gpus": 4})
    with db.transaction() as session:
        attempt = session.get_one(Attempt, (failed, 1))
        attempt.started_at -= timedelta(seconds=100)
        attempt.report = {"verdict": "FAIL"}
    with db.transaction() as session:
        endings.fail(session, lease, Problem("verification_failed", "verification", "it remembers"))

    def counted(registry: CollectorRegistry) -> list[float | None]:
        ask = registry.get_sample_value
        return [
            ask("expunge_attempts_total", {"outcome": "lost"}),
            ask("expunge_attempts_total", {"outcome": "failed"}),
            ask("expunge_lease_expired_total"),
            ask("expunge_attempt_errors_total", {"code": "verification_failed"}),
            ask("expunge_verification_failed_total", {"verdict": "FAIL"}),
            ask("expunge_phase_duration_seconds_count", {"phase": "unlearning"}),
            ask("expunge_requests_total", {"status": "failed"}),
        ]

    assert counted(metrics) == [1, 1, 1, 1, 1, 1, 2]
    assert counted(metrics) == [1, 1, 1, 1, 1, 1, 2]
    assert counted(exporter.registry(get_settings())) == [1, 1, 1, 1, 1, 1, 2]
    seconds = metrics.get_sample_value("expunge_gpu_seconds_total", {"gpu_class": "default"})
    assert seconds is not None
    assert 400 <= seconds < 500  # 4 GPUs for 100 s and a little


def test_a_webhook_that_nobody_sends_is_overdue(house: h.House, metrics: CollectorRegistry) -> None:
    name = "expunge_webhooks_overdue_seconds"
    with db.transaction() as session:
        at = db.now(session)
        endpoint = WebhookEndpoint(id="whe_1", project_id="default", url="https://a.example", description="", event_types=[])
        endpoint.secret, endpoint.created_at, endpoint.created_by = b"s", at, "user:local"
        session.add(endpoint)
        session.flush()
        later = deliveries.fresh("whe_1", "default", "msg_1", "a.b", "{}", at + timedelta(hours=1))
        session.add(later)
    assert metrics.get_sample_value(name) == 0  # it is not its turn
    with db.transaction() as session:
        session.add(deliveries.fresh("whe_1", "default", "msg_2", "a.b", "{}", at - timedelta(minutes=15)))
    late = metrics.get_sample_value(name)
    assert late is not None
    assert 900 <= late < 960


def test_the_phases_of_a_run_add_up_to_its_length(database: str) -> None:
    with db.reading() as session:
        begun = db.now(session)

    def later(seconds: float) -> str:
        return (begun + timedelta(seconds=seconds)).isoformat()

    phases = {"unlearning": later(2), "verifying": later(12), "no such phase": later(13)}
    run = Run("r", 1, begun, begun + timedelta(seconds=20), "lost", {"phases": phases}, "default", None)
    assert phase_seconds(run) == [("staging", 2.0), ("unlearning", 10.0), ("verifying", 8.0)]


def test_a_changed_entry_makes_the_ledger_not_ok_for_good(house: h.House, metrics: CollectorRegistry) -> None:
    held(h.ask(house))
    assert metrics.get_sample_value("expunge_ledger_ok") == 1
    assert metrics.get_sample_value("expunge_ledger_checked_entries") == 1
    tamper()
    assert exporter.registry(get_settings()).get_sample_value("expunge_ledger_ok") == 0


def test_a_shorter_ledger_is_not_ok(house: h.House) -> None:
    from service.telemetry.ledger import Check

    held(h.ask(house))
    check = Check(get_settings())
    with db.snapshot() as session:
        assert check.look(session).ok
    assert check._entries(session, 0) == ["1 entries were there, and 0 are"]


def test_a_database_that_is_away_is_one_gauge_and_no_crash(metrics: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.get_sample_value("expunge_database_up") == 1

    def away() -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr(db, "snapshot", away)
    assert families(metrics) == {"expunge_database_up": "gauge"}
    assert metrics.get_sample_value("expunge_database_up") == 0


@pytest.mark.one_database
def test_the_exporter_answers_on_its_own_port_until_it_is_told_to_stop(metrics: CollectorRegistry) -> None:
    with serving.served(metrics, "127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            found = {f.name for f in text_string_to_metric_families(answer.read().decode())}
        assert "expunge_queue_depth" in found
    assert not [t for t in threading.enumerate() if "serve_forever" in t.name]


# ---------------------------------------------------------------------------------------------------------------- the API


def counted(method: str, route: str, status: str) -> float:
    labels = {"method": method, "route": route, "status": status}
    return http.REGISTRY.get_sample_value("expunge_http_requests_total", labels) or 0.0


@pytest.mark.one_database
def test_answers_are_counted_by_template_never_by_address(client: TestClient) -> None:
    before = counted("GET", "/unlearn-requests/{request_id}", "404"), counted("GET", http.UNMATCHED, "404")
    client.get("/unlearn-requests/jane.doe@example.org")
    client.get("/jane.doe@example.org")
    client.request("JANE", "/healthz")
    after = counted("GET", "/unlearn-requests/{request_id}", "404"), counted("GET", http.UNMATCHED, "404")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    samples = [s for f in http.REGISTRY.collect() for s in f.samples]
    assert not [s for s in samples if "jane" in str(s.labels).lower()]
    timed = {"method": "GET", "route": "/unlearn-requests/{request_id}"}
    assert http.REGISTRY.get_sample_value("expunge_http_request_duration_seconds_count", timed)


@pytest.mark.one_database
def test_a_database_that_is_away_is_counted(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = http.REGISTRY.get_sample_value("expunge_api_database_errors_total") or 0
    with db.transaction() as session:
        session.execute(text("ALTER TABLE model RENAME TO elsewhere"))
    assert client.get("/models").status_code == 503
    assert http.REGISTRY.get_sample_value("expunge_api_database_errors_total") == before + 1
