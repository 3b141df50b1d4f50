"""Browsers guess nothing, frame nothing, run nothing and keep nothing of an answer, unless its route says otherwise."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.config import Settings
from service.hardening import ALWAYS, HSTS, NO_PAGE
from tests.support import LOCAL_URL, ask, one_database, publish, register

pytestmark = one_database


@pytest.mark.parametrize("path", ["/models", "/healthz", "/nothing", "/unlearn-requests?limit=-1", "/catalogue"])
def test_every_answer_is_told_to_browsers_as_what_it_is(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert {name: answer.headers.get(name) for name in ALWAYS} == ALWAYS
    assert answer.headers["Content-Security-Policy"] == NO_PAGE
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" not in answer.headers


def test_what_is_refused_before_any_route_is_hardened_as_well(client: TestClient) -> None:
    too_long = client.post("/models", content=b"x", headers={"Content-Length": "999999999"})
    assert (too_long.status_code, too_long.headers["X-Frame-Options"]) == (413, "DENY")


def test_a_crash_is_hardened_as_well(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.models.endpoints.reading", broken)
    crashed = client.get("/models")
    assert (crashed.status_code, crashed.headers["Cache-Control"]) == (500, "no-store")
    assert crashed.headers["X-Content-Type-Options"] == "nosniff"


def test_transport_security_is_asked_for_over_https_alone(rules: None, database: str) -> None:
    with TestClient(create_app(), base_url="https://localhost") as secure:
        assert secure.get("/healthz").headers["Strict-Transport-Security"] == HSTS
        told = secure.get("/healthz", headers={"X-Forwarded-Proto": "http"})
        assert "Strict-Transport-Security" in told.headers  # the header itself is nobody's word: uvicorn sets the scheme
    with TestClient(create_app(), base_url=LOCAL_URL) as plain:
        assert "Strict-Transport-Security" not in plain.get("/healthz", headers={"X-Forwarded-Proto": "https"}).headers


def test_downloads_are_kept_as_their_route_says(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path / "files")
    request = ask(client, model, 1).json()
    publish(model, request["id"], {"model.safetensors": b"weights"}, tmp_path)
    checkpoint = client.get(f"/unlearn-requests/{request['id']}").json()["checkpoint_id"]
    address = f"/checkpoints/{checkpoint}/files/model.safetensors"
    answer = client.get(address)
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    again = client.get(address, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.headers["Cache-Control"]) == (304, answer.headers["Cache-Control"])
    seen = client.get(f"/unlearn-requests/{request['id']}")
    assert seen.headers["Cache-Control"] == "no-cache"
    unchanged = client.get(f"/unlearn-requests/{request['id']}", headers={"If-None-Match": seen.headers["ETag"]})
    assert (unchanged.status_code, "Cache-Control" in unchanged.headers) == (304, False)


@pytest.mark.parametrize("page", ["/docs", "/docs/oauth2-redirect"])
def test_the_documentation_runs_its_own_scripts_and_no_other(page: str) -> None:
    answer = TestClient(create_app(Settings()), base_url=LOCAL_URL).get(page)
    directives = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    inline = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert len(inline) == 1
    digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
    assert directives["script-src"] == f"'self' 'sha256-{digest}'"
    assert (directives["default-src"], directives["frame-ancestors"]) == ("'none'", "'none'")
    assert directives["connect-src"] == "'self'"
    assert len(answer.content) == int(answer.headers["Content-Length"])
    assert "Cache-Control" not in answer.headers
