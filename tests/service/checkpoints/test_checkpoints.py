"""Downloads that cannot be silently wrong, and names that lead nowhere but to themselves."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from fastapi.testclient import TestClient

from service import db
from service.app import create_app
from service.config import get_settings
from service.storage import StoreUnavailable
from service.storage.s3 import S3Objects
from tests.service.storage_server import SECRET
from tests.support import LOCAL_URL, ask, code_of, one_database, publish, register

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILES = {"unet/weights.safetensors": CONTENT, "config.json": b"{}"}


@pytest.fixture
def checkpoint(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    model = register(client, tmp_path)
    request = ask(client, model, 1, 3).json()
    checkpoint_id = publish(model, request["id"], FILES, tmp_path)
    body: dict[str, Any] = client.get(f"/checkpoints/{checkpoint_id}").json()
    return body


@pytest.fixture
def address(checkpoint: dict[str, Any]) -> str:
    return f"/checkpoints/{checkpoint['id']}/files/unet/weights.safetensors"


def test_the_manifest_names_every_file(checkpoint: dict[str, Any]) -> None:
    assert [f["path"] for f in checkpoint["files"]] == ["config.json", "unet/weights.safetensors"]
    assert checkpoint["files"][1] == {"path": "unet/weights.safetensors", "size": 10_240, "sha256": DIGEST}
    assert checkpoint["forgotten"] == {"classes": [1, 3], "class_names": ["one", "three"], "samples": {"count": 0}}
    assert checkpoint["version"] == 2


def test_the_lineage_shows_what_each_version_forgot(client: TestClient, checkpoint: dict[str, Any]) -> None:
    model = client.get(f"/models/{checkpoint['model_id']}").json()
    assert [(v["number"], v["checkpoint_id"], v["forgotten"]["classes"]) for v in model["versions"]] == [
        (1, None, []), (2, checkpoint["id"], [1, 3]),
    ]  # fmt: skip
    assert (model["current_version"], model["forgotten"]["class_names"]) == (2, ["one", "three"])
    assert client.get("/models").json()["data"][0]["forgotten"]["classes"] == [1, 3]


def test_the_certificate_is_a_bundle(client: TestClient, checkpoint: dict[str, Any]) -> None:
    response = client.get(checkpoint["certificate_url"])
    assert response.headers["content-type"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert response.json()["dsseEnvelope"] == {"payload": "e30="}


def test_a_download_says_its_digest(client: TestClient, address: str) -> None:
    response = client.get(address)
    assert response.content == CONTENT
    assert response.headers["etag"] == f'"sha256:{DIGEST}"'
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
    assert response.headers["content-length"] == "10240"
    assert "immutable" in response.headers["cache-control"]
    assert "private" in response.headers["cache-control"]
    assert "weights.safetensors" in response.headers["content-disposition"]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.one_database
def test_head_says_the_same_without_the_bytes(client: TestClient, address: str) -> None:
    get, head = client.get(address), client.head(address, headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.content) == (200, b"")  # Range means something to GET alone
    same = ("etag", "repr-digest", "content-length", "accept-ranges", "content-type", "content-disposition")
    assert {k: head.headers[k] for k in same} == {k: get.headers[k] for k in same}


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=10000-", 10_000, 10_240), ("bytes=-40", 10_200, 10_240),
     ("bytes=10000-99999", 10_000, 10_240), ("bytes=-99999", 0, 10_240)],
)  # fmt: skip
def test_a_range_is_206(client: TestClient, address: str, wanted: str, begin: int, end: int) -> None:
    response = client.get(address, headers={"Range": wanted})
    assert response.status_code == 206
    assert response.content == CONTENT[begin:end]
    assert response.headers["content-range"] == f"bytes {begin}-{end - 1}/10240"
    assert response.headers["content-length"] == str(end - begin)
    assert response.headers["etag"] == f'"sha256:{DIGEST}"'


@pytest.mark.one_database
@pytest.mark.parametrize("wanted", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_a_range_past_the_end_is_416(client: TestClient, address: str, wanted: str) -> None:
    response = client.get(address, headers={"Range": wanted})
    assert (response.status_code, code_of(response)) == (416, "range_not_satisfiable")
    assert response.headers["content-range"] == "bytes */10240"


@pytest.mark.one_database
@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "bytes=0-1,5-6", "lines=0-1", "bytes=x-y", f"bytes={'9' * 99}-"])
def test_a_range_we_do_not_serve_is_the_whole_file(client: TestClient, address: str, wanted: str) -> None:
    response = client.get(address, headers={"Range": wanted})
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.one_database
def test_a_resumed_download_of_another_file_starts_again(client: TestClient, address: str) -> None:
    ours = {"Range": "bytes=10-", "If-Range": f'"sha256:{DIGEST}"'}
    assert client.get(address, headers=ours).status_code == 206
    for other in ('"sha256:00"', f'W/"sha256:{DIGEST}"', "Sat, 21 Nov 2026 00:00:00 GMT"):
        response = client.get(address, headers={**ours, "If-Range": other})
        assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.one_database
def test_bytes_the_client_has_are_304(client: TestClient, address: str) -> None:
    for tag in (f'"sha256:{DIGEST}"', f'W/"sha256:{DIGEST}"', "*", f'"a", "sha256:{DIGEST}"'):
        response = client.get(address, headers={"If-None-Match": tag})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == f'"sha256:{DIGEST}"'
        assert client.head(address, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(address, headers={"If-None-Match": '"sha256:00"'}).status_code == 200


def _raw_get(client: TestClient, raw_path: str) -> int:
    """GET without the client's own tidying of `..` and `%2f`."""
    from urllib.parse import unquote

    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": unquote(raw_path), "raw_path": raw_path.encode(), "query_string": b"",
        "root_path": "", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    anyio.run(client.app, scope, receive, send)  # type: ignore[arg-type]
    return statuses[0]


