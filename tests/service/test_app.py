"""What holds for every address: errors, limits, documents."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import app as application
from service.app import create_app, openapi_text
from service.config import Settings
from tests.support import ask, code_of, one_database, register

pytestmark = one_database
JSON = {"Content-Type": "application/json"}


def test_importing_the_service_brings_no_torch_and_no_numpy() -> None:
    """The process boundary is the architecture: the front of house holds no weights."""
    script = (
        "import sys, service.app; service.app.create_app();"
        "print(sorted({'torch', 'numpy', 'sklearn', 'worker', 'diffusers', 'celery'} & set(sys.modules)))"
    )
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_the_checked_in_openapi_document_is_what_the_app_says() -> None:
    """`python -m service.app > service/openapi.json` after a change; the diff is the review."""
    checked_in = Path(application.__file__).with_name("openapi.json").read_text()
    assert openapi_text(create_app(Settings())) == checked_in


def test_the_documentation_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    """Every script, style and picture that it names is served by the service itself."""
    page = client.get("/docs")
    assert page.status_code == 200
    named = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert len(named) >= 3  # script, style, icon
    assert "://" not in page.text
    for address in named:
        assert client.get(address).status_code == 200, address
    assert client.get("/redoc").status_code == 404


def test_every_error_in_the_openapi_document_is_a_problem() -> None:
    document = json.loads(openapi_text(create_app(Settings())))
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"], (path, method, status)


def test_operation_names_are_unique() -> None:
    document = json.loads(openapi_text(create_app(Settings())))
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_docs_are_served(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()
    assert client.get("/openapi.json").json()["info"]["title"] == "Expunge"


@pytest.mark.parametrize("path", ["/", "/nothing", "/unlearn-requests/x/y/z", "/models/a/b"])
def test_an_unknown_address_is_a_problem(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, code_of(response)) == (404, "not_found")


def test_a_wrong_method_is_a_problem_that_names_the_right_ones(client: TestClient) -> None:
    response = client.delete("/models")
    assert (response.status_code, code_of(response)) == (405, "method_not_allowed")
    assert "allow" in response.headers


def test_a_bug_answers_500_without_saying_more(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret-in-a-traceback")

    monkeypatch.setattr("service.models.repository.get", broken)
    response = client.get("/models/x")
    assert (response.status_code, code_of(response)) == (500, "internal")
    assert "secret-in-a-traceback" not in response.text


# ------------------------------------------------------------------------------------------------------- bad bodies


@pytest.mark.parametrize("body", [b"{", b"", b"nonsense", b"\xff\xfe{", b'{"model_id": }', b"[" * 100_000])
def test_malformed_json_is_400(client: TestClient, body: bytes) -> None:
    response = client.post("/unlearn-requests", content=body, headers=JSON)
    expected = 400 if body else 422  # no body at all is JSON's absence, not its malformation
    assert response.status_code == expected, response.text
    assert code_of(response) == ("malformed" if body else "validation_failed")


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"text"', b"{}"])
def test_json_of_the_wrong_shape_is_422(client: TestClient, body: bytes) -> None:
    response = client.post("/unlearn-requests", content=body, headers=JSON)
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_422(client: TestClient, content_type: str) -> None:
    response = client.post("/unlearn-requests", content=b'{"a": 1}', headers={"Content-Type": content_type})
    assert (response.status_code, code_of(response)) == (422, "validation_failed")


def test_a_body_over_the_limit_is_413_before_it_is_read(client: TestClient) -> None:
    body = b'{"reason": "' + b"x" * (8 << 20) + b'"}'
    response = client.post("/unlearn-requests", content=body, headers=JSON)
    assert (response.status_code, code_of(response)) == (413, "body_too_large")


def test_a_body_that_does_not_say_its_length_is_counted(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(140):
            yield b"x" * 65_536  # 9.2 MB in all, over the limit of 8 MiB

    response = client.post("/unlearn-requests", content=chunks(), headers=JSON)
    assert (response.status_code, code_of(response)) == (413, "body_too_large")


SECRET = "jane.doe@example.org"


@pytest.mark.parametrize(
    "more",
    [
        {SECRET: 1},
        {"method": [SECRET]},
        {"seed": SECRET},
        {"resources": {"ranks": SECRET}},
        {"resources": {SECRET: 1}},
        {"on_conflict": SECRET},
        {"metadata": SECRET},
        {"metadata": {SECRET: float("1e308")}, "seed": -1},
        {"params": {SECRET: 1}},
        {"params": {"iterations": SECRET}},
        {"params": {"optimizer": SECRET}},
        {"method": SECRET},
        {"forget": {"classes": [SECRET]}},
        {"forget": {"classes": [{SECRET: SECRET}]}},
        {"forget": {SECRET: [1]}},
    ],
)
def test_no_problem_echoes_what_was_sent(client: TestClient, tmp_path: Path, more: dict[str, object]) -> None:
    """A problem may end up in a ticket; what a client sent may be personal data."""
    model = register(client, tmp_path)
    body = {"model_id": model["id"], "forget": {"classes": [1]}, **more}
    response = client.post("/unlearn-requests", json=body)
    assert response.status_code == 422
    code_of(response)
    assert SECRET not in response.text


NUL, SURROGATE, HUGE, DEEP = "a\0b", "\ud800", 10**400, json.loads("[" * 200 + "]" * 200)


@pytest.mark.parametrize(
    "more",
    [
        {"reason": NUL},
        {"reason": SURROGATE},
        {"external_id": NUL},
        {"metadata": {"k": NUL}},
        {"metadata": {NUL: 1}},
        {"metadata": {SURROGATE: 1}},
        {"metadata": {"k": SURROGATE}},
        {"metadata": {"k": HUGE}},
        {"metadata": {"k": DEEP}},
        {"metadata": {"k": float("nan")}},
        {"metadata": {"k": float("inf")}},
        {"metadata": {str(k): k for k in range(51)}},
        {"metadata": {"k": "x" * 9000}},
        {"params": {"iterations": HUGE}},
        {"params": {"alpha": float("nan")}},
        {"seed": HUGE},
        {"seed": True},
        {"seed": 1.5},
        {"resources": {"ranks": 0}},
        {"resources": {"ranks": True}},
        {"reason": "x" * 2001},
        {"external_id": "x" * 201},
        {"external_id": ""},
        {"forget": {"classes": [HUGE]}},
        {"forget": {"classes": [NUL]}},
        {"forget": {"classes": [SURROGATE]}},
        {"forget": {"classes": [1.0]}},
        {"forget": {"classes": [None]}},
        {"forget": {"classes": "1"}},
        {"model_id": 3},
    ],
)
def test_values_that_cannot_be_stored_are_422(client: TestClient, tmp_path: Path, more: dict[str, object]) -> None:
    """None of them may reach a database, RFC 8785 or a hash, where it would be a 500."""
    model = register(client, tmp_path)
    body = json.dumps({"model_id": model["id"], "forget": {"classes": [1]}, **more}).encode()
    response = client.post("/unlearn-requests", content=body, headers=JSON)
    assert response.status_code == 422, response.text
    code_of(response)


@pytest.mark.parametrize("identifier", ["%00", "x", "mdl_" + "0" * 32, "../..", "%F0%9F%92%A5", "a" * 3000])
@pytest.mark.parametrize("place", ["/models", "/datasets", "/unlearn-requests", "/checkpoints"])
def test_any_unknown_id_is_404(client: TestClient, place: str, identifier: str) -> None:
    response = client.get(f"{place}/{identifier}")
    assert response.status_code == 404
    assert code_of(response).endswith("not_found")


# ------------------------------------------------------------------------------------------------------- request ids


def test_a_request_id_is_kept_or_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in (b"", b"a b", b"x" * 129, "é".encode()):
        assert len(client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]) == 32


def test_the_row_is_committed_before_the_answer_is_sent(client: TestClient, tmp_path: Path, database: str) -> None:
    """A 202 is a promise: at the moment its first byte leaves, another connection must see the row."""
    import anyio
    from sqlalchemy import text

    from service.db import get_engine

    model = register(client, tmp_path)
    body = json.dumps({"model_id": model["id"], "forget": {"classes": [1]}}).encode()
    seen: list[int] = []

    async def call() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                with get_engine().connect().execution_options(read_only=True) as connection:
                    seen.append(connection.execute(text("SELECT count(*) FROM unlearn_request")).scalar_one())

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/unlearn-requests", "raw_path": b"/unlearn-requests", "query_string": b"", "root_path": "",
            "headers": [
                (b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
            ],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        await client.app(scope, receive, send)  # type: ignore[arg-type]

    anyio.run(call)
    assert seen == [1]


def test_forty_more_writers_than_threads_all_get_through(client: TestClient, tmp_path: Path) -> None:
    """Writers wait for a lock in threads; its holder must never need one of those threads to let go."""
    from concurrent.futures import ThreadPoolExecutor

    names = [str(k) for k in range(100)]
    model = register(client, tmp_path, names)
    with ThreadPoolExecutor(max_workers=80) as pool:
        answers = list(pool.map(lambda k: ask(client, model, k).status_code, range(80)))
    assert answers == [202] * 80


def test_the_database_gone_is_503_with_retry_after(client: TestClient, tmp_path: Path) -> None:
    from service import db

    model = register(client, tmp_path)
    db.get_engine().dispose()
    os.environ["EXPUNGE_DATABASE_URL"] = f"sqlite:///{tmp_path / 'nothing' / 'x.db'}"
    db.reset()
    (tmp_path / "nothing").mkdir(exist_ok=True)
    response = client.get(f"/models/{model['id']}")
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert response.headers["retry-after"]
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200
