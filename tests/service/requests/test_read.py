"""Reading, listing and cancelling requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.requests import schedule
from tests.support import ask, attempt, code_of, move, publish, register

REPORT = {"verdict": "FAIL", "summary": "s", "findings": [{"check": "forget_rate", "passed": False, "value": 0.5}]}


def _ids(page: Any) -> list[str]:
    return [row["id"] for row in page.json()["data"]]


def test_a_page_leads_to_the_next_and_together_they_are_all(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path, [str(k) for k in range(9)])
    made = [ask(client, model, k).json()["id"] for k in range(7)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        seen, cursor = [], None
        while True:
            page = client.get("/unlearn-requests", params={"limit": 3, "order": order, **({"after": cursor} if cursor else {})})
            assert page.json()["object"] == "list"
            seen += _ids(page)
            cursor = page.json()["next_cursor"]
            assert page.json()["has_more"] == (cursor is not None) == ('rel="next"' in page.headers.get("link", ""))
            if cursor is None:
                break
        assert seen == expected


def test_the_link_header_keeps_the_filters(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    made = [ask(client, model, k).json()["id"] for k in range(3)]
    first = client.get("/unlearn-requests", params={"limit": 1, "status": "queued", "order": "asc"})
    following = first.headers["link"].split(">")[0].removeprefix("<")
    assert _ids(client.get(following)) == [made[1]]


def test_filters_choose(client: TestClient, tmp_path: Path) -> None:
    model, other = register(client, tmp_path), register(client, tmp_path)
    one = ask(client, model, 1, external_id="T-1").json()
    two = ask(client, model, 2).json()
    three = ask(client, other, 2).json()
    move(one["id"], "running")
    listed = lambda **q: set(_ids(client.get("/unlearn-requests", params=q)))  # noqa: E731
    assert listed(status="running") == {one["id"]}
    assert listed(status=["running", "queued"]) == {one["id"], two["id"], three["id"]}
    assert listed(model_id=other["id"]) == {three["id"]}
    assert listed(external_id="T-1") == {one["id"]}
    assert listed(**{"created_at[gte]": two["created_at"]}) == {two["id"], three["id"]}
    assert listed(**{"created_at[lt]": two["created_at"]}) == {one["id"]}
    later = (datetime.now(UTC) + timedelta(hours=3)).astimezone().isoformat()
    assert listed(**{"created_at[gte]": later}) == set()


def test_a_list_shows_deadlines_and_chooses_by_them(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    at = datetime.now(UTC)
    plain, late, answered, fresh = (
        ask(
            client,
            model,
            n,
            **({"jurisdiction": "ccpa", "received_at": (at - timedelta(days=days)).isoformat()} if days else {}),
        )
        for n, days in enumerate((0, 50, 51, 1))
    )
    plain, late, answered, fresh = (one.json() for one in (plain, late, answered, fresh))
    told = {"type": "answered", "answered_at": at.isoformat(), "result": "erased"}
    assert client.post(f"/unlearn-requests/{answered['id']}/compliance-events", json=told).status_code == 201
    shown = {row["id"]: (row["due_at"], row["overdue"]) for row in client.get("/unlearn-requests").json()["data"]}
    assert shown == {
        one["id"]: ((one["compliance"] or {}).get("due_at"), one is late) for one in (plain, late, answered, fresh)
    }  # fmt: skip
    assert (late["due_at"], late["overdue"]) == (late["compliance"]["due_at"], True)
    listed = lambda **q: _ids(client.get("/unlearn-requests", params={"order": "asc", **q}))  # noqa: E731
    assert listed(overdue="true") == [late["id"]]
    assert listed(overdue="false") == [plain["id"], answered["id"], fresh["id"]]
    assert listed(due_before=at.isoformat()) == [late["id"], answered["id"]]
    assert listed(due_before=late["due_at"]) == [answered["id"]]
    assert listed(due_before=(at + timedelta(days=45)).isoformat(), overdue="false") == [answered["id"], fresh["id"]]


BAD_QUERIES = (
    "stauts=queued", "status=nothing", "limit=0", "limit=101", "limit=x", "order=up", "created_at[gte]=yesterday",
    "created_at[gte]=20", "after=nonsense", "after=W10", "after=WyIyMDI2Il0", "after=%00", "model_id=%00",
    "external_id=%00", "after=WyJ4IiwieSJd",
    "overdue=late", "due_before=soon", "due_before=2026-01-01T00:00:00",
    # times that UTC does not have, in a filter and in a cursor
    "created_at[gte]=0001-01-01T00:00:00%2B14:00", "due_before=9999-12-31T23:59:59-14:00",
    "after=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwieCJd",
)  # fmt: skip


def test_a_bad_query_is_422(client: TestClient) -> None:
    """A misspelt filter must not return everything."""
    for query in BAD_QUERIES:
        response = client.get(f"/unlearn-requests?{query}")
        assert response.status_code == 422, query
        code_of(response)


def test_an_unchanged_request_is_304_and_a_changed_one_is_not(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    address = f"/unlearn-requests/{request['id']}"
    tag = client.get(address).headers["etag"]
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(address, headers={"If-None-Match": f'"x", W/{tag}'}).status_code == 304
    move(request["id"], "running")
    changed = client.get(address, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    move_on = {"progress_completed": 3, "progress_total": 50, "progress_at": datetime.now(UTC)}
    tag = changed.headers["etag"]
    move(request["id"], "running", **move_on)
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_what_waits_has_another_tag_whenever_it_reads_otherwise(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to the request in front is shown with it: in whose state it waits, and what will have been forgotten."""
    monkeypatch.setattr(schedule, "look", lambda *_: schedule.Floor(datetime.now(UTC), frozenset({"default"}), 0, {}))
    model = register(client, tmp_path)
    first, second = (ask(client, model, k).json() for k in (1, 2))
    address = f"/unlearn-requests/{second['id']}"
    read = client.get(address)

    def otherwise(*shown: str) -> None:
        nonlocal read
        before, read = read, client.get(address, headers={"If-None-Match": read.headers["etag"]})
        assert read.status_code == 200, shown
        assert {k for k, v in read.json().items() if v != before.json()[k]} == {*shown}

    move(first["id"], "running")
    otherwise("status_reason")
    move(first["id"], "pausing")
    otherwise("status_reason")
    client.post(f"{address}/pause")
    otherwise("status", "status_reason", "version")
    move(first["id"], "paused", "queued")
    publish(model, first["id"], {"w.safetensors": b"w"}, tmp_path)
    otherwise("cumulative_forget")
    assert client.get(address, headers={"If-None-Match": read.headers["etag"]}).status_code == 304
    assert client.patch(address, json={"priority": "bulk"}, headers={"If-Match": read.headers["etag"]}).status_code == 200


