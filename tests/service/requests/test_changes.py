"""What may be done to a request once it is made: pause, resume, retry, amend; over HTTP, and what the ledger says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service import db
from service.audit import shredding
from service.audit.leaves import LOCAL
from service.client import ApiError, Client
from service.requests import lifecycle
from tests.support import ask, code_of, move, register
from tests.worker.conductor import house as h

Json = dict[str, Any]
AGO = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)
STATES = Path(__file__).resolve().parents[3] / "docs" / "reference" / "states.md"


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> Json:
    return register(client, tmp_path)


def do(client: TestClient, request: Json, what: str, **body: Any) -> Any:
    return client.post(f"/unlearn-requests/{request['id']}/{what}", json=body or None)


def read(client: TestClient, request: Json) -> Json:
    answer: Json = client.get(f"/unlearn-requests/{request['id']}").json()
    return answer


def tag_of(client: TestClient, request: Json) -> str:
    return str(client.get(f"/unlearn-requests/{request['id']}").headers["etag"])


def failed(request: Json) -> Json:
    move(request["id"], "running", "failed")
    return request


def test_the_page_of_states_is_the_dict_of_moves() -> None:
    """`python -m service.requests.lifecycle > docs/reference/states.md` after a change."""
    assert STATES.read_text() == lifecycle.reference()
    for status in lifecycle.STATUSES:
        assert all(after in lifecycle.STATUSES for after in lifecycle.MOVES[status])


def test_the_database_refuses_what_the_dict_does_not_allow(client: TestClient, model: Json) -> None:
    request = ask(client, model, 1).json()
    move(request["id"], "paused")
    for illegal in ("running", "pausing", "succeeded", "failed", "cancelling"):
        with pytest.raises(DBAPIError):
            move(request["id"], illegal)  # type: ignore[arg-type]
    move(request["id"], "queued", "running", "pausing", "paused", "cancelled")
    with pytest.raises(DBAPIError), db.transaction() as session:
        session.execute(text("UPDATE unlearn_request SET priority = 'urgent'"))


def test_a_queued_request_is_paused_at_once_and_resumed_into_its_place(client: TestClient, model: Json) -> None:
    first, second = (ask(client, model, k).json() for k in (1, 2))
    paused = do(client, first, "pause")
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    again = do(client, first, "pause").json()
    assert (again["status"], again["version"]) == ("paused", paused.json()["version"])
    assert do(client, first, "resume").json()["status"] == "queued"
    assert do(client, first, "resume").json()["status"] == "queued"
    assert [e["request_id"] for e in client.get("/queue").json()["data"]] == [first["id"], second["id"]]
    assert h.actions(first["id"])[1:] == ["unlearning.request.paused", "unlearning.request.resumed"]
    assert h.events(first["id"])[1:] == ["paused", "resumed"]


def test_a_running_request_is_pausing_until_its_worker_has_stopped(client: TestClient, model: Json) -> None:
    request = ask(client, model, 1).json()
    move(request["id"], "running")
    assert do(client, request, "pause").json()["status"] == "pausing"
    early = do(client, request, "resume")
    assert (early.status_code, code_of(early)) == (409, "invalid_state_transition")
    assert (early.json()["current_status"], early.json()["allowed"]) == ("pausing", sorted(lifecycle.MOVES["pausing"]))
    assert do(client, request, "cancel").json()["status"] == "cancelling"
    assert do(client, request, "pause").status_code == 409


def test_a_paused_request_can_be_cancelled_and_an_ended_one_not_paused(client: TestClient, model: Json) -> None:
    request = ask(client, model, 1).json()
    do(client, request, "pause")
    assert do(client, request, "cancel").json()["status"] == "cancelled"
    for what in ("pause", "resume"):
        assert code_of(do(client, request, what)) == "invalid_state_transition"


# ---------------------------------------------------------------------------------------------------------------- retry


def test_a_retry_is_a_new_request_under_the_same_clock_and_there_is_one(client: TestClient, model: Json) -> None:
    legal = {"jurisdiction": "gdpr", "received_at": AGO.isoformat(), "recipients": ["lab-7"]}
    asked = {"params": {"iterations": 7}, "seed": 5, "reason": "art. 17", "external_id": "T-1", "priority": "urgent"}
    old = failed(ask(client, model, 1, method="sfron", **asked, **legal).json())
    before, tag = read(client, old), tag_of(client, old)
    answer = do(client, old, "retry")
    assert answer.status_code == 202, answer.text
    new = answer.json()
    assert answer.headers["location"] == f"/unlearn-requests/{new['id']}"
    same = ("model_id", "method", "params", "seed", "policy", "reason", "external_id", "priority", "compliance", "resources")
    assert {k: new[k] for k in same} == {k: before[k] for k in same}
    assert (new["forget"]["classes"], new["supersedes"], new["status"]) == ([1], old["id"], "queued")
    after = read(client, old)
    assert after == {**before, "superseded_by": new["id"]}
    again = do(client, old, "retry")
    assert (again.status_code, code_of(again), again.json()["superseded_by"]) == (409, "already_superseded", new["id"])
    assert h.facts(new["id"], "unlearning.request.received")["supersedes"] == old["id"]
    assert h.facts(old["id"], "unlearning.request.superseded") == {"by": new["id"]}
    assert tag_of(client, old) != tag  # or a reader would be told that nothing has changed


def test_a_retry_may_say_what_is_to_be_different(client: TestClient, model: Json) -> None:
    old = failed(ask(client, model, 1, method="sfron", params={"iterations": 7}, seed=5).json())
    new = do(client, old, "retry", method="staged", params={"preset": "harsh"}, seed=6).json()
    assert (new["method"], new["params"]["iterations"], new["seed"]) == ("staged", 900, 6)
    move(new["id"], "running", "failed")
    third = do(client, new, "retry", params={"preset": "gentle"}).json()
    assert (third["method"], third["params"]["iterations"], third["supersedes"]) == ("staged", 10, new["id"])
    assert code_of(do(client, failed(third), "retry", policy="no-such")) == "unknown_policy"
    assert code_of(do(client, third, "retry", forget={"classes": [2]})) == "validation_failed"


def test_a_retry_with_the_same_key_is_the_same_request(client: TestClient, model: Json) -> None:
    old = failed(ask(client, model, 1).json())
    address, key = f"/unlearn-requests/{old['id']}/retry", {"Idempotency-Key": "k1"}
    first, second = (client.post(address, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert code_of(client.post(address, headers=key, json={"seed": 3})) == "idempotency_key_reused"


@pytest.mark.parametrize("path", [(), ("running",), ("running", "succeeded"), ("paused",)])
def test_only_what_failed_or_was_cancelled_is_taken_up_anew(client: TestClient, model: Json, path: Any) -> None:
    request = ask(client, model, 1).json()
    move(request["id"], *path)
    assert code_of(do(client, request, "retry")) == "invalid_state_transition"


def test_an_answer_to_the_person_ends_the_clock_of_all_that_were_superseded(client: TestClient, model: Json) -> None:
    long_ago = (AGO - timedelta(days=60)).isoformat()
    old = failed(ask(client, model, 1, jurisdiction="gdpr", received_at=long_ago).json())
    new = do(client, old, "retry").json()
    late = client.get("/audit/questions/overdue").json()
    assert [row["request_id"] for row in late["data"]] == [new["id"]]  # one wish is late once
    event = {"type": "answered", "answered_at": datetime.now(UTC).isoformat(), "result": "refused"}
    assert client.post(f"/unlearn-requests/{new['id']}/compliance-events", json=event).status_code in (200, 201)
    assert read(client, old)["compliance"]["answered_at"] == read(client, new)["compliance"]["answered_at"] is not None


# ---------------------------------------------------------------------------------------------------------------- amend


def amend(client: TestClient, request: Json, tag: str | None, **body: Any) -> Any:
    headers = {} if tag is None else {"If-Match": tag}
    return client.patch(f"/unlearn-requests/{request['id']}", json=body, headers=headers)


def test_a_change_names_the_version_that_it_changes(client: TestClient, model: Json) -> None:
    made = ask(client, model, 1, external_id="T-1")
    request, tag = made.json(), made.headers["etag"]
    assert code_of(amend(client, request, None, priority="urgent")) == "precondition_required"
    done = amend(client, request, tag, priority="urgent", external_id=None, metadata={"a": 1})
    assert done.status_code == 200, done.text
    assert [done.json()[k] for k in ("priority", "external_id", "metadata")] == ["urgent", None, {"a": 1}]
    stale = amend(client, request, tag, priority="bulk")
    assert (stale.status_code, code_of(stale)) == (412, "version_mismatch")
    tag = done.headers["etag"]
    assert amend(client, request, f'"x", {tag}', priority="urgent").headers["etag"] == tag  # nothing changed, nothing recorded
    assert amend(client, request, "*", metadata={}).status_code == 200
    said = h.all_facts(request["id"], "unlearning.request.amended")
    assert said == [
        {"priority": "urgent", "changed": ["external_id", "metadata", "priority"]},
        {"changed": ["metadata"]},
    ]


@pytest.mark.parametrize("body", [{}, {"priority": None}, {"metadata": None}, {"seed": 1}, {"priority": "now"}])
def test_nothing_else_can_be_changed(client: TestClient, model: Json, body: Json) -> None:
    request = ask(client, model, 1).json()
    answer = client.patch(f"/unlearn-requests/{request['id']}", json=body, headers={"If-Match": "*"})
    assert code_of(answer) == "validation_failed"


def test_a_request_that_has_ended_is_not_amended(client: TestClient, model: Json) -> None:
    request = failed(ask(client, model, 1).json())
    assert code_of(amend(client, request, "*", priority="bulk")) == "invalid_state_transition"


def test_shredding_what_an_amendment_said_takes_the_copy_too(client: TestClient, model: Json) -> None:
    request = ask(client, model, 1).json()
    amend(client, request, "*", external_id="somebody")
    failed(request)
    with db.transaction() as session:
        rows = shredding.private_rows(session, seq=h.seq_of(request["id"], "unlearning.request.amended"), lock=True)
        shredding.shred(session, rows, actor=LOCAL, ground="erasure_request")
    assert read(client, request)["external_id"] is None


def test_what_is_done_to_a_request_is_done_through_the_client(client: TestClient, tmp_path: Path) -> None:
    api = Client("http://127.0.0.1")
    api._http = client  # type: ignore[assignment]  # the service in this process speaks the same
    request_id = ask(client, register(client, tmp_path), 1).json()["id"]
    assert api.requests.pause(request_id)["status"] == "paused"
    before = api.requests.read(request_id)["version"]
    assert api.requests.amend(request_id, {"priority": "urgent"})["priority"] == "urgent"
    with pytest.raises(ApiError, match="version_mismatch"):
        api.requests.amend(request_id, {"priority": "bulk"}, version=before)
    assert api.requests.resume(request_id)["status"] == "queued"
    api.post(f"/unlearn-requests/{request_id}/cancel")
    assert api.requests.retry(request_id, {"seed": 4})["supersedes"] == request_id
    with pytest.raises(ApiError, match="already_superseded") as refused:
        api.requests.retry(request_id)
    by = api.requests.read(request_id)["superseded_by"]
    assert refused.value.problem["superseded_by"] == by
    assert str(by) in str(refused.value)