SMUGGLED = (
    "../../../etc/passwd", "/etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc%2fpasswd", "unet%2fweights.safetensors",
    "unet%2Fweights.safetensors", "./config.json", "unet/../config.json", "%2e/config.json", "config%2ejson", "unet",
    "unet/", "", "CONFIG.JSON", "config.json/", "config.json%00", "unet%5cweights.safetensors", "unet\\weights.safetensors",
    "%252e%252e/x", "file:///etc/passwd", "expunge.db", "unet//weights.safetensors",
)  # fmt: skip


def test_a_name_that_is_not_in_the_manifest_is_404(client: TestClient, checkpoint: dict[str, Any]) -> None:
    folder = f"/checkpoints/{checkpoint['id']}/files"
    assert {path: _raw_get(client, f"{folder}/{path}") for path in SMUGGLED} == dict.fromkeys(SMUGGLED, 404)
    assert _raw_get(client, f"{folder}/config.json") == 200  # the way in is open


def test_another_checkpoints_file_is_404(client: TestClient, checkpoint: dict[str, Any]) -> None:
    response = client.get(f"/checkpoints/ckpt_{'0' * 32}/files/config.json")
    assert (response.status_code, code_of(response)) == (404, "checkpoint_not_found")


@pytest.mark.one_database
def test_a_damaged_store_is_an_error_and_not_a_download(client: TestClient, address: str) -> None:
    path = get_settings().data_dir / "store" / "sha256" / DIGEST[:2] / DIGEST
    path.write_bytes(CONTENT[:-1])
    response = client.get(address)
    assert (response.status_code, code_of(response)) == (500, "stored_file_damaged")
    path.unlink()
    assert code_of(client.get(address)) == "stored_file_damaged"


@pytest.fixture
def in_bucket(
    client: TestClient, s3_bucket: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TestClient, str]]:
    """The service with its store in a bucket, and the address of a file there."""
    monkeypatch.setenv("EXPUNGE_STORE_URL", f"s3://{s3_bucket}/store")
    monkeypatch.setenv("EXPUNGE_STORE_ENDPOINT_URL", s3_url)
    db.reset()
    with TestClient(create_app(), base_url=LOCAL_URL, follow_redirects=False) as other:
        model = register(other, tmp_path)
        made = publish(model, ask(other, model, 1).json()["id"], FILES, tmp_path)
        yield other, f"/checkpoints/{made}/files/unet/weights.safetensors"


@one_database
def test_a_bucket_serves_as_a_folder_does(in_bucket: tuple[TestClient, str]) -> None:
    other, address = in_bucket
    whole, head = other.get(address), other.head(address)
    assert (whole.content, head.status_code) == (CONTENT, 200)
    for response in (whole, head):
        assert response.headers["etag"] == f'"sha256:{DIGEST}"'
        assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
        assert response.headers["content-length"] == "10240"
    last = other.get(address, headers={"Range": "bytes=-3"})
    assert (last.status_code, last.content) == (206, CONTENT[-3:])
    middle = other.get(address, headers={"Range": "bytes=10-19", "If-Range": f'"sha256:{DIGEST}"'})
    assert (middle.status_code, middle.content, middle.headers["content-range"]) == (206, CONTENT[10:20], "bytes 10-19/10240")
    assert other.get(address, headers={"Range": "bytes=10-19", "If-Range": '"other"'}).content == CONTENT
    assert other.get(address, headers={"Range": "bytes=10240-"}).status_code == 416
    assert other.get(address, headers={"If-None-Match": f'"sha256:{DIGEST}"'}).status_code == 304


@one_database
def test_where_it_is_set_a_bucket_is_sent_on_to_with_the_digest(
    in_bucket: tuple[TestClient, str],
) -> None:
    other, address = in_bucket
    other.app.state.settings.store_redirect_seconds = 60  # type: ignore[attr-defined]
    response = other.get(address)
    assert (response.status_code, response.headers["cache-control"]) == (307, "no-store")
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(DIGEST)).decode()}:"
    assert response.headers["etag"] == f'"sha256:{DIGEST}"'
    url = response.headers["location"]
    assert "X-Amz-Expires=60" in url
    assert SECRET not in url
    assert httpx2.get(url).content == CONTENT
    assert httpx2.get(url, headers={"Range": "bytes=5-9"}).content == CONTENT[5:10]
    assert other.head(address).status_code == 200  # which costs no bytes
    assert other.get(address, headers={"If-None-Match": f'"sha256:{DIGEST}"'}).status_code == 304


@one_database
def test_a_store_that_does_not_answer_is_503(in_bucket: tuple[TestClient, str], monkeypatch: pytest.MonkeyPatch) -> None:
    other, address = in_bucket

    def away(*_: object) -> None:
        raise StoreUnavailable("reading: EndpointConnectionError")

    monkeypatch.setattr(S3Objects, "stat", away)
    response = other.get(address)
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert "retry-after" in response.headers


# -------------------------------------------------------------------------------------------------------- signing key


@one_database
def test_the_public_key_is_served_once_it_exists_and_never_a_private_one(client: TestClient) -> None:
    from service.config import get_settings

    assert code_of(client.get("/signing-key")) == "signing_key_not_found"
    place = get_settings().public_key_file
    place.parent.mkdir(parents=True)
    pem = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
    place.write_text(pem)
    assert client.get("/signing-key").text == pem
    place.write_text("-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n")
    response = client.get("/signing-key")
    assert response.status_code == 500
    assert "MIGH" not in response.text
