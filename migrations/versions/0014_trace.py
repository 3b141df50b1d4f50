"""The trace that a request was made in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

GUARD = "unlearn_request_terminal"
ERASURE = "NEW.reason IS NULL AND NEW.external_id IS NULL"


def upgrade() -> None:
    op.add_column(
        "unlearn_request",
        sa.Column("traceparent", sa.String(55), nullable=True, comment="W3C Trace Context of the POST; null: not traced"),
    )
    if op.get_bind().dialect.name == "sqlite":  # PostgreSQL's guard compares whole rows
        _guard()


def _guard() -> None:
    """What an erasure may not change of an ended request is listed by column: this one joins the list."""
    asked = sa.text("SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = :name")
    guard = op.get_bind().execute(asked, {"name": GUARD}).scalar_one()
    if guard.count(ERASURE) != 1:
        raise RuntimeError(f"the trigger {GUARD} is not the one that earlier revisions made")
    op.execute(f"DROP TRIGGER {GUARD}")
    op.get_bind().exec_driver_sql(guard.replace(ERASURE, f"NEW.traceparent IS OLD.traceparent AND {ERASURE}"))


def downgrade() -> None:
    op.drop_column("unlearn_request", "traceparent")
