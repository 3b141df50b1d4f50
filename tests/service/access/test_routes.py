"""Every route, one by one: who is let in, who is not, and whose rows are seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service import app as application
from service.access.scopes import HOME_ONLY, ROLES, SCOPES, granted
from service.auth import Allowed, Public, declared
from tests.service.access.people import ALL_ROLES, bearer, calling, person, project
from tests.support import ask, attempt, code_of, publish, register

PUBLIC = {
    "healthz",
    "readyz",
    "list_revocations",  # whoever relies on a certificate must be able to ask
    "read_signing_key",
    "read_audit_checkpoint",  # witnesses and keepers of old checkpoints: hashes and signatures alone
    "read_audit_policy",
    "read_audit_status",
    "read_audit_tile",
    "read_audit_consistency",
}
"""The named exceptions: what they say is for everybody, and names nobody."""

BODIES: dict[str, Any] = {
    "create_project": {"id": "another"},
    "amend_project": {"approvals": 1},
    "approve_unlearn_request": {"request_digest": "0" * 64},
    "reject_unlearn_request": {"reason": "x"},
    "create_webhook_endpoint": {"url": "https://hooks.example.org/"},
    "rotate_webhook_secret": {},
    "amend_unlearn_request": {"priority": "urgent"},
    "create_principal": {"name": "n", "roles": ["auditor"]},
    "create_compliance_event": {"type": "answered", "result": "erased", "answered_at": "2026-11-20T10:00:00Z"},
    "revoke_checkpoint": {"reason": "result_wrong"},
    "record_disposition": {"state": "withdrawn"},
    "shred_audit_entry": {"ground": "erasure_request"},
    "shred_unlearn_request": {"ground": "erasure_request"},
    "hold_unlearn_request": {"hold": True, "ground": "legal_claim"},
}
SHARED = {"read_policy", "ask_audit_question", "read_audit_report"}
"""Named by what they are, not by an id of somebody's."""
INDIRECT = {"create_api_key", "create_audit_redaction", "create_model", "create_unlearn_request"}
"""The other project's id is in the body."""


def routes() -> list[APIRoute]:
    return list(application.routes())


def guarded_routes() -> list[tuple[APIRoute, str]]:
    return [(route, one.scope) for route in routes() for one in declared(route) if isinstance(one, Allowed)]


def test_every_route_says_whom_it_is_for_and_only_the_named_ones_are_public() -> None:
    assert [route.name for route in routes() if len(declared(route)) != 1] == []
    assert {route.name for route in routes() if isinstance(declared(route)[0], Public)} == PUBLIC


def test_below_a_public_path_nothing_asks_for_credentials(guarded: TestClient) -> None:
    """No route's pattern fits a line break, so the gate took it for something of somebody's: 401, which is not described."""
    assert guarded.get("/audit/tile/x/%0Ay").status_code == 404


def test_the_walk_misses_no_operation() -> None:
    """What the app answers is what its document lists, and that is what is walked here."""
    document = application.create_app().openapi()
    listed = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    plain = {(method, re.sub(r":path}", "}", route.path)) for route in routes() for method in route.methods or ()}
    assert plain == listed


def test_the_document_says_the_scope_of_every_operation() -> None:
    document = application.create_app().openapi()
    said = {op["operationId"]: op for operations in document["paths"].values() for op in operations.values()}
    for route, scope in guarded_routes():
        assert said[route.name]["x-required-scope"] == scope
        assert said[route.name]["security"] == [{"apiKey": []}, {"token": []}]
        assert {"401", "403"} <= set(said[route.name]["responses"])
    assert all(said[name]["security"] == [] and "x-required-scope" not in said[name] for name in PUBLIC)


def test_every_scope_is_asked_for_somewhere_and_given_to_somebody() -> None:
    asked = {scope for _, scope in guarded_routes()} | {"private:read", "requests:operate"}  # these two inside endpoints
    assert asked == SCOPES
    assert frozenset[Any]().union(*ROLES.values()) == SCOPES


