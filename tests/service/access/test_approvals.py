"""A request that needs approvals runs only once as many others as it needs have approved it as it reads. On both databases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from service import db, outbox, tenancy
from service.access import service
from service.access.scopes import Role
from service.audit.decisions import request_digest
from service.audit.leaves import Actor
from service.certificates import limits
from service.config import Settings
from service.db import reading, transaction
from service.edge import writing
from service.requests import approvals, leases
from service.tables import LedgerEntry, RequestApproval, UnlearnRequest
from service.webhooks.messages import type_of
from service.workers import repository as workers
from tests.service.access.people import bearer, calling, person
from tests.support import Json, ask, code_of, register


@dataclass
class House:
    """People, and a model to ask of."""

    client: TestClient
    model: Json
    ada: str
    """Asks, and is an approver and operator, too."""
    bob: str
    cyd: str

    def ask(self, class_index: int = 1, **fields: Any) -> Json:
        with calling(self.client, self.ada):
            answer = ask(self.client, self.model, class_index, **fields)
        assert answer.status_code == 202, answer.text
        return self.read(answer.json()["id"])

    def read(self, request_id: str) -> Json:
        found: Json = self.client.get(f"/unlearn-requests/{request_id}", headers=bearer(self.ada)).json()
        return found

    def post(self, request: Json, verb: str, key: str, body: Json | None = None) -> Any:
        return self.client.post(f"/unlearn-requests/{request['id']}/{verb}", json=body, headers=bearer(key))

    def approve(self, request: Json, key: str, **said: Any) -> Any:
        return self.post(request, "approve", key, {"request_digest": request["approvals"]["request_digest"], **said})

    def told(self, request: Json) -> list[str]:
        """What its event stream says, without the prefix."""
        address = f"/unlearn-requests/{request['id']}/events"
        events = self.client.get(address, headers=bearer(self.ada) | {"Accept": "application/json"}).json()["data"]
        return [one["type"].removeprefix("unlearning_request.") for one in events]

    def amend(self, request: Json, **changes: Any) -> Any:
        headers = bearer(self.ada) | {"If-Match": "*"}
        return self.client.patch(f"/unlearn-requests/{request['id']}", json=changes, headers=headers)


@pytest.fixture
def two_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_AUTH", "required")
    monkeypatch.setenv("EXPUNGE_APPROVALS", "2")


@pytest.fixture
def house(two_others: None, guarded: TestClient, tmp_path: Path) -> House:
    client, ada = guarded, person("default", "requester", "approver", "operator")[2]
    with calling(client, ada):
        model = register(client, tmp_path)
    return House(client, model, ada, person("default", "approver")[2], person("default", "approver")[2])


def due() -> list[str]:
    with reading() as session:
        return [one.request_id for one in outbox.due(session, limit=10)]


def actions(request_id: str) -> list[str]:
    with reading() as session:
        chosen = select(LedgerEntry.action).where(LedgerEntry.request_id == request_id)
        return list(session.scalars(chosen.order_by(LedgerEntry.request_ordinal)))


def test_two_others_approve_before_a_worker_takes_it(house: House) -> None:
    made = house.ask(jurisdiction="gdpr")
    assert (made["status"], made["approvals"]["required"], made["approvals"]["granted"]) == ("pending_approval", 2, 0)
    assert made["status_reason"]["code"] == "approval"
    assert made["compliance"]["due_at"]  # the law's clock runs meanwhile
    assert made["latest_start_at"]
    assert due() == []
    with db.transaction() as session:
        assert leases.claim_next(session, owner="w", lease_seconds=60, classes=("default",)) is None
    once = house.approve(made, house.bob, comment="seen").json()
    assert (once["status"], once["approvals"]["granted"]) == ("pending_approval", 1)
    again = house.approve(made, house.bob).json()  # the same person is one person
    assert (again["approvals"]["granted"], again["version"]) == (1, once["version"])
    done = house.approve(made, house.cyd).json()
    assert (done["status"], done["approvals"]["granted"]) == ("queued", 2)
    assert due() == [made["id"]]
    assert actions(made["id"])[1:] == ["unlearning.request.approved"] * 2
    assert code_of(house.approve(made, house.cyd)) == "invalid_state_transition"


def test_the_answer_to_whoever_asks_has_the_digest_that_is_approved(house: House) -> None:
    with calling(house.client, house.ada):
        first = ask(house.client, house.model, 1).json()
        asked = {"model_id": house.model["id"], "forget": {"classes": [2]}}
        body = {"items": [asked], "atomic": True}
        (batched,) = house.client.post("/unlearn-requests/batch", json=body).json()["data"]
        house.post(first, "cancel", house.ada)
        again = house.post(first, "retry", house.ada, {}).json()
    for made in (batched["request"], again):
        assert made["approvals"] == house.read(made["id"])["approvals"]
        assert house.approve(made, house.bob).status_code == 200


def test_nobody_approves_what_they_asked_for(house: House) -> None:
    made = house.ask()
    assert code_of(house.approve(made, house.ada)) == "self_approval_forbidden"
    refused = house.approve(made, person("default", "requester", "operator")[2])
    assert code_of(refused) == "forbidden"
    assert house.read(made["id"])["approvals"]["decisions"] == []


def key_made_by(maker: str, kind: str, *roles: Role) -> str:
    """Of somebody new, whom the maker and nobody else has made."""
    by = Actor(kind="user", id=maker)
    with tenancy.acting(None), writing() as session:
        made = service.create_principal(session, project_id="default", kind=kind, name="x", roles=roles, actor=by)
    with tenancy.acting(None), writing() as session:
        row = service.get_principal(session, made.id)
        return service.create_key(session, principal=row, name="k", days=1, actor=by)[1]


@pytest.mark.parametrize("kind", ["service", "user"])
def test_who_made_the_key_does_not_approve_what_is_asked_with_it(house: House, kind: str) -> None:
    owner, _, key = person("default", "approver")
    theirs = key_made_by(owner, kind, "requester")
    with calling(house.client, theirs):
        made = house.read(ask(house.client, house.model, 1).json()["id"])
    assert code_of(house.approve(made, key)) == "self_approval_forbidden"
    with pytest.raises(DBAPIError), transaction() as session:
        session.execute(*insertion(made, approver=f"user:{owner}"))
    assert house.approve(made, house.bob).status_code == 200


def test_nobody_approves_with_a_key_that_the_asker_has_made(house: House) -> None:
    made = house.ask()
    theirs = key_made_by(made["created_by"].removeprefix("user:"), "user", "approver")
    assert code_of(house.approve(made, theirs)) == "self_approval_forbidden"
    with pytest.raises(DBAPIError), transaction() as session:
        session.execute(*insertion(made, key_id=theirs[:21]))
    assert house.approve(made, house.bob).status_code == 200


def test_a_wish_is_its_first_asker_s_however_often_others_take_it_up(house: House) -> None:
    maker, _, of_maker = person("default", "approver")
    theirs = key_made_by(maker, "user", "requester", "operator")
    first = house.ask()
    house.post(first, "cancel", house.ada)
    second = house.post(first, "retry", theirs, {}).json()
    house.post(second, "cancel", theirs)
    dan, _, of_dan = person("default", "requester", "approver")
    made = house.read(house.post(second, "retry", of_dan, {}).json()["id"])
    assert (made["created_by"], made["supersedes"]) == (f"user:{dan}", second["id"])
    for key in (house.ada, of_maker, of_dan):
        assert code_of(house.approve(made, key)) == "self_approval_forbidden"
    for approver in (first["created_by"], f"user:{maker}", made["created_by"]):
        with pytest.raises(DBAPIError), transaction() as session:
            session.execute(*insertion(made, approver=approver))
    assert house.approve(made, house.bob).status_code == 200
    assert house.approve(made, house.cyd).json()["status"] == "queued"


def insertion(request: Json, **changes: Any) -> tuple[Any, Json]:
    """An approval by hand, past the API."""
    row = {
        "request_id": request["id"],
        "request_digest": request["approvals"]["request_digest"],
        "at": "2026-11-21 10:00:00+00",
    }
    row |= {"approver": "user:somebody", "decision": "approved", "key_id": None, **changes}
    return text(
        "INSERT INTO request_approval (request_id, approver, request_digest, decision, key_id, at) "
        "VALUES (:request_id, :approver, :request_digest, :decision, :key_id, :at)"
    ), row


def test_the_database_holds_the_rule_by_itself(house: House) -> None:
    made = house.ask()
    for statement in (
        insertion(made, approver=made["created_by"]),
        (text("UPDATE unlearn_request SET status = 'queued'"), {}),
        (text("UPDATE unlearn_request SET approvals_required = 0"), {}),
        (text("UPDATE unlearn_request SET created_by = 'user:x'"), {}),
    ):
        with pytest.raises(DBAPIError), transaction() as session:
            session.execute(*statement)
    assert house.approve(made, house.bob, comment="x").status_code == 200
    other = insertion(made, approver="user:other", request_digest="0" * 64)
    with transaction() as session:
        session.execute(*other)
    for statement in (
        (text("UPDATE unlearn_request SET status = 'queued'"), {}),  # two approvals, but of two different things
        (text("UPDATE request_approval SET approver = 'user:x'"), {}),
        (text("UPDATE request_approval SET comment = 'y'"), {}),
        (text("DELETE FROM request_approval"), {}),
    ):
        with pytest.raises(DBAPIError), transaction() as session:
            session.execute(*statement)
    address, headers = f"/unlearn-requests/{made['id']}", bearer(house.ada)
    tag = house.client.get(address, headers=headers).headers["etag"]
    with transaction() as session:
        session.execute(text("UPDATE request_approval SET comment = NULL"))  # erasure
    assert house.client.get(address, headers={**headers, "If-None-Match": tag}).status_code == 200


def test_a_request_that_needs_approval_cannot_be_inserted_as_queued(house: House) -> None:
    with reading() as session:
        row = session.get_one(UnlearnRequest, house.ask()["id"])
        columns = {c.key: getattr(row, c.key) for c in UnlearnRequest.__mapper__.column_attrs}
    changed = columns | {"id": "ureq_" + "0" * 32, "status": "queued"}
    with pytest.raises(DBAPIError), transaction() as session:
        session.add(UnlearnRequest(**changed))


def test_changing_what_is_said_voids_approvals_and_priority_does_not(house: House) -> None:
    made = house.ask()
    house.approve(made, house.bob)
    assert house.amend(made, priority="urgent").json()["approvals"]["granted"] == 1
    changed = house.amend(made, external_id="T-2").json()
    assert changed["approvals"]["granted"] == 0
    assert [one["void"] for one in changed["approvals"]["decisions"]] == [True]
    assert changed["approvals"]["request_digest"] != made["approvals"]["request_digest"]
    stale = house.approve(made, house.cyd)
    assert (code_of(stale), stale.status_code) == ("request_changed", 409)
    for key in (house.bob, house.cyd):
        assert house.approve(changed, key).status_code == 200
    assert house.read(made["id"])["status"] == "queued"
    back = house.amend(made, metadata={"x": 1}).json()
    assert (back["status"], back["approvals"]["granted"]) == ("pending_approval", 0)
    assert actions(made["id"]).count("unlearning.request.approvals-voided") == 2


def test_a_paused_request_that_was_changed_is_approved_anew_before_it_goes_on(house: House) -> None:
    made = house.ask()
    for key in (house.bob, house.cyd):
        house.approve(made, key)
    assert house.post(made, "pause", house.ada).json()["status"] == "paused"
    assert house.post(made, "resume", house.ada).json()["status"] == "queued"
    house.post(made, "pause", house.ada)
    house.amend(made, external_id="T-3")
    assert house.post(made, "resume", house.ada).json()["status"] == "pending_approval"
    assert due() == []
    assert house.told(made) == [
        "created", "pending_approval", "approved", "approved", "queued", "paused", "resumed", "paused", "amended",
        "pending_approval",
    ]  # fmt: skip


def test_who_is_told_of_events_hears_that_a_request_waits_and_what_others_said(house: House) -> None:
    approved, rejected = house.ask(1), house.ask(2)
    for key in (house.bob, house.cyd):
        house.approve(approved, key)
    house.post(rejected, "reject", house.bob, {"reason": "not ours"})
    assert house.told(rejected) == ["created", "pending_approval", "rejected"]
    sent = [type_of(f"unlearning_request.{one}") for one in house.told(approved)]
    assert [one and one.partition(".")[2] for one in sent] == [
        "created", "pending_approval", "approved", "approved", "queued",
    ]  # fmt: skip


def test_what_a_worker_is_at_work_on_keeps_what_is_said_of_it(house: House) -> None:
    made = house.ask()
    for key in (house.bob, house.cyd):
        house.approve(made, key)
    with db.transaction() as session:
        assert leases.claim_next(session, owner="w", lease_seconds=60, classes=("default",))
    assert code_of(house.amend(made, external_id="T-4")) == "invalid_state_transition"
    assert house.amend(made, priority="bulk").status_code == 200


def test_one_rejection_ends_it_and_it_can_be_taken_up_anew(house: House) -> None:
    made = house.ask(jurisdiction="gdpr")
    assert house.post(made, "reject", house.bob, {}).status_code == 422
    gone = house.post(made, "reject", house.bob, {"reason": "wrong class"}).json()
    assert (gone["status"], gone["approvals"]["decisions"][0]["comment"]) == ("rejected", "wrong class")
    assert gone["finished_at"]
    assert house.post(made, "reject", house.bob, {"reason": "x"}).json()["version"] == gone["version"]
    assert actions(made["id"])[-2:] == ["unlearning.request.rejected", "unlearning.request.closed"]
    with reading() as session:
        assert not [e for e in session.scalars(select(LedgerEntry)) if b"wrong class" in (e.leaf or b"")]
    anew = house.post(made, "retry", house.ada, {}).json()
    assert (anew["status"], anew["supersedes"]) == ("pending_approval", made["id"])
    assert anew["compliance"]["due_at"] == made["compliance"]["due_at"]


def test_it_can_be_withdrawn_and_keeps_its_place_until_then(house: House) -> None:
    first, second = house.ask(1), house.ask(2)
    for key in (house.bob, house.cyd):
        house.approve(second, key)
    with transaction() as session:
        workers.touch(session, workers.Sign("w", "h", ("default",), "active", None))
    waits = house.read(second["id"])["status_reason"]
    assert (waits["code"], waits["request_id"]) == ("behind_approval", first["id"])
    assert due() == []
    assert house.post(first, "cancel", house.ada).json()["status"] == "cancelled"
    assert due() == [second["id"]]


def test_the_digest_can_be_computed_from_the_entries_alone(house: House) -> None:
    made = house.ask()
    house.amend(made, priority="urgent")
    house.amend(made, external_id="T-5")
    with reading() as session:
        rows = session.scalars(select(LedgerEntry).where(LedgerEntry.request_id == made["id"]).order_by(LedgerEntry.seq)).all()
    told = [row for row in rows if row.leaf and json.loads(row.leaf)["privateSha256"]]
    assert len(told) == 2
    assert house.read(made["id"])["approvals"]["request_digest"] == request_digest(made["id"], [r.leaf_hash for r in told])


def test_a_project_may_ask_for_more_and_never_for_less(house: House) -> None:
    admin = person("default", "admin")[2]
    for number, needed in ((3, 3), (0, 2)):
        answer = house.client.patch("/projects/default", json={"approvals": number}, headers=bearer(admin))
        assert answer.json()["approvals"] == number
        assert house.ask(number + 1)["approvals"]["required"] == needed
    assert code_of(house.client.patch("/projects/default", json={"approvals": 1}, headers=bearer(house.ada))) == "forbidden"
    assert code_of(house.client.patch("/projects/no", json={"approvals": 1}, headers=bearer(admin))) == "project_not_found"


def test_the_certificate_names_who_approved(house: House) -> None:
    made = house.ask()
    for key in (house.bob, house.cyd):
        house.approve(made, key)
    with reading() as session:
        said = approvals.certified(session, made["id"])
        who = {row.approver for row in session.scalars(select(RequestApproval))}
    assert {one["id"] for one in said["approvers"]} == who
    assert (said["policy"], said["required"]) == ("four-eyes", 2)
    assert limits.SELF_APPROVED not in limits.known_limits(kind=None, findings=[], judged=False, approval=said)


@pytest.mark.usefixtures("rules")
def test_solo_is_said_on_the_certificate(client: TestClient, tmp_path: Path) -> None:
    made = ask(client, register(client, tmp_path), 1).json()
    assert (made["status"], made["approvals"]["required"], made["approvals"]["request_digest"]) == ("queued", 0, None)
    with reading() as session:
        said = approvals.certified(session, made["id"])
    assert said == {"policy": "solo"}
    assert limits.SELF_APPROVED in limits.known_limits(kind=None, findings=[], judged=False, approval=said)


def test_approvals_without_people_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_APPROVALS", "1")
    with pytest.raises(ValueError, match="auth=required"):
        Settings()
