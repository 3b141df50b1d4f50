"""From an event to a message that its receiver can trust: written together, sent at least once, given up in the end."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from service import db, tenancy
from service.audit.leaves import LOCAL
from service.config import get_settings
from service.edge import writing
from service.requests import leases
from service.tables import LedgerEntry, RequestEvent, WebhookDelivery, WebhookEndpoint
from service.webhooks import deliveries, service, signing
from service.webhooks.deliveries import PAUSES
from service.webhooks.guard import SendFailed
from service.webhooks.schemas import WebhookEndpointCreate
from service.webhooks.sender import Sender
from tests.service.access.people import project
from tests.service.audit.people import entries, said
from tests.service.webhooks.conftest import Receiver, Wire
from tests.support import ask, code_of, register

URL = "https://hooks.example.org/expunge"


class Clock:
    """The database's clock, as these tests set it."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 22, 10, tzinfo=UTC)

    def __call__(self, _session: Any) -> datetime:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deliveries, "now", made)
    return made


def endpoint(client: TestClient, **more: Any) -> dict[str, Any]:
    made = client.post("/webhook-endpoints", json={"url": URL, **more})
    assert made.status_code == 201, made.text
    body: dict[str, Any] = made.json()
    return body


def poke(client: TestClient, endpoint_id: str) -> dict[str, Any]:
    """A test message, waiting."""
    made = client.post(f"/webhook-endpoints/{endpoint_id}/test")
    assert made.status_code == 202, made.text
    body: dict[str, Any] = made.json()
    return body