def test_a_running_request_shows_where_it_is(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    progress = {"progress_completed": 12, "progress_total": 50, "progress_unit": "iteration"}
    move(request["id"], "running", phase="unlearning", fence=1, estimated_remaining_seconds=4.5, **progress)
    attempt(request["id"], fence=1)
    shown = client.get(f"/unlearn-requests/{request['id']}").json()
    assert (shown["status"], shown["phase"]) == ("running", "unlearning")
    assert {k: v for k, v in shown["progress"].items() if k != "updated_at"} == {
        "completed": 12, "total": 50, "unit": "iteration", "estimated_remaining_seconds": 4.5,
    }  # fmt: skip
    assert [(a["number"], a["outcome"]) for a in shown["attempts"]] == [(1, None)]


def test_findings_and_the_report_are_those_of_the_last_verified_attempt(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    address = f"/unlearn-requests/{request['id']}"
    assert code_of(client.get(f"{address}/report")) == "report_not_found"
    attempt(request["id"], fence=1, outcome="lost", detail={"code": "lost"})
    attempt(request["id"], fence=2, outcome="failed", report=REPORT)
    error = {"code": "verification_failed", "category": "verification", "message": "m", "attempt": 2}
    move(request["id"], "running", fence=2)
    move(request["id"], "failed", error=error, finished_at=datetime.now(UTC))
    shown = client.get(address).json()
    assert (shown["verdict"], shown["findings"], shown["error"]) == ("FAIL", REPORT["findings"], error)
    assert [a["verdict"] for a in shown["attempts"]] == [None, "FAIL"]
    assert client.get(f"{address}/report").json() == REPORT
    assert "retry-after" not in client.get(address).headers


def test_a_published_request_names_its_checkpoint(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request = ask(client, model, 1).json()
    checkpoint = publish(model, request["id"], {"w.safetensors": b"x"}, tmp_path)
    shown = client.get(f"/unlearn-requests/{request['id']}").json()
    assert shown["checkpoint_id"] == checkpoint
    assert client.get(shown["checkpoint_url"]).json()["request_id"] == request["id"]


def test_evidence_is_found_by_its_name_alone(client: TestClient, tmp_path: Path) -> None:
    from service.storage import get_store

    picture = tmp_path / "before_after.png"
    picture.write_bytes(b"\x89PNG...")
    kept = get_store().put(picture).row() | {"path": "evidence/before_after.png"}
    request = ask(client, register(client, tmp_path), 1).json()
    attempt(request["id"], fence=1, outcome="failed", report=REPORT, evidence=[kept])
    address = f"/unlearn-requests/{request['id']}/report"
    found = client.get(f"{address}/before_after.png")
    assert (found.content, found.headers["content-type"]) == (b"\x89PNG...", "image/png")
    for other in ("nothing.png", "%2e%2e/x", "x%2fbefore_after.png"):
        assert code_of(client.get(f"{address}/{other}")) == "file_not_found"


# ------------------------------------------------------------------------------------------------------------- cancel


def _cancel(client: TestClient, request_id: str) -> Any:
    return client.post(f"/unlearn-requests/{request_id}/cancel")


def test_a_queued_request_is_cancelled_at_once_and_twice_is_once(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    first, again = _cancel(client, request["id"]), _cancel(client, request["id"])
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["status"] == again.json()["status"] == "cancelled"
    assert first.json()["version"] == again.json()["version"] == 2
    assert first.json()["finished_at"] is not None
    entries = client.get("/audit/entries", params={"request_id": request["id"]}).json()["data"]
    assert [e["action"] for e in entries] == [
        "unlearning.request.received", "unlearning.request.withdrawn", "unlearning.request.closed",
    ]  # fmt: skip


def test_a_running_request_is_cancelling_until_its_worker_says_so(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    move(request["id"], "running")
    shown = _cancel(client, request["id"]).json()
    assert (shown["status"], shown["finished_at"]) == ("cancelling", None)
    assert shown["cancel_requested_at"] is not None
    assert _cancel(client, request["id"]).json()["version"] == shown["version"]


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_an_ended_request_cannot_be_cancelled(client: TestClient, tmp_path: Path, end: Any) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    move(request["id"], "running", end)
    response = _cancel(client, request["id"])
    assert (response.status_code, code_of(response)) == (409, "invalid_state_transition")
    assert response.json()["current_status"] == end


def test_a_cancelled_class_may_be_asked_for_again(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    _cancel(client, ask(client, model, 1).json()["id"])
    assert ask(client, model, 1).status_code == 202


def test_cancelling_an_unknown_request_is_404(client: TestClient) -> None:
    assert code_of(_cancel(client, "ureq_" + "0" * 32)) == "request_not_found"
