"""Alembic's environment: one connection, one transaction, on SQLite or PostgreSQL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from service.db import make_engine
from service.tables import Row

url = context.config.get_main_option("sqlalchemy.url")
if not url:
    raise SystemExit("no database: run `expunge migrate`, which knows it")

engine = make_engine(url)
with engine.connect() as connection:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET statement_timeout = 0"))  # a migration may take its time
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        transaction_per_migration=False,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
