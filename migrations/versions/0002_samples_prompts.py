"""Single samples to forget, prompts of text-conditional models, and attempts that cannot be deleted.

Columns are added in place: rebuilding a table, as Alembic's batch mode does on SQLite, would drop its triggers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "model", sa.Column("prompts", sa.JSON(), nullable=True, comment="what a text-conditional model calls each class")
    )
    for table, column in (("unlearn_request", "forget_samples"), ("model_version", "forgotten_samples")):
        op.add_column(table, sa.Column(column, sa.JSON(), nullable=False, server_default=sa.text("'[]'")))
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _guard_sqlite() -> None:
    op.execute("CREATE TRIGGER attempt_no_delete BEFORE DELETE ON attempt BEGIN SELECT RAISE(ABORT, 'attempts are kept'); END")
    # INSERT OR REPLACE deletes without firing DELETE triggers unless the writer's own connection asks for it
    op.execute(
        "CREATE TRIGGER attempt_no_replace BEFORE INSERT ON attempt "
        "WHEN EXISTS (SELECT 1 FROM attempt WHERE request_id IS NEW.request_id AND fence IS NEW.fence) "
        "BEGIN SELECT RAISE(ABORT, 'attempts are kept'); END"
    )


def _guard_postgresql() -> None:
    for name, when, level in (("delete", "BEFORE DELETE", "ROW"), ("truncate", "BEFORE TRUNCATE", "STATEMENT")):
        trigger = f"attempt_no_{name}"
        op.execute(f"CREATE TRIGGER {trigger} {when} ON attempt FOR EACH {level} EXECUTE FUNCTION expunge_refuse()")
        # ALWAYS: also under session_replication_role = replica
        op.execute(f"ALTER TABLE attempt ENABLE ALWAYS TRIGGER {trigger}")


def downgrade() -> None:
    raise RuntimeError("the new columns hold what was forgotten: dropping them is not a migration")
