"""Who comes first, what keeps a request from starting, how many may wait and run, and who is there to run them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from sqlalchemy.orm import Session as OrmSession

from service import db, outbox, tenancy
from service.app import create_app
from service.config import get_settings
from service.requests import leases, quotas, schedule
from service.requests.leases import Lease, NoRoom
from service.tables import Attempt, UnlearnRequest, Worker
from service.workers import repository as workers
from tests.service.access.people import project
from tests.support import LOCAL_URL, ask, code_of, move, register
from tests.worker.conductor import house as h
from worker.conductor import pipeline

HOUR = timedelta(hours=1)


def put(request_id: str, *, latest: float | None = None, **columns: Any) -> str:
    """A request as if it had to start in `latest` hours."""
    with db.transaction() as session:
        if latest is not None:
            columns["latest_start_at"] = datetime(2030, 1, 1, tzinfo=UTC) + latest * HOUR
        session.execute(update(UnlearnRequest).where(UnlearnRequest.id == request_id).values(**columns))
    return request_id


def order(classes: tuple[str, ...] | None = None) -> list[str]:
    with db.reading() as session:
        return [one.request_id for one in outbox.due(session, limit=10, classes=classes)]


def claim(classes: tuple[str, ...] = ("default",), owner: str = "w", most_active: int = 0) -> Lease | None:
    with db.transaction() as session:
        return leases.claim_next(session, owner=owner, lease_seconds=60, classes=classes, most_active=most_active)


def there(name: str = "w", classes: tuple[str, ...] = ("default",), state: workers.State = "active") -> None:
    with db.transaction() as session:
        workers.touch(session, workers.Sign(name, "host", classes, state, None))


@pytest.mark.usefixtures("database")
def test_the_earliest_latest_start_then_the_class_then_the_oldest(tmp_path: Path) -> None:
    oldest, bulk, urgent, soon, later = (h.ask(h.furnish(tmp_path / name)) for name in "abcde")
    put(bulk, priority="bulk")
    put(urgent, priority="urgent")
    put(soon, latest=1, priority="bulk")
    put(later, latest=2, priority="urgent")
    assert order() == [soon, later, urgent, oldest, bulk]
    taken = [lease.request_id for lease in (claim() for _ in range(5)) if lease]
    assert taken == [soon, later, urgent, oldest, bulk]
    assert claim() is None


@pytest.mark.usefixtures("database")
def test_a_request_is_as_urgent_as_what_waits_behind_it(tmp_path: Path) -> None:
    one, other = h.furnish(tmp_path / "a"), h.furnish(tmp_path / "b")
    front, behind, rival = h.ask(one, 1), h.ask(one, 2), h.ask(other, 1)
    put(behind, latest=1)
    put(rival, latest=2)
    assert order() == [front, rival]
    assert claim().request_id == front  # type: ignore[union-attr]


@pytest.mark.usefixtures("database")
def test_a_worker_takes_the_best_of_the_classes_that_it_serves(tmp_path: Path) -> None:
    big, small = (h.ask(h.furnish(tmp_path / name)) for name in "ab")
    put(big, gpu_class="h200x4", priority="urgent")
    assert order(("default",)) == [small]
    assert order(("h200x4", "default")) == [big, small]
    assert claim(("cpu",)) is None
    assert claim().request_id == small  # type: ignore[union-attr]
    with db.reading() as session:
        assert [one.gpu_class for one in outbox.due(session, limit=5)] == ["h200x4"]


@pytest.mark.usefixtures("database")
def test_no_more_run_than_may(tmp_path: Path) -> None:
    """Also when two workers counted at once: the second to write counts again, under the ledger's lock."""
    first, second = (h.ask(h.furnish(tmp_path / name)) for name in "ab")
    assert claim(most_active=1).request_id == first  # type: ignore[union-attr]
    assert claim(most_active=1) is None
    with pytest.raises(NoRoom), db.transaction() as session:
        leases.claim(session, second, owner="w", lease_seconds=60, most_active=1)
    assert (h.request(second).status, h.attempts(second), h.actions(second)) == ("queued", [], [])
    with db.reading() as session:
        assert quotas.usage(session, "default") == quotas.Usage(active=1, queued=1)
        assert quotas.usage(session, "elsewhere") == quotas.Usage(active=0, queued=0)
        assert quotas.active(session) == {"default": 1}
        assert outbox.due(session, limit=1, most_active=1) == []
        assert [one.request_id for one in outbox.due(session, limit=1, most_active=2)] == [second]


