"""The retain data that a request chooses. Null for those made before: whatever was not to be forgotten.

The column is added in place: rebuilding the table, as Alembic's batch mode does on SQLite, would drop its triggers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "unlearn_request",
        sa.Column("retain", sa.JSON(), nullable=True, comment="requests.retain.Choice; null: all that is not to be forgotten"),
    )


def downgrade() -> None:
    raise RuntimeError("the new column holds what was asked for: dropping it is not a migration")
