"""The login that the service works with, beside the one that migrates: as `docs/operations.md` makes them on PostgreSQL."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from service import db, migrate
from service.app import create_app
from service.tables import Row
from service.webhooks import deliveries
from service.workers import repository as workers
from tests.support import LOCAL_URL, ask, register

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
DELETED_FROM = {"worker", "webhook_endpoint", "webhook_delivery"}
HOST = workers.Sign(id="w", host="h", gpu_classes=("default",), state="active", request_id=None)


@pytest.fixture
def service_login(rules: None, postgresql_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a database that its owner migrated, for the service's own login; neither may do anything on the server."""
    mark = uuid.uuid4().hex[:8]
    owner, own, name = f"expunge_owner_{mark}", f"expunge_service_{mark}", f"expunge_{mark}"
    server = make_url(postgresql_server).set(drivername="postgresql+psycopg")
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    monkeypatch.setenv("EXPUNGE_DATA_DIR", str(tmp_path / "expunge"))
    with admin.connect() as connection:
        for statement in re.findall(r"^    (CREATE (?:ROLE|DATABASE) .*);$", OPERATIONS.read_text(), re.M):
            renamed = re.sub(r"DATABASE expunge\b", f"DATABASE {name}", statement)
            renamed = renamed.replace("expunge_owner", owner).replace("expunge_service", own)
            try:
                connection.execute(text(renamed))
            except ProgrammingError:
                assert "NOLOGIN" in statement  # of the whole server, and so another test's, too
    try:
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", server.set(database=name, username=owner).render_as_string(False))
        db.reset()
        migrate.upgrade()
        url = server.set(database=name, username=own).render_as_string(False)
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", url)
        db.reset()
        yield url
    finally:
        db.reset()
        with admin.connect() as connection:
            for statement in (f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {own}", f"DROP ROLE {owner}"):
                connection.execute(text(statement))
        admin.dispose()


def test_the_services_own_login_does_a_workers_rounds(service_login: str, tmp_path: Path) -> None:
    with TestClient(create_app(), base_url=LOCAL_URL) as client:
        assert client.get("/readyz").status_code == 200
        assert ask(client, register(client, tmp_path), 1).status_code == 202
    with db.transaction() as session:
        workers.touch(session, HOST)
        workers.leave(session, HOST.id)
        deliveries.prune(session)


def test_it_deletes_nothing_else_and_takes_no_guard_away(service_login: str) -> None:
    engine = create_engine(service_login)
    for table in sorted({*Row.metadata.tables} - DELETED_FROM):
        with pytest.raises(DBAPIError, match="permission denied"), engine.begin() as connection:
            connection.execute(text(f"DELETE FROM {table}"))
    for table in sorted(DELETED_FROM):
        with engine.begin() as connection:
            connection.execute(text(f"DELETE FROM {table}"))
    with pytest.raises(DBAPIError, match="must be owner"), engine.begin() as connection:
        connection.execute(text("ALTER TABLE ledger_entry DISABLE TRIGGER ALL"))
    engine.dispose()