def full_project_first(folder: Path) -> tuple[str, str]:
    """One project's request runs and its next one comes first of all; then comes another project's. Returns these two."""
    waiting = []
    for name, count in (("a", 2), ("b", 1)):
        with tenancy.acting(project(name)):
            waiting += [h.ask(h.furnish(folder / f"{name}{k}")) for k in range(count)]
    running, first, other = waiting
    with db.transaction() as session:
        assert leases.claim(session, running, owner="another", lease_seconds=60)
    return first, other


@pytest.mark.usefixtures("database")
def test_a_project_whose_places_are_taken_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    first, other = full_project_first(tmp_path)
    assert order() == [first, other]
    assert claim(most_active=1).request_id == other  # type: ignore[union-attr]
    assert claim(most_active=1) is None


@pytest.mark.usefixtures("database")
def test_a_worker_that_came_too_late_for_a_project_s_last_place_takes_another_project_s_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = full_project_first(tmp_path)
    looks: list[int] = []

    def before_the_other_claimed(session: OrmSession, *, most_active: int, **wanted: Any) -> list[outbox.Due]:
        looks.append(most_active)
        return outbox.due(session, most_active=0 if len(looks) == 1 else most_active, **wanted)

    monkeypatch.setattr(leases, "due", before_the_other_claimed)
    assert pipeline.run_next(h.make_room(max_active_requests=1)) == "succeeded"
    assert looks == [1, 1]
    assert (h.request(other).status, h.request(first).status, h.attempts(first)) == ("succeeded", "queued", [])


