"""The law's side of a request: its clock at receipt, and what is recorded later."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import db
from service.compliance import rules
from service.tables import RequestCompliance
from tests.service.audit.people import acting, entries, private, require_clean, said
from tests.support import ask, code_of, register

AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)


def legal(client: TestClient, folder: Path, **more: Any) -> dict[str, Any]:
    given = {"jurisdiction": "gdpr", "received_at": AGO.isoformat(), "recipients": ["lab-7", "hub:2"], **more}
    made = ask(client, register(client, folder), 1, **given)
    assert made.status_code == 202, made.text
    body: dict[str, Any] = made.json()
    return body


def record(client: TestClient, request: dict[str, Any], kind: str, **more: Any) -> Any:
    return client.post(f"/unlearn-requests/{request['id']}/compliance-events", json={"type": kind, **more})


def test_the_deadline_is_in_the_entry_of_the_receipt(client: TestClient, tmp_path: Path) -> None:
    """So that rules which change later cannot move it unseen."""
    request = legal(client, tmp_path)
    law, expected = request["compliance"], rules.due("gdpr", AGO)
    assert expected is not None
    assert datetime.fromisoformat(law["due_at"]) == expected
    assert (law["overdue"], law["answered_at"], law["recipients"]) == (False, None, ["hub:2", "lab-7"])
    (entry,) = entries("unlearning.request.received")
    assert said(entry)["jurisdiction"] == "gdpr"
    assert datetime.fromisoformat(said(entry)["dueAt"]) == expected
    assert datetime.fromisoformat(said(entry)["receivedAt"]) == AGO
    assert said(entry)["recipients"] == ["hub:2", "lab-7"]
    assert client.get(f"/unlearn-requests/{request['id']}").json()["compliance"] == law


def test_a_month_is_counted_where_the_person_asked(client: TestClient, tmp_path: Path) -> None:
    """There it was the last of February; in UTC the 1st of March, and a month from that ends on the 1st of April."""
    law = legal(client, tmp_path, received_at="2026-02-28T23:30:00-01:00")["compliance"]
    assert (law["received_at"], law["due_at"]) == ("2026-03-01T00:30:00Z", "2026-03-29T00:30:00Z")
    (entry,) = entries("unlearning.request.received")
    assert said(entry)["dueAt"] == "2026-03-29T00:30:00.000000Z"


def test_a_request_without_legal_fields_says_nothing_of_the_law(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    assert request["compliance"] is None
    assert not {"jurisdiction", "dueAt", "receivedAt", "recipients"} & set(said(entries("unlearning.request")[0]))
    told = record(client, request, "recipient.notified", recipient="x", at=AGO.isoformat()).json()
    assert told["compliance"]["jurisdiction"] == "none"  # what was done is recorded all the same, and no clock runs
    assert told["compliance"]["due_at"] is None


@pytest.mark.one_database
def test_legal_fields_that_cannot_be_meant_are_422(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for wrong in (
        {"jurisdiction": "atlantis"},
        {"received_at": soon},
        {"received_at": "2026-01-01T00:00:00"},
        {"recipients": ["Jane Doe"]},
        {"jurisdiction": "gdpr", "on_conflict": "use_existing"},
    ):
        assert ask(client, model, 1, **wrong).status_code == 422, wrong
    assert entries("unlearning") == []


def test_a_deadline_is_extended_once_and_in_time(client: TestClient, tmp_path: Path) -> None:
    request = legal(client, tmp_path)
    informed = (AGO + timedelta(days=5)).isoformat()
    assert code_of(record(client, request, "deadline.extended", reason="reasonably_necessary", informed_at=informed)) == (
        "compliance_unfit"  # California's
    )
    made = record(client, request, "deadline.extended", reason="complexity", informed_at=informed)
    assert made.status_code == 201, made.text
    first = datetime.fromisoformat(request["compliance"]["due_at"])
    expected = rules.extend("gdpr", AGO, first, first).due_at
    assert datetime.fromisoformat(made.json()["compliance"]["due_at"]) == expected > first
    again = record(client, request, "deadline.extended", reason="complexity", informed_at=informed)
    assert (again.status_code, code_of(again)) == (409, "already_recorded")
    (entry,) = entries("deadline.extended")
    assert said(entry)["late"] is False
    assert entry.request_id == request["id"]
    assert made.json()["seq"] == entry.seq


def test_an_extension_told_late_moves_nothing(client: TestClient, tmp_path: Path) -> None:
    long_ago = AGO - timedelta(days=60)
    request = legal(client, tmp_path, received_at=long_ago.isoformat())
    assert request["compliance"]["overdue"] is True
    late = (long_ago + timedelta(days=40)).isoformat()
    law = record(client, request, "deadline.extended", reason="complexity", informed_at=late).json()["compliance"]
    assert (law["due_at"], law["extension_late"], law["overdue"]) == (request["compliance"]["due_at"], True, True)
    assert said(entries("deadline.extended")[0])["late"] is True


def test_refusal_recipients_and_answer_are_recorded(client: TestClient, tmp_path: Path) -> None:
    request, now = legal(client, tmp_path), AGO + timedelta(days=1)
    when = now.isoformat()
    assert code_of(record(client, request, "assessed.refused", ground="debugging", informed_at=when, remedy_notice=True)) == (
        "compliance_unfit"
    )
    with acting(client, "dpo-1"):
        refused = record(client, request, "assessed.refused", ground="legal_claims", informed_at=when, remedy_notice=True)
        record(client, request, "recipient.notified", recipient="lab-7", at=when)
        record(client, request, "recipient.notified", recipient="new-1", at=when, result="impossible", note="Jane is gone")
        law = record(client, request, "answered", answered_at=when, result="partly").json()["compliance"]
    assert refused.json()["compliance"]["ground"] == "legal_claims"
    assert law["recipients"] == ["hub:2", "lab-7", "new-1"]
    assert law["recipients_told"] == ["lab-7", "new-1"]
    assert datetime.fromisoformat(law["answered_at"]) == now
    assert said(entries("answered")[0]) == {"answeredAt": when.replace("+00:00", ".000000Z"), "result": "partly", "late": False}
    assert {e.actor for e in entries() if e.action in ("answered", "recipient.notified", "assessed.refused")} == {"user:dpo-1"}
    noted = entries("recipient.notified")[1]
    assert private(noted.seq).ciphertext is not None
    assert all(b"Jane" not in (e.leaf or b"") for e in entries())
    for kind, body in (
        ("answered", {"answered_at": when, "result": "erased"}),
        ("assessed.refused", {"ground": "legal_claims", "informed_at": when, "remedy_notice": True}),
        ("deadline.extended", {"reason": "complexity", "informed_at": when}),
    ):
        assert code_of(record(client, request, kind, **body)) == "already_recorded"
    require_clean()


@pytest.mark.one_database
def test_an_event_of_another_shape_is_422(client: TestClient, tmp_path: Path) -> None:
    request = legal(client, tmp_path)
    when, soon = AGO.isoformat(), (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for wrong in (
        {"type": "closed"},
        {"type": "answered", "answered_at": when},
        {"type": "answered", "answered_at": when, "result": "erased", "extra": 1},
        {"type": "answered", "answered_at": soon, "result": "erased"},
        {"type": "answered", "answered_at": (AGO - timedelta(days=1)).isoformat(), "result": "erased"},
        {"type": "deadline.extended", "reason": "Jane is difficult", "informed_at": when},
        {"type": "recipient.notified", "recipient": "Jane Doe", "at": when},
        {"type": "recipient.notified", "recipient": "x", "at": "2026-01-01T00:00:00"},
    ):
        response = client.post(f"/unlearn-requests/{request['id']}/compliance-events", json=wrong)
        assert response.status_code == 422, wrong
    assert code_of(record(client, {"id": "ureq_" + "0" * 32}, "recipient.notified", recipient="x", at=when)) == (
        "request_not_found"
    )
    assert [e.action for e in entries() if e.request_id][1:] == []


def test_the_etag_changes_with_where_a_request_stands_in_law(client: TestClient, tmp_path: Path) -> None:
    made = legal(client, tmp_path)
    address = f"/unlearn-requests/{made['id']}"
    tags = [client.get(address).headers["etag"]]
    for kind, more in (
        ("recipient.notified", {"recipient": "lab-7", "at": AGO.isoformat()}),
        ("assessed.refused", {"ground": "legal_obligation", "informed_at": AGO.isoformat(), "remedy_notice": True}),
        ("deadline.extended", {"reason": "complexity", "informed_at": AGO.isoformat()}),
    ):
        assert record(client, made, kind, **more).status_code == 201
        tags.append(see_another(client, address, tags[-1]))
    with db.transaction() as session:  # the clock goes on
        session.get_one(RequestCompliance, made["id"]).due_at = db.now(session) + timedelta(milliseconds=300)
    soon = see_another(client, address, tags[-1])
    time.sleep(0.4)
    tags.append(see_another(client, address, soon))
    assert record(client, made, "answered", answered_at=AGO.isoformat(), result="erased").status_code == 201
    tags.append(see_another(client, address, tags[-1]))
    assert len(set(tags)) == len(tags)
    assert client.get(address, headers={"If-None-Match": tags[-1]}).status_code == 304
    assert client.patch(address, json={"priority": "urgent"}, headers={"If-Match": tags[-1]}).status_code == 200


def see_another(client: TestClient, address: str, tag: str) -> str:
    """The tag of what is there now, which is not what was there before."""
    answer = client.get(address, headers={"If-None-Match": tag})
    assert answer.status_code == 200
    return str(answer.headers["etag"])


def test_the_answer_to_whoever_asks_has_the_tag_of_what_is_read_next(client: TestClient, tmp_path: Path) -> None:
    given = {"jurisdiction": "gdpr", "received_at": AGO.astimezone(timezone(timedelta(hours=2))).isoformat()}
    made = ask(client, register(client, tmp_path), 1, **given)
    assert client.get(f"/unlearn-requests/{made.json()['id']}").headers["etag"] == made.headers["etag"]