def test_no_role_can_both_ask_and_approve_and_admins_touch_neither_requests_nor_ledger() -> None:
    pairs = (
        ("ledger:redact", "ledger:approve"),
        ("requests:create", "checkpoints:approve"),
        ("requests:create", "requests:approve"),
    )
    for ask_for, approve in pairs:
        assert not [role for role, scopes in ROLES.items() if {ask_for, approve} <= scopes]
    assert not [scope for scope in ROLES["admin"] if scope.startswith(("requests", "ledger", "private", "checkpoints"))]
    writes = [s for s in ROLES["auditor"] if s.split(":")[1] not in ("read", "export", "whole")]
    assert writes == []
    assert ROLES["worker"] == frozenset()
    assert granted(["admin", "auditor", "no such role"], home=False) & HOME_ONLY == frozenset()


@pytest.fixture
def belongings(guarded: TestClient, tmp_path: Path) -> dict[str, str]:
    """One of everything, in project a: path parameters by name."""
    _, _, key = person(project("a"), "requester", "operator", "auditor", "admin")
    with calling(guarded, key):
        model = register(guarded, tmp_path)
        request = ask(guarded, model, 1).json()["id"]
        checkpoint = publish(model, request, {"w.safetensors": b"x"}, tmp_path)
        attempt(request, fence=1, report={"verdict": "PASS", "findings": []})
        received = guarded.get("/audit/entries", params={"request_id": request}).json()["data"][0]["seq"]
        redaction = guarded.post("/audit/redactions", json={"seq": 0, "reason": "security"}).json()["id"]
        endpoint = guarded.post("/webhook-endpoints", json={"url": "https://hooks.example.org/"}).json()["id"]
        delivery = guarded.post(f"/webhook-endpoints/{endpoint}/test").json()["id"]
        principal, key_id, _ = person("a", "requester")
    return {
        "model_id": model["id"],
        "dataset_id": model["dataset_id"],
        "request_id": request,
        "checkpoint_id": checkpoint,
        "seq": str(received),
        "redaction_id": redaction,
        "principal_id": principal,
        "project_id": "a",
        "key_id": key_id,
        "endpoint_id": endpoint,
        "delivery_id": delivery,
        "number": "1",
        "path": "w.safetensors",
        "file": "before_after.png",
        "name": "default-v1",
        "level": "0",
    }


def call(client: TestClient, route: APIRoute, ids: dict[str, str], key: str | None) -> Any:
    path = re.sub(r"{(\w+)(:path)?}", lambda found: ids[found.group(1)], route.path)
    (method,) = route.methods or {"GET"}
    query: dict[str, str] = {"seq": ids["seq"]} if route.name == "read_audit_inclusion" else {}
    if route.name == "read_membership":
        query["item"] = "x"
    body = BODIES.get(route.name, {"principal_id": ids["principal_id"], "name": "n"} if "api_key" in route.name else {})
    with calling(client, key):
        return client.request(
            method, path, params=query, headers={"If-Match": '"1"'}, **({"json": body} if method in ("POST", "PATCH") else {})
        )


def test_without_credentials_nobody_gets_further_than_401(guarded: TestClient, belongings: dict[str, str]) -> None:
    for route, _ in guarded_routes():
        answer = call(guarded, route, belongings, None)
        assert answer.status_code == 401, route.name
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        assert "HEAD" in (route.methods or ()) or code_of(answer) == "unauthenticated"
    assert code_of(guarded.get("/no-such-address")) == "unauthenticated"
    assert code_of(guarded.post("/unlearn-requests", content=b"{no json")) == "unauthenticated"
    for route in routes():
        if route.name in PUBLIC:
            assert call(guarded, route, belongings, None).status_code not in (401, 403), route.name
    assert guarded.get("/openapi.json").status_code == guarded.get("/docs").status_code == 200


def test_without_the_scope_it_is_403_before_anything_is_looked_up(guarded: TestClient, belongings: dict[str, str]) -> None:
    keys = {scope: person("a", *[r for r in ALL_ROLES if scope not in ROLES[r]])[2] for _, scope in guarded_routes()}
    for route, scope in guarded_routes():
        answer = call(guarded, route, belongings, keys[scope])  # every role that does not have it
        assert answer.status_code == 403, route.name
        assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["WWW-Authenticate"]


