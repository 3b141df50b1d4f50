"""The API as several processes, over real sockets."""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url, text

from service import serving
from service.config import Settings
from tests.serving import Served, free_port, served

SECONDS = 30.0


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def postgresql(postgresql_server: str, postgresql_template: str) -> Iterator[str]:
    """URL of a migrated database: SQLite has no several processes."""
    server, name = make_url(postgresql_server).set(drivername="postgresql+psycopg"), f"expunge_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {postgresql_template} STRATEGY FILE_COPY"))
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def two(postgresql: str, tmp_path: Path, metrics_port: int) -> Iterator[Served]:
    surroundings = {
        "EXPUNGE_DATABASE_URL": postgresql,
        "EXPUNGE_DATA_DIR": str(tmp_path),
        "EXPUNGE_API_WORKERS": "2",
        "EXPUNGE_API_METRICS_PORT": str(metrics_port),
    }
    with served(tmp_path / "server.log", surroundings) as server:
        eventually(lambda: len(answering(server.pid)) == 2)
        yield server


def answering(parent: int) -> list[psutil.Process]:
    """The processes that answer; multiprocessing's own helper is none of them."""
    found = [one for one in psutil.Process(parent).children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in found if "spawn_main" in " ".join(one.cmdline())]


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.1)


def counted(port: int) -> float:
    """Answers of /catalogue, by what /metrics says."""
    told = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    found = re.findall(r'^expunge_http_requests_total\{.*route="/catalogue".*\} (\S+)$', told, re.M)
    return sum(map(float, found))


def ask(url: str, times: int) -> None:
    """Each over a connection of its own: whichever process is free takes it."""
    for _ in range(times):
        assert httpx2.get(f"{url}/catalogue").status_code == 200


def test_what_all_processes_answered_is_one_count_that_outlives_each_of_them(two: Served, metrics_port: int) -> None:
    ask(two.url, 20)
    assert counted(metrics_port) == 20
    killed = answering(two.pid)[0]
    killed.kill()
    eventually(lambda: len({one.pid for one in answering(two.pid)} - {killed.pid}) == 2)
    eventually(lambda: httpx2.get(f"{two.url}/healthz").status_code == 200)
    ask(two.url, 5)
    assert counted(metrics_port) == 25


def test_sigterm_ends_every_process_though_streams_are_open(two: Served) -> None:
    children, parent = answering(two.pid), psutil.Process(two.pid)
    with httpx2.stream("GET", f"{two.url}/events", headers={"Accept": "text/event-stream"}, timeout=SECONDS) as stream:
        assert stream.status_code == 200
        parent.send_signal(signal.SIGTERM)
        gone, alive = psutil.wait_procs([parent, *children], timeout=20)
    assert not alive
    assert [one.returncode for one in gone if one.pid == parent.pid] in ([0], [None])


def test_no_process_outlives_the_one_that_started_it(two: Served) -> None:
    children = answering(two.pid)
    psutil.Process(two.pid).kill()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_several_processes_are_refused_on_sqlite() -> None:
    with pytest.raises(serving.OneProcess, match="api_workers above 1 needs PostgreSQL"):
        serving.run(Settings(api_workers=2, database_url=SecretStr("sqlite:///x.db")))
