"""The report's address: JSON for programs, a page and a picture for people, whether verification passed or failed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import db
from service.requests.reporting import preferred
from service.storage import get_store
from service.tables import UnlearnRequest
from tests.service.reports.examples import control, finding, picture, report
from tests.support import ask, attempt, code_of, move, one_database, publish, register, register_completer

pytestmark = one_database


def _failed(client: TestClient, folder: Path, **columns: Any) -> str:
    """The report's address of a request whose second result was refused; a run between the two died."""
    request = ask(client, register(client, folder), 1).json()
    with db.transaction() as session:
        row = session.get_one(UnlearnRequest, request["id"])
        row.policy = {**row.policy, "attempts": 2}
    shown = report("FAIL", (finding(passed=False, class_name="one"), control(class_name="one")))
    move(request["id"], "running", fence=3)
    first = {"rung": 1, "spent": True}
    attempt(request["id"], fence=1, outcome="failed", report=report("INCONCLUSIVE", ()), detail=first)
    attempt(request["id"], fence=2, outcome="lost", detail={"rung": 2})
    attempt(request["id"], fence=3, outcome="failed", **{"report": shown, "detail": {"rung": 2, "spent": True}, **columns})
    move(request["id"], "failed")
    return f"/unlearn-requests/{request['id']}/report"


def _kept(folder: Path, content: bytes) -> dict[str, Any]:
    file = folder / "before_after.png"
    file.write_bytes(content)
    return get_store().put(file).row() | {"path": "evidence/before_after.png"}


@pytest.mark.parametrize("query", ["", "?format=html", "?format=png", "?format=json"])
def test_before_anything_is_verified_there_is_no_report(client: TestClient, tmp_path: Path, query: str) -> None:
    request = ask(client, register(client, tmp_path), 1).json()
    assert code_of(client.get(f"/unlearn-requests/{request['id']}/report{query}")) == "report_not_found"
    assert code_of(client.get(f"/unlearn-requests/ureq_{'0' * 32}/report{query}")) == "request_not_found"


def test_a_failed_request_shows_why_in_every_form(client: TestClient, tmp_path: Path) -> None:
    address = _failed(client, tmp_path, evidence=[_kept(tmp_path, picture(31, 7))])
    body = client.get(address)
    assert (body.headers["content-type"], body.json()["verdict"]) == ("application/json", "FAIL")
    page = client.get(address, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "Not verified: 1 of 1 required findings did not pass" in page.text
    assert "2 of 2; earlier ones ended with: INCONCLUSIVE; all 2 share" in page.text  # results, not the three runs
    assert "nothing was certified" in page.text
    assert "data:image/png;base64," in page.text
    image = client.get(address, params={"format": "png"}, headers={"Accept": "text/html"})
    assert image.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(image.content)).width > 1000


def test_the_page_may_load_nothing_and_is_named_for_keeping(client: TestClient, tmp_path: Path) -> None:
    page = client.get(_failed(client, tmp_path), params={"format": "html"})
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["vary"] == "Accept"
    assert page.headers["content-disposition"].startswith('inline; filename="report-ureq_')


def test_an_unchanged_page_is_304(client: TestClient, tmp_path: Path) -> None:
    address = _failed(client, tmp_path) + "?format=html"
    tag = client.get(address).headers["etag"]
    again = client.get(address, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_a_form_that_there_is_not_is_422(client: TestClient, tmp_path: Path) -> None:
    assert code_of(client.get(_failed(client, tmp_path), params={"format": "pdf"})) == "validation_failed"


def test_a_published_request_names_its_certificate(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request = ask(client, model, 1).json()
    attempt(request["id"], fence=1, outcome="succeeded", report=report())
    checkpoint = publish(model, request["id"], {"w.safetensors": b"x"}, tmp_path)
    page = client.get(f"/unlearn-requests/{request['id']}/report", params={"format": "html"}).text
    assert checkpoint in page
    assert "Verified: every required finding passed" in page


def test_the_page_names_the_classes_that_stood_in_for_retained_images(client: TestClient, tmp_path: Path) -> None:
    request = ask(client, register_completer(client, tmp_path), 3, retain={"proxy": {"classes": ["four"]}}).json()
    attempt(request["id"], fence=1, outcome="failed", report=report("FAIL"))
    page = client.get(f"/unlearn-requests/{request['id']}/report", params={"format": "html"}).text
    assert "no real images of retained classes; in the place of the rest other classes, set aside: four" in page


def test_a_picture_that_rotted_is_not_shown_and_spoils_nothing(client: TestClient, tmp_path: Path) -> None:
    kept = _kept(tmp_path, picture())
    store = get_store()
    (store._objects._root / store._key(kept["sha256"])).write_bytes(b"something else")
    lost = {**kept, "sha256": "f" * 64, "path": "evidence/lost.png"}
    page = client.get(_failed(client, tmp_path, evidence=[kept, lost]), params={"format": "html"})
    assert page.status_code == 200
    assert "so it is not shown" in page.text
    assert "the store no longer has it" in page.text
    assert "data:image/png;base64," not in page.text


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", "json"), ("*/*", "json"), ("application/json", "json"), ("text/plain", "json"), ("TEXT/HTML", "html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/png,*/*;q=0.8", "html"),
        ("text/html;q=0.5, application/json;q=0.9", "json"), ("text/html;q=0", "json"), ("image/png", "png"),
        ("text/html;q=nonsense", "json"),
    ],
)  # fmt: skip
def test_the_accept_header_chooses(accept: str, wanted: str) -> None:
    assert preferred(accept) == wanted