def test_latest_start_is_the_deadline_less_the_run_and_the_margin(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    plain = ask(client, model, 1).json()
    assert (plain["latest_start_at"], plain["expected_run_seconds"]) == (None, None)
    legal = ask(client, model, 2, jurisdiction="gdpr").json()
    settings, due_at = get_settings(), datetime.fromisoformat(legal["compliance"]["due_at"])
    free = timedelta(seconds=settings.expected_run_seconds + settings.deadline_margin_seconds)
    assert datetime.fromisoformat(legal["latest_start_at"]) == due_at - free
    reason = "complexity"
    event = {"type": "deadline.extended", "reason": reason, "informed_at": datetime.now(UTC).isoformat()}
    made = client.post(f"/unlearn-requests/{legal['id']}/compliance-events", json=event)
    assert made.status_code < 300, made.text
    shown = client.get(f"/unlearn-requests/{legal['id']}").json()
    assert datetime.fromisoformat(shown["latest_start_at"]) == datetime.fromisoformat(shown["compliance"]["due_at"]) - free
    assert shown["version"] > legal["version"]


def test_the_expected_run_is_the_median_of_what_runs_took(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    start = datetime.now(UTC) - timedelta(days=1)
    for number, (seconds, method) in enumerate([(100, "sfron"), (300, "sfron"), (900, "sfron"), (5, "staged")]):
        request = ask(client, model, number, method=method).json()
        ran = {"fence": 1, "worker": "w", "started_at": start, "ended_at": start + timedelta(seconds=seconds)}
        with db.transaction() as session:
            session.add(Attempt(request_id=request["id"], outcome="succeeded", **ran))
        move(request["id"], "running", "succeeded")
    with db.reading() as session:
        expected = [
            schedule.expected_run_seconds(session, get_settings(), family="ddpm", method=method)
            for method in ("sfron", "staged", "aaa_baseline")
        ]
    assert expected == [300.0, 5.0, get_settings().expected_run_seconds]


def reason(client: TestClient, request: dict[str, Any]) -> Any:
    return client.get(f"/unlearn-requests/{request['id']}").json()["status_reason"]


def test_a_request_says_what_it_waits_for(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first, second = ask(client, model, 1).json(), ask(client, model, 2, resources={"gpu_class": "h200x4"}).json()
    assert reason(client, first)["code"] == "no_worker"
    there()
    assert reason(client, first) is None
    there(classes=("default", "h200x4"))
    assert (reason(client, second)["code"], reason(client, second)["request_id"]) == ("behind", first["id"])
    client.post(f"/unlearn-requests/{first['id']}/pause")
    assert reason(client, second)["code"] == "behind_paused"
    assert reason(client, first) is None
    client.post(f"/unlearn-requests/{first['id']}/resume")
    h.change(first["id"], not_before=HOUR)
    assert reason(client, first)["code"] == "resting"
    there(state="draining")
    assert reason(client, first)["code"] == "no_worker"
    codes = [entry["status_reason"]["code"] for entry in client.get("/queue").json()["data"]]
    assert codes == ["no_worker", "no_worker"]


def test_the_queue_is_shown_in_the_order_in_which_it_is_taken(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    first = ask(client, model, 1, priority="bulk").json()
    second = ask(client, model, 2, jurisdiction="gdpr").json()
    running = ask(client, model, 3).json()
    put(running["id"], created_at=datetime(2020, 1, 1, tzinfo=UTC))
    move(running["id"], "running")
    shown = client.get("/queue").json()
    assert [(e["position"], e["request_id"], e["priority"]) for e in shown["data"]] == [
        (1, first["id"], "bulk"), (2, second["id"], "standard"),
    ]  # fmt: skip
    assert shown["data"][1]["latest_start_at"] == second["latest_start_at"] is not None
    assert shown["data"][0]["waiting_seconds"] >= 0
    short = client.get("/queue?limit=1").json()
    assert (len(short["data"]), short["has_more"], shown["has_more"]) == (1, True, False)


def test_workers_are_there_while_they_say_so(client: TestClient) -> None:
    there("a", ("cpu", "default"))
    there("b")
    late = timedelta(seconds=workers.SWEEPS * max(get_settings().sweep_seconds, 1.0) + 1)
    with db.transaction() as session:
        session.get_one(Worker, "b").seen_at = db.now(session) - late
    shown = {one["id"]: one for one in client.get("/workers").json()["data"]}
    assert [(shown[k]["alive"], shown[k]["gpu_classes"], shown[k]["state"]) for k in "ab"] == [
        (True, ["cpu", "default"], "active"), (False, ["default"], "active"),
    ]  # fmt: skip
    with db.transaction() as session:
        session.get_one(Worker, "b").seen_at = db.now(session) - 2 * HOUR
    there("a")
    assert [one["id"] for one in client.get("/workers").json()["data"]] == ["a"]
    with db.transaction() as session:
        workers.leave(session, "a")
    assert client.get("/workers").json()["data"] == []


def test_no_more_wait_than_may(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = register(client, tmp_path)
    monkeypatch.setenv("EXPUNGE_MAX_QUEUED_REQUESTS", "2")
    db.reset()
    with TestClient(create_app(), base_url=LOCAL_URL, raise_server_exceptions=False) as strict:
        first, second = (ask(strict, model, k).json() for k in (1, 2))
        strict.post(f"/unlearn-requests/{first['id']}/pause")  # it waits, too
        refused = ask(strict, model, 3)
        assert (refused.status_code, code_of(refused)) == (429, "quota_exceeded")
        assert (refused.json()["quota"], refused.json()["limit"]) == ("max_queued_requests", 2)
        assert refused.headers["retry-after"].isdigit()
        assert len(strict.get("/unlearn-requests").json()["data"]) == 2
        strict.post(f"/unlearn-requests/{second['id']}/cancel")
        assert ask(strict, model, 3).status_code == 202
