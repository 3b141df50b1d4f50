"""What the service deletes, its own login may delete: workers that are gone, and webhooks.

Their tables came after `expunge_app` had been given what it may do, which was to delete nothing. A worker that logged in as a
member of it never finished a sweep. The ledger's tables stay as they were.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

TABLES = "worker, webhook_endpoint, webhook_delivery"
ROLE = "expunge_app"


def upgrade() -> None:
    if _has_the_role():
        op.execute(f"GRANT DELETE ON {TABLES} TO {ROLE}")


def downgrade() -> None:
    if _has_the_role():
        op.execute(f"REVOKE DELETE ON {TABLES} FROM {ROLE}")


def _has_the_role() -> bool:
    """Roles are PostgreSQL's, and its operator may not have made this one (revision 0004)."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        return False
    return connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": ROLE}).first() is not None
