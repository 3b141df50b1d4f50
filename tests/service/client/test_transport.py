"""A download gets its name only when its bytes are the ones the manifest names."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from service import fetching
from service.client import ApiError, Client, Unreachable
from service.fetching import DownloadRefused

DATA = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(DATA).hexdigest()


OTHER = hashlib.sha256(b"another file").hexdigest()
CUT_AT = len(DATA) * 9 // 10


class Handler(BaseHTTPRequestHandler):
    """A service behind proxies. By path:

    /good serves the file with ranges; /flipped has one wrong byte; /breaks hangs up at 90 %, once; /always-breaks does after
    1000 bytes, then at once; /html and /html-later are a 502 page with status 200, from the start or after a cut; /changed is
    another file from the second request on; /lies goes on at another byte than it was asked for; /elsewhere redirects to a
    bucket, /login and /https as proxies do; /busy and /full are 429 twice, the one for too many calls and the other
    for a quota.
    """

    seen: ClassVar[list[tuple[str | None, str | None]]] = []
    elsewhere: ClassVar[dict[str, str | None]] = {}

    def do_GET(self) -> None:
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        self.seen.append((wanted, condition))
        asked, data, digest = len(self.seen), DATA, DIGEST
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        end = len(data)
        match self.path:
            case "/flipped":
                data = DATA[:1000] + b"\x00\x01" + DATA[1002:]
            case "/breaks" if asked == 1:
                end = CUT_AT
            case "/always-breaks":
                end = begin + 1000 if asked < 3 else begin
            case "/busy" | "/full" if asked < 3:
                code = {"/busy": "rate_limited", "/full": "quota_exceeded"}[self.path]
                problem = json.dumps({"code": code, "detail": "later"}).encode()
                return self.answer(429, problem, {"Retry-After": "20"})
            case "/html-later" | "/changed" if asked == 1:
                end = CUT_AT
            case "/html" | "/html-later":
                return self.answer(200, b"<html>502 Bad Gateway</html>", {"Content-Type": "text/html"})
            case "/changed":
                data, digest = b"another file", OTHER
            case "/elsewhere":
                return self.answer(307, b"", self.at_bucket())
            case "/login" | "/https":
                page = b"<html>Moved</html>"
                return self.answer({"/login": 307, "/https": 301}[self.path], page, {"Location": "/html", "ETag": '"a-page"'})
            case "/bucket":
                self.elsewhere.update({name: self.headers.get(name) for name in ("Range", "If-Range", "Authorization")})
                digest = "the-bucket-has-tags-of-its-own"
        if begin >= len(data) and self.path == "/good":
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if begin and (condition == f'"sha256:{digest}"' or self.path == "/bucket"):
            shown = begin + 7 if self.path == "/lies" and asked == 1 else begin
            headers = {"Content-Range": f"bytes {shown}-{len(data) - 1}/{len(data)}", "ETag": f'"sha256:{digest}"'}
            return self.answer(206, data[shown:end], headers, length=len(data) - shown)
        return self.answer(200, data[:end], {"ETag": f'"sha256:{digest}"'}, length=len(data))

    def at_bucket(self) -> dict[str, str]:
        host, port = self.server.server_address[:2]
        return {"Location": f"http://{host}:{port}/bucket", "ETag": f'"sha256:{DIGEST}"'}

    def answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    Handler.seen.clear()
    Handler.elsewhere.clear()
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_port}") as opened:
        yield opened
    server.shutdown()
    server.server_close()


def test_a_good_download_gets_its_name(client: Client, tmp_path: Path) -> None:
    client.download("/good", tmp_path / "a" / "file", sha256=DIGEST)
    assert (tmp_path / "a" / "file").read_bytes() == DATA
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize("path", ["/flipped", "/html"])
def test_wrong_bytes_are_refused_and_removed(client: Client, tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadRefused):
        client.download(path, tmp_path / "file", sha256=DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_download_cut_at_90_percent_goes_on_from_its_byte(client: Client, tmp_path: Path) -> None:
    client.download("/breaks", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert Handler.seen == [(None, None), (f"bytes={CUT_AT}-", f'"sha256:{DIGEST}"')]


def test_a_download_that_breaks_again_and_again_gets_no_name(client: Client, tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        client.download("/always-breaks", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file.part").read_bytes() == DATA[:2000]  # what there is may still be gone on with
    assert not (tmp_path / "file").exists()
    client.download("/good", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.parametrize("path", ["/html-later", "/changed"])
def test_another_answer_in_the_middle_is_refused_and_costs_nothing(client: Client, tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadRefused):
        client.download(path, tmp_path / "file", sha256=DIGEST)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").read_bytes() == DATA[:CUT_AT]
    client.download("/good", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert Handler.seen[-1][0] == f"bytes={CUT_AT}-"


def test_an_answer_that_goes_on_elsewhere_is_not_appended(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA[:5000])
    client.download("/lies", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for wanted, _ in Handler.seen] == ["bytes=5000-", None]


def test_a_foreign_part_is_found_out_and_begun_again(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    client.download("/good", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_file_without_a_promised_digest_is_held_against_its_tag(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    client.download("/good", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    with pytest.raises(DownloadRefused):
        client.download("/flipped", tmp_path / "flipped")
    assert not (tmp_path / "flipped").exists()


def test_a_bucket_is_asked_without_our_headers(client: Client, tmp_path: Path) -> None:
    client._http.headers["Authorization"] = "Bearer secret"
    (tmp_path / "file.part").write_bytes(DATA[:5000])
    client.download("/elsewhere", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert Handler.elsewhere == {"Range": "bytes=5000-", "If-Range": None, "Authorization": None}


@pytest.mark.parametrize("path", ["/login", "/https"])
def test_a_proxy_that_sends_on_is_not_taken_for_the_service(client: Client, tmp_path: Path, path: str) -> None:
    """Such an answer was a receipt, a key or an export before: whatever has no digest of its own."""
    for call in (
        lambda: client.get(path),
        lambda: client.text(path),
        lambda: list(client.stream_lines(path)),
        lambda: client.download(path, tmp_path / "receipt"),
        lambda: client.download(path, tmp_path / "weights", sha256=DIGEST),
    ):
        with pytest.raises(ApiError, match="redirected"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_whole_already_is_not_fetched_again(client: Client, tmp_path: Path) -> None:
    """Whoever fetched it was stopped between its last byte and its name."""
    (tmp_path / "w.part").write_bytes(DATA)
    client.download("/good", tmp_path / "w", sha256=DIGEST)
    assert (tmp_path / "w").read_bytes() == DATA
    assert [wanted for wanted, _ in Handler.seen] == [f"bytes={len(DATA)}-"]


def test_an_answer_that_is_none_of_ours_is_an_error(client: Client) -> None:
    with pytest.raises((ApiError, ValueError)):
        client.get("/html")


def test_nobody_there_is_unreachable() -> None:
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(Unreachable):
        nobody.get("/healthz")


def test_a_call_that_came_too_soon_waits_as_it_is_told(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("service.client.transport.time.sleep", waited.append)
    client.download("/busy", tmp_path / "file", sha256=DIGEST)
    assert (waited, (tmp_path / "file").read_bytes() == DATA) == ([20.0, 20.0], True)


def test_a_call_that_would_wait_too_long_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.transport.RATE_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr("service.client.transport.time.sleep", lambda seconds: None)
    with pytest.raises(ApiError, match="rate_limited") as refused:
        client.text("/busy")
    assert (refused.value.status, len(Handler.seen)) == (429, 2)


def test_a_quota_is_not_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.transport.time.sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(ApiError, match="quota_exceeded"):
        client.text("/full")
