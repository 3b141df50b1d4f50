"""Indexes that the lists are read along: by their order, and by each filter and then their order."""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"

WIDENED = ("unlearn_request", "model", "dataset")
"""Their index by project ends with the id from here on, as the order of their lists does."""
NEW = (
    ("ix_unlearn_request_created", "unlearn_request", ["created_at", "id"]),
    ("ix_unlearn_request_status_created", "unlearn_request", ["status", "created_at", "id"]),
    ("ix_unlearn_request_model_created", "unlearn_request", ["model_id", "created_at", "id"]),
    ("ix_unlearn_request_external", "unlearn_request", ["external_id", "created_at", "id"]),
    ("ix_model_created", "model", ["created_at", "id"]),
    ("ix_dataset_created", "dataset", ["created_at", "id"]),
    ("ix_ledger_entry_tenant", "ledger_entry", ["tenant", "seq"]),
    ("ix_ledger_entry_outcome", "ledger_entry", ["outcome", "seq"]),
)


def upgrade() -> None:
    for table in WIDENED:
        op.drop_index(f"ix_{table}_project", table_name=table)
        op.create_index(f"ix_{table}_project", table, ["project_id", "created_at", "id"])
    for name, table, columns in NEW:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in reversed(NEW):
        op.drop_index(name, table_name=table)
    for table in WIDENED:
        op.drop_index(f"ix_{table}_project", table_name=table)
        op.create_index(f"ix_{table}_project", table, ["project_id", "created_at"])
