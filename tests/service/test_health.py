"""The probes."""

from __future__ import annotations

from fastapi.testclient import TestClient
from sqlalchemy import text

from service import db
from tests.support import code_of


def test_a_migrated_database_is_ready(client: TestClient) -> None:
    assert client.get("/readyz").status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}


def test_another_schema_is_not_ready(client: TestClient) -> None:
    with db.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    response = client.get("/readyz")
    assert (response.status_code, code_of(response)) == (503, "unavailable")
    assert client.get("/healthz").status_code == 200