def listed(client: TestClient, endpoint_id: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/webhook-endpoints/{endpoint_id}/deliveries", params=query).json()["data"]
    return found


def read(client: TestClient, endpoint_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/webhook-endpoints/{endpoint_id}").json()
    return found


def actions() -> list[tuple[str, str, str]]:
    with db.reading() as session:
        chosen = select(LedgerEntry).where(LedgerEntry.action.like("webhook%")).order_by(LedgerEntry.seq)
        return [(row.action, row.actor, row.tenant) for row in session.scalars(chosen)]


# ----------------------------------------------------------------------------------------------------------- the message


def test_an_event_is_sent_signed_and_its_receiver_can_check_it(
    client: TestClient, sender: Sender, wire: Wire, tmp_path: Path
) -> None:
    made = endpoint(client)
    request = ask(client, register(client, tmp_path), 1, external_id="DSAR-1188").json()
    assert sender.once() == 1
    [(url, headers, body)] = wire.sent
    assert url == URL
    told = Webhook(made["secret"]).verify(body, headers)
    assert (told["type"], told["data"]) == (
        "unlearning_request.created",
        {"request_id": request["id"], "status": "queued"},
    )
    with pytest.raises(WebhookVerificationError):
        Webhook(made["secret"]).verify(body.replace(b"queued", b"failed"), headers)
    [delivery] = listed(client, made["id"])
    assert (delivery["status"], delivery["attempts"], delivery["last_status"]) == ("delivered", 1, 204)
    assert (delivery["message_id"], delivery["body"]) == (headers["webhook-id"], json.loads(body))
    assert sender.once() == 0


@pytest.mark.one_database
def test_over_a_real_connection(client: TestClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.state.settings, "webhook_allow_loopback", True)  # type: ignore[attr-defined]
    made = endpoint(client, url=f"http://127.0.0.1:{receiver.port}/hook")
    poke(client, made["id"])
    settings = get_settings().model_copy(update={"webhook_allow_loopback": True})
    stop, here = threading.Event(), Sender(settings)
    thread = threading.Thread(target=here.run, args=(stop,))
    thread.start()
    try:
        for _ in range(100):
            if listed(client, made["id"])[0]["status"] != "pending":
                break
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join()
    [(path, headers, body)] = receiver.received
    assert (path, headers["content-type"]) == ("/hook", "application/json")
    assert Webhook(made["secret"]).verify(body, headers)["type"] == "webhook_endpoint.test"


def test_events_go_where_they_are_wanted(client: TestClient, tmp_path: Path) -> None:
    everything, ends = endpoint(client), endpoint(client, event_types=["unlearning_request.cancelled"])
    request = ask(client, register(client, tmp_path), 1).json()
    client.post(f"/unlearn-requests/{request['id']}/cancel")
    kinds = [[d["type"].partition(".")[2] for d in listed(client, e["id"])] for e in (everything, ends)]
    assert [sorted(k) for k in kinds] == [["cancelled", "created"], ["cancelled"]]
    [a], [b] = (listed(client, e["id"], status="pending")[:1] for e in (everything, ends))
    assert a["message_id"] == b["message_id"]  # one message, two endpoints
    assert listed(client, ends["id"], status="delivered") == []


def test_an_event_and_its_messages_are_one_transaction(client: TestClient, tmp_path: Path) -> None:
    made = endpoint(client)
    request = ask(client, register(client, tmp_path), 1).json()

    def told_and_rolled_back() -> None:
        with db.transaction() as session:
            leases.announce(session, request["id"], "started", {"fence": 1})
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        told_and_rolled_back()
    assert [d["type"] for d in listed(client, made["id"])] == ["unlearning_request.created"]
    with db.reading() as session:
        assert len(session.scalars(select(RequestEvent)).all()) == 1


# ------------------------------------------------------------------------------------------------- again, and giving up


def test_the_published_schedule(client: TestClient, sender: Sender, wire: Wire, clock: Clock) -> None:
    made = endpoint(client)
    wire.answers = [500] * len(PAUSES)
    with db.transaction() as session:
        session.add(deliveries.fresh(made["id"], "default", "msg_1", "t", "{}", clock.at))
    for number, pause in enumerate(PAUSES[1:], start=1):
        assert sender.once() == 1
        assert len(wire.sent) == number
        [delivery] = listed(client, made["id"])
        assert (delivery["status"], delivery["attempts"], delivery["last_error"]) == ("pending", number, "status")
        waits = datetime.fromisoformat(delivery["next_attempt_at"]) - clock.at
        assert timedelta(seconds=pause) <= waits <= timedelta(seconds=pause * 1.1, microseconds=1)
        clock.at += waits - timedelta(milliseconds=2)
        assert sender.once() == 0  # not a moment earlier
        clock.at += timedelta(milliseconds=4)
    assert sender.once() == 1
    [delivery] = listed(client, made["id"])
    assert (delivery["status"], delivery["attempts"], delivery["next_attempt_at"]) == ("failed", 10, None)
    assert len({headers["webhook-id"] for _, headers, _ in wire.sent}) == 1
    shown = read(client, made["id"])
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "failing")
    assert actions() == [
        ("webhook-endpoint.created", "user:local", "default"),
        ("webhook-endpoint.disabled", "service:webhooks", "default"),
    ]


def test_an_endpoint_that_took_something_meanwhile_stays(client: TestClient, sender: Sender, wire: Wire, clock: Clock) -> None:
    made = endpoint(client)
    with db.transaction() as session:
        row = deliveries.fresh(made["id"], "default", "msg_1", "t", "{}", clock.at)
        row.attempts = len(PAUSES) - 1
        session.add(row)
        session.get_one(WebhookEndpoint, made["id"]).delivered_at = clock.at + timedelta(seconds=1)
    wire.answers = [503]
    clock.at += timedelta(hours=1)
    assert sender.once() == 1
    assert [d["status"] for d in listed(client, made["id"])] == ["failed"]
    assert read(client, made["id"])["enabled"] is True


@pytest.mark.parametrize(
    ("answer", "error"),
    [(302, "redirect"), (404, "status"), (SendFailed("timeout"), "timeout"), (SendFailed("connection"), "connection")],
)
def test_what_counts_as_a_failure(client: TestClient, sender: Sender, wire: Wire, answer: Any, error: str) -> None:
    made = endpoint(client)
    poke(client, made["id"])
    wire.answers = [answer]
    sender.once()
    [delivery] = listed(client, made["id"])
    assert (delivery["status"], delivery["last_error"]) == ("pending", error)


def test_410_switches_the_endpoint_off(client: TestClient, sender: Sender, wire: Wire, tmp_path: Path) -> None:
    made = endpoint(client)
    poke(client, made["id"]), poke(client, made["id"])
    wire.answers = [410]
    assert sender.once() == 1
    shown = read(client, made["id"])
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
    assert sorted(d["last_error"] for d in listed(client, made["id"], status="failed")) == ["endpoint_disabled", "gone"]
    assert sender.once() == 0
    ask(client, register(client, tmp_path), 1)  # what happens meanwhile is not kept for it
    assert len(listed(client, made["id"])) == 2
    refused = client.post(f"/webhook-endpoints/{made['id']}/test")
    assert (refused.status_code, code_of(refused)) == (409, "webhook_endpoint_disabled")
    back = client.patch(f"/webhook-endpoints/{made['id']}", json={"enabled": True}).json()
    assert (back["enabled"], back["disabled_reason"]) == (True, None)


# ----------------------------------------------------------------------------------------------------- once at a time


def test_a_sender_that_died_after_sending_is_followed_by_another_with_the_same_id(
    client: TestClient, sender: Sender, wire: Wire, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = endpoint(client)
    with db.transaction() as session:
        session.add(deliveries.fresh(made["id"], "default", "msg_1", "t", "{}", clock.at))
    with monkeypatch.context() as patch:
        patch.setattr(deliveries, "settle", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sender.once()
    assert sender.once() == 0  # its lease holds
    clock.at += deliveries.LEASE + timedelta(seconds=1)
    assert sender.once() == 1
    assert [headers["webhook-id"] for _, headers, _ in wire.sent] == ["msg_1", "msg_1"]
    assert [(d["status"], d["attempts"]) for d in listed(client, made["id"])] == [("delivered", 2)]


def test_many_senders_send_each_message_once(client: TestClient, wire: Wire) -> None:
    made = [endpoint(client)["id"] for _ in range(6)]
    for endpoint_id in made:
        poke(client, endpoint_id)
    with db.reading() as session:
        waiting = deliveries.due(session, limit=100)
    assert len(waiting) == 6
    begin = threading.Barrier(4)
    taken: list[str] = []

    def race() -> None:
        begin.wait()
        for delivery_id in waiting:
            with db.transaction() as session:
                one = deliveries.take(session, delivery_id)
            if one is not None:
                taken.append(one.id)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(waiting)


def test_a_sender_that_slept_past_its_lease_settles_nothing(client: TestClient, clock: Clock) -> None:
    made = endpoint(client)
    with db.transaction() as session:
        session.add(deliveries.fresh(made["id"], "default", "msg_1", "t", "{}", clock.at))
    with db.reading() as session:
        [delivery_id] = deliveries.due(session, limit=1)
    with db.transaction() as session:
        slept = deliveries.take(session, delivery_id)
    clock.at += deliveries.LEASE + timedelta(seconds=1)
    with db.transaction() as session:
        awake = deliveries.take(session, delivery_id)
    assert slept is not None
    assert awake is not None
    with db.transaction() as session:
        assert not deliveries.settle(session, slept, deliveries.Outcome(204), jitter=0.0)
    with db.transaction() as session:
        assert deliveries.settle(session, awake, deliveries.Outcome(500, "status"), jitter=0.0)
    assert listed(client, made["id"])[0]["status"] == "pending"


def test_projects_take_turns(client: TestClient, clock: Clock) -> None:
    """Three endpoints of one project with 300 messages, and one of another with one that became due last."""
    many = [endpoint(client)["id"] for _ in range(3)]
    with tenancy.acting(project("other")), writing() as session:
        one = service.create(session, get_settings(), WebhookEndpointCreate(url=URL), LOCAL)[0].id
    with tenancy.acting(None), db.transaction() as session:
        for n in range(300):
            at = clock.at - timedelta(seconds=400 - n)
            session.add(deliveries.fresh(many[n % 3], "default", f"msg_{n}", "t", "{}", at))
        session.add(deliveries.fresh(one, "other", "msg_x", "t", "{}", clock.at))

    def due(limit: int, busy: dict[str, str]) -> list[str]:
        with tenancy.acting(None), db.reading() as session:
            rows = [session.get_one(WebhookDelivery, found) for found in deliveries.due(session, limit=limit, busy=busy)]
            return [row.message_id for row in rows]

    assert due(8, {}) == ["msg_0", "msg_x", "msg_1", "msg_2"]  # of each endpoint its oldest
    assert due(1, {many[0]: "default"}) == ["msg_x"]  # its turn: of the other project one is on its way
    assert due(8, {one: "other"}) == ["msg_0", "msg_1", "msg_2"]


def test_an_endpoint_that_hangs_has_one_message_on_its_way(client: TestClient) -> None:
    slow, quick = endpoint(client)["id"], endpoint(client)["id"]
    for endpoint_id in (slow, slow, slow, quick):
        poke(client, endpoint_id)
    with db.reading() as session:
        assert len(deliveries.due(session, limit=8)) == 2
        [only] = deliveries.due(session, limit=8, busy={slow: "default"})
        assert session.get_one(WebhookDelivery, only).endpoint_id == quick


def test_what_ended_long_ago_is_forgotten(client: TestClient, sender: Sender, clock: Clock) -> None:
    made = endpoint(client)
    with db.transaction() as session:
        session.add(deliveries.fresh(made["id"], "default", "msg_1", "t", "{}", clock.at))
    sender.once()
    with db.transaction() as session:
        session.add(deliveries.fresh(made["id"], "default", "msg_2", "t", "{}", clock.at))
    clock.at += deliveries.KEPT + timedelta(days=1)
    with db.transaction() as session:
        assert deliveries.prune(session) == 1
    assert [d["message_id"] for d in listed(client, made["id"])] == ["msg_2"]  # it still waits


# -------------------------------------------------------------------------------------------------------------- secrets


def test_while_a_secret_is_rotated_both_sign(client: TestClient, sender: Sender, wire: Wire, clock: Clock) -> None:
    old = endpoint(client)
    new = client.post(f"/webhook-endpoints/{old['id']}/rotate-secret", json={"overlap_hours": 1}).json()
    assert new["secret"] != old["secret"]
    poke(client, old["id"])
    clock.at = datetime.now(UTC) + timedelta(seconds=1)  # the library's verifier looks at the real clock
    sender.once()
    _, headers, body = wire.sent[-1]
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old["secret"], new["secret"]):
        assert Webhook(secret).verify(body, headers)["type"] == "webhook_endpoint.test"
    poke(client, old["id"])
    with db.transaction() as session:
        session.get_one(WebhookEndpoint, old["id"]).previous_until = clock.at
    clock.at = datetime.now(UTC) + timedelta(seconds=1)
    sender.once()
    _, headers, body = wire.sent[-1]
    assert Webhook(new["secret"]).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old["secret"]).verify(body, headers)


def test_secrets_lie_sealed_and_are_shown_once(client: TestClient) -> None:
    made = endpoint(client)
    assert "secret" not in read(client, made["id"])
    assert "secret" not in client.get("/webhook-endpoints").json()["data"][0]
    plain = Webhook(made["secret"])._whsecret
    with db.reading() as session:
        kept = session.get_one(WebhookEndpoint, made["id"]).secret
    assert plain not in kept
    assert len(plain) == signing.SECRET_BYTES


def test_without_its_key_a_secret_signs_nothing(client: TestClient, sender: Sender, wire: Wire) -> None:
    """Nothing is sent unsigned, and nothing is lost: it waits for the key as it would for the endpoint."""
    made = endpoint(client)
    poke(client, made["id"])
    kek = get_settings().kek_folder / f"{signing.KEK}.kek"
    kek.rename(kek.with_suffix(".away"))
    sender.once()
    assert wire.sent == []
    [delivery] = listed(client, made["id"])
    assert (delivery["status"], delivery["last_error"]) == ("pending", "secret_unavailable")


# --------------------------------------------------------------------------------------------------------------- by hand


def test_redelivery_sends_the_same_message_again(client: TestClient, sender: Sender, wire: Wire) -> None:
    made = endpoint(client)
    first = poke(client, made["id"])
    sender.once()
    again = client.post(f"/webhook-endpoints/{made['id']}/deliveries/{first['id']}/redeliver")
    assert again.status_code == 202
    assert again.json()["redelivery_of"] == first["id"] != again.json()["id"]
    assert sender.once() == 1
    (_, before, body), (_, after, body_again) = wire.sent
    assert (before["webhook-id"], body) == (after["webhook-id"], body_again)
    other = endpoint(client)
    for where, what in ((other["id"], first["id"]), (made["id"], f"whd_{'0' * 32}")):
        answer = client.post(f"/webhook-endpoints/{where}/deliveries/{what}/redeliver")
        assert (answer.status_code, code_of(answer)) == (404, "webhook_delivery_not_found")


def test_endpoints_are_changed_and_deleted(client: TestClient) -> None:
    made = endpoint(client, description="ticket system")
    address = f"/webhook-endpoints/{made['id']}"
    changed = client.patch(address, json={"event_types": ["checkpoint.revoked"], "url": URL + "/2"}).json()
    assert (changed["url"], changed["event_types"], changed["description"]) == (
        URL + "/2",
        ["checkpoint.revoked"],
        "ticket system",
    )
    poke(client, made["id"])
    off = client.patch(address, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "asked")
    assert [d["status"] for d in listed(client, made["id"])] == ["failed"]
    assert client.delete(address).status_code == 204
    gone = client.get(address)
    assert (gone.status_code, code_of(gone)) == (404, "webhook_endpoint_not_found")
    assert [action for action, _, _ in actions()] == [
        f"webhook-endpoint.{what}" for what in ("created", "amended", "disabled", "deleted")
    ]


def test_the_ledger_says_who_changed_where_messages_go_and_never_where_to(client: TestClient) -> None:
    made = endpoint(client)
    address = f"/webhook-endpoints/{made['id']}"
    both = {"url": URL + "/token-4711", "event_types": ["checkpoint.revoked"], "enabled": False}
    for change in ({"enabled": True, "url": URL, "event_types": []}, both, {"enabled": True, "description": "new"}):
        assert client.patch(address, json=change).status_code == 200
    assert client.post(f"{address}/rotate-secret").status_code == 200
    told = [(row.action.partition(".")[2], row.actor, said(row)) for row in entries("webhook-endpoint")]
    one = {"endpointId": made["id"]}
    assert told == [  # the first change changed nothing
        ("created", "user:local", one),
        ("disabled", "user:local", one | {"reason": "asked"}),
        ("amended", "user:local", one | {"changed": ["event_types", "url"]}),
        ("amended", "user:local", one | {"changed": ["description"]}),
        ("enabled", "user:local", one),
        ("secret-rotated", "user:local", one),
    ]


def test_a_project_has_no_more_endpoints_than_may_be(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_ENDPOINTS", 2)
    made = [endpoint(client)["id"] for _ in range(2)]
    refused = client.post("/webhook-endpoints", json={"url": URL})
    assert (refused.status_code, code_of(refused), refused.json()["limit"]) == (409, "too_many_webhook_endpoints", 2)
    assert len(actions()) == 2
    with tenancy.acting(project("other")), writing() as session:  # whose places are its own
        service.create(session, get_settings(), WebhookEndpointCreate(url=URL), LOCAL)
    assert client.delete(f"/webhook-endpoints/{made[0]}").status_code == 204
    assert endpoint(client)["id"]


@pytest.mark.one_database
@pytest.mark.parametrize("url", ["http://example.org/", "https://10.0.0.1/", "https://[::1]/", "https://u:p@example.org/"])
def test_bad_urls_are_refused_at_once(client: TestClient, url: str) -> None:
    refused = client.post("/webhook-endpoints", json={"url": url})
    assert (refused.status_code, code_of(refused)) == (422, "bad_webhook_url")
    made = endpoint(client)
    assert code_of(client.patch(f"/webhook-endpoints/{made['id']}", json={"url": url})) == "bad_webhook_url"


@pytest.mark.one_database
def test_an_unknown_event_type_is_refused(client: TestClient) -> None:
    refused = client.post("/webhook-endpoints", json={"url": URL, "event_types": ["unlearning_request.progress"]})
    assert (refused.status_code, code_of(refused)) == (422, "validation_failed")
