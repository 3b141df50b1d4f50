"""The migrations are the schema's truth, and the rows and the lifecycle agree with them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError

from service import db, migrate
from service.db import get_engine
from service.requests import lifecycle
from service.tables import Model, ModelVersion, Row, UnlearnRequest


def test_the_rows_are_the_migrated_schema(database: Any) -> None:
    with get_engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Row.metadata) == []


def test_the_database_enforces_the_same_lifecycle_as_the_code() -> None:
    migration = importlib.import_module("migrations.versions.0015_approvals")
    legal = {start: set(ends) for start, ends in lifecycle.MOVES.items() if ends}
    assert {start: set(ends) for start, ends in migration.MOVES.items()} == legal
    assert set(migration.TERMINAL) == lifecycle.TERMINAL


FIRST_ROWS = (
    "INSERT INTO dataset VALUES ('d', 'n', 'npz', '/x', '[\"a\", \"b\"]', '[]', '[]', 'd', :at, 'u')",
    "INSERT INTO model VALUES ('m', 'n', 'ddpm', 'd', '[\"a\", \"b\"]', 1, :at, 'u')",
    "INSERT INTO model_version VALUES ('v', 'm', 1, NULL, NULL, '/x', '[]', 'd', '[]', :at)",
    "INSERT INTO unlearn_request (id, model_id, forget_classes, method, params, seed, on_conflict, policy, metadata, status, "
    "version, fence, attempts_charged, not_before, created_at, created_by) VALUES "
    "('r', 'm', '[1]', 'sfron', '{}', 1, 'queue_after', '{}', '{}', 'succeeded', 1, 0, 0, :at, :at, 'u')",
)


def test_rows_of_the_first_schema_are_carried_over_with_their_guards(database: str) -> None:
    """A request that has ended cannot be updated, so the new columns must come without touching its row."""
    clear(database)
    command.upgrade(migrate._config(database), "0001")
    with db.transaction() as session:
        for statement in FIRST_ROWS:
            session.execute(text(statement), {"at": "2026-11-21 10:00:00"})
    migrate.upgrade()
    with db.reading() as session:
        assert session.scalars(select(UnlearnRequest.forget_samples)).one() == []
        assert session.scalars(select(UnlearnRequest.retain)).one() is None
        assert session.scalars(select(ModelVersion.forgotten_samples)).one() == []
        assert session.scalars(select(Model)).one().prompts is None
    for statement in ("UPDATE unlearn_request SET method = 'x'", "DELETE FROM unlearn_request"):
        with pytest.raises(DBAPIError), db.transaction() as session:
            session.execute(text(statement))


def clear(url: str) -> None:
    """Take everything out of a test's own database."""
    if "postgresql" in url:
        with get_engine().begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        return
    db.reset()
    path = make_url(url).database
    assert path
    Path(path).unlink()
