"""A download gets its name only when its bytes are the ones the manifest names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from service.client import ApiError, Client, DownloadRefused, Unreachable

DATA = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good serves the file with ranges; /flipped a wrong byte; /cut hangs up early; /html an error page with 200."""

    seen_ranges: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        data, start = DATA, 0
        if self.path == "/flipped":
            data = DATA[:1000] + b"\x00\x01" + DATA[1002:]
        if self.path == "/html":
            data = b"<html>502 Bad Gateway</html>"
        wanted = self.headers.get("Range")
        if wanted and self.path == "/good" and self.headers.get("If-Range") == f'"sha256:{DIGEST}"':
            self.seen_ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + 1000] if self.path == "/cut" else data[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[Client]:
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


def test_a_download_cut_short_gets_no_name(client: Client, tmp_path: Path) -> None:
    with pytest.raises((DownloadRefused, Unreachable)):
        client.download("/cut", tmp_path / "file", sha256=DIGEST)
    assert not (tmp_path / "file").exists()


def test_a_download_goes_on_where_it_stopped(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA[:5000])
    client.download("/good", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA
    assert Handler.seen_ranges == ["bytes=5000-"]


def test_a_foreign_part_is_found_out(client: Client, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    with pytest.raises(DownloadRefused):
        client.download("/good", tmp_path / "file", sha256=DIGEST)
    client.download("/good", tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == DATA


def test_an_answer_that_is_none_of_ours_is_an_error(client: Client) -> None:
    with pytest.raises((ApiError, ValueError)):
        client.get("/html")


def test_nobody_there_is_unreachable() -> None:
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(Unreachable):
        nobody.get("/healthz")
