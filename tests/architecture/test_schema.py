"""The migrations are the schema's truth, and the rows and the lifecycle agree with them."""

from __future__ import annotations

import importlib
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from service.db import get_engine
from service.requests import lifecycle
from service.tables import Row


def test_the_rows_are_the_migrated_schema(database: Any) -> None:
    with get_engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Row.metadata) == []


def test_the_database_enforces_the_same_lifecycle_as_the_code() -> None:
    migration = importlib.import_module("migrations.versions.0001_first_schema")
    legal = {start: set(ends) for start, ends in lifecycle.MOVES.items() if ends}
    assert {start: set(ends) for start, ends in migration.MOVES.items()} == legal
    assert set(migration.TERMINAL) == lifecycle.TERMINAL
