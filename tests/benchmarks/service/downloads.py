"""A large file through the API, beside the same file from a server that does nothing but sendfile(2)."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.serving import ROOT, free_port

BUFFER = 2**20


def measure(url: str, path: str, file: Path, rounds: int) -> dict[str, float]:
    """MB/s of both, medians; one after the other in each round, by the same client over a bare socket."""
    with plain(file) as other:
        pairs = [(fetched(url, path, file), fetched(other, "/", file)) for _ in range(rounds)]
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    return {"download_mb_s": round(ours, 1), "sendfile_mb_s": round(theirs, 1), "download_ratio": round(ratio, 3)}


@contextmanager
def plain(file: Path) -> Iterator[str]:
    """The address of a process that does nothing but send this file."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", __name__, str(file), str(port)], cwd=ROOT)
    try:
        _wait(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def fetched(url: str, path: str, file: Path) -> float:
    """MB/s of one download, connection included. Raises: RuntimeError: not the whole file came."""
    place, size = urlsplit(url), file.stat().st_size
    buffer, began, got, head = memoryview(bytearray(BUFFER)), time.perf_counter(), 0, b""
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(65536)):
                raise RuntimeError("the connection broke off")
            head += more
        said, _, rest = head.partition(b"\r\n\r\n")
        got = len(rest)
        while count := connection.recv_into(buffer):
            got += count
    if b" 200 " not in said.splitlines()[0] or got != size:
        raise RuntimeError(f"{got} of {size} bytes: {said.decode(errors='replace')[:200]}")
    return size / 1e6 / (time.perf_counter() - began)


def serve(path: Path, port: int) -> None:
    """The whole file to whoever connects, one after the other, for ever."""
    size = path.stat().st_size
    with socket.create_server(("127.0.0.1", port)) as listening, path.open("rb") as file:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode())
                sent = 0
                while sent < size:
                    sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)


def _wait(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                probe.sendall(b"\r\n")
                while probe.recv(BUFFER):
                    pass
                return
        time.sleep(0.05)
    raise RuntimeError("the plain server did not start")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
