"""One secret for all hosts of a deployment. It is drawn once and never changes: verification seeds follow from it.

Nothing is drawn here: the first worker that needs it may bring the one that an earlier release kept on its host.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "shared_secret",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_shared_secret")),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER shared_secret_no_{verb.lower()} BEFORE {verb} ON shared_secret "
            "BEGIN SELECT RAISE(ABORT, 'secrets are kept'); END"
        )
    # INSERT OR REPLACE deletes without firing DELETE triggers unless the writer's own connection asks for it
    op.execute(
        "CREATE TRIGGER shared_secret_no_replace BEFORE INSERT ON shared_secret "
        "WHEN EXISTS (SELECT 1 FROM shared_secret WHERE name IS NEW.name) "
        "BEGIN SELECT RAISE(ABORT, 'secrets are kept'); END"
    )


def _guard_postgresql() -> None:
    for verb, level in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        trigger = f"shared_secret_no_{verb.lower()}"
        when = f"BEFORE {verb} ON shared_secret FOR EACH {level}"
        op.execute(f"CREATE TRIGGER {trigger} {when} EXECUTE FUNCTION expunge_refuse()")
        # ALWAYS: also under session_replication_role = replica
        op.execute(f"ALTER TABLE shared_secret ENABLE ALWAYS TRIGGER {trigger}")


def downgrade() -> None:
    raise RuntimeError("verification seeds follow from the secret: dropping it is not a migration")