def test_another_project_s_things_are_not_there(guarded: TestClient, belongings: dict[str, str]) -> None:
    _, _, key = person(project("b"), *ALL_ROLES)
    for route, scope in guarded_routes():
        if scope in HOME_ONLY:
            assert call(guarded, route, belongings, key).status_code == 403, route.name
        elif ("{" in route.path and route.name not in SHARED) or route.name in ("create_api_key", "read_audit_inclusion"):
            assert call(guarded, route, belongings, key).status_code == 404, route.name
    with calling(guarded, key):
        assert guarded.post("/unlearn-requests", json=wish(belongings)).status_code == 404
        assert guarded.post("/unlearn-requests/validate", json=wish(belongings)).status_code == 404
        batch = {"items": [wish(belongings)], "atomic": True}
        assert guarded.post("/unlearn-requests/batch", json=batch).status_code == 404
        assert guarded.post("/audit/redactions", json={"seq": int(belongings["seq"]), "reason": "security"}).status_code == 404
        assert guarded.get("/audit/questions/history", params={"request_id": belongings["request_id"]}).status_code in (
            200,
            404,
        )


def wish(ids: dict[str, str]) -> dict[str, Any]:
    return {"model_id": ids["model_id"], "forget": {"classes": [2]}}


def test_lists_show_one_s_own_project_alone(guarded: TestClient, belongings: dict[str, str]) -> None:
    _, _, theirs = person(project("b"), *ALL_ROLES)
    _, _, ours = person("a", *ALL_ROLES)
    for path in ("/datasets", "/models", "/unlearn-requests", "/audit/redactions", "/webhook-endpoints", "/events"):
        with calling(guarded, theirs):
            assert guarded.get(path).json()["data"] == [], path
        with calling(guarded, ours):
            assert len(guarded.get(path).json()["data"]) == 1, path
    with calling(guarded, theirs):
        tenants = {entry["leaf"]["tenant"] for entry in guarded.get("/audit/entries").json()["data"] if entry["leaf"]}
        assert tenants == {"b"}
        assert {row["project_id"] for row in guarded.get("/principals").json()["data"]} == {"b"}
        assert {row["project_id"] for row in guarded.get("/api-keys").json()["data"]} == {"b"}
        exported = guarded.get("/audit/export").text
        assert exported
        assert belongings["request_id"] not in exported
        assert '"tenant":"a"' not in exported
        for name in [one["name"] for one in guarded.get("/audit/reports").json()]:
            told = guarded.get(f"/audit/reports/{name}", params={"format": "csv"})
            assert told.status_code in (200, 422), name
            assert not [i for i in belongings.values() if "_" in i and i in told.text], name
        for question in guarded.get("/audit/questions").json():
            known = {"request_id": belongings["request_id"], "model_id": belongings["model_id"], "year": "2026"}
            given = {name: known[name] for name in question["needs"] if name in known}
            told = guarded.get(question["url"], params={**given, "format": "csv"})
            assert told.status_code in (200, 404, 422), question["name"]
            assert belongings["checkpoint_id"] not in told.text, question["name"]
    with calling(guarded, ours):
        assert {entry["leaf"]["tenant"] for entry in guarded.get("/audit/entries").json()["data"] if entry["leaf"]} == {"a"}
        assert belongings["request_id"] in guarded.get("/audit/export").text


def test_admins_of_the_home_project_see_to_all_and_others_to_their_own(guarded: TestClient) -> None:
    home = bearer(person("default", "admin")[2])
    made = guarded.post("/projects", json={"id": "b"}, headers=home)
    assert made.status_code == 201
    assert code_of(guarded.post("/projects", json={"id": "b"}, headers=home)) == "project_exists"
    body = {"name": "Bea", "roles": ["admin"], "project_id": "b"}
    who = guarded.post("/principals", json=body, headers=home).json()
    key = guarded.post("/api-keys", json={"principal_id": who["id"], "name": "laptop"}, headers=home).json()
    bea = bearer(key["key"])
    assert code_of(guarded.post("/principals", json={**body, "project_id": "default"}, headers=bea)) == "project_not_found"
    mine = guarded.get("/api-keys", headers=bea).json()["data"]
    assert [(row["id"], row["project_id"], "key" in row) for row in mine] == [(key["id"], "b", False)]
    assert len(guarded.get("/api-keys", headers=home).json()["data"]) == 2
    assert code_of(guarded.get("/projects", headers=bea)) == "forbidden"
    assert [row["id"] for row in guarded.get("/projects", headers=home).json()["data"]] == ["default", "b"]
