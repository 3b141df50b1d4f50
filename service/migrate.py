"""Bring the database's schema up to date, and say whether it is."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from service.config import get_settings
from service.db import get_engine

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
ADVISORY_LOCK = 0x65787075  # "expu": two migration jobs started at once run one after the other


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(url: str | None = None) -> None:
    """Run every migration that has not run yet. Safe to repeat, and to run twice at once."""
    engine = get_engine()
    url = url or get_settings().database
    if engine.dialect.name == "sqlite":
        command.upgrade(_config(url), "head")  # BEGIN IMMEDIATE is the lock
        return
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = 0"))
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        try:
            command.upgrade(_config(url), "head")
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if revision is None:
        raise RuntimeError(f"no migrations in {MIGRATIONS}")
    return revision


def current() -> str | None:
    """The database's revision; None before the first migration."""
    with get_engine().connect().execution_options(read_only=True) as connection:
        return MigrationContext.configure(connection).get_current_revision()
