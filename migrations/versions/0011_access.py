"""Projects, principals and API keys; every dataset, model and request belongs to a project, for good.

What is there already belongs to the project `default`. The columns are added in place, without a reference to the project:
SQLite adds no column that has both, and rebuilding a table would drop its triggers. No project is ever deleted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

OWNED = ("dataset", "model", "unlearn_request")
KEPT = ("project", "principal", "api_key")


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.execute("INSERT INTO project (id, created_at, created_by) VALUES ('default', CURRENT_TIMESTAMP, 'service:migration')")
    _principals()
    _keys()
    for table in OWNED:
        op.add_column(table, sa.Column("project_id", sa.String(64), nullable=False, server_default=sa.text("'default'")))
        op.create_index(f"ix_{table}_project", table, ["project_id", "created_at"])
    (_guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgresql)()


def _principals() -> None:
    op.create_table(
        "principal",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False, comment="of API keys; a token brings its own"),
        sa.Column("issuer", sa.String(200), nullable=True),
        sa.Column("subject", sa.String(255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("deactivated_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('user', 'service')", name=op.f("ck_principal_kind")),
        sa.CheckConstraint("(issuer IS NULL) = (subject IS NULL)", name=op.f("ck_principal_subject")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_principal_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_principal")),
        sa.UniqueConstraint("project_id", "issuer", "subject", name=op.f("uq_principal_project_id")),
    )
    op.create_index("ix_principal_project", "principal", ["project_id", "created_at"])


def _keys() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("principal_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True, comment="to the minute"),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_api_key_principal_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    op.create_index("ix_api_key_principal", "api_key", ["principal_id", "created_at"])


def _guard_sqlite() -> None:
    for table in OWNED:
        op.execute(
            f"CREATE TRIGGER {table}_project_stays BEFORE UPDATE OF project_id ON {table} "
            "WHEN OLD.project_id IS NOT NEW.project_id BEGIN SELECT RAISE(ABORT, 'a row stays in its project'); END"
        )
    for table in KEPT:
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} rows are switched off, never deleted'); END"
        )


def _guard_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION expunge_access_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION '%: % is not allowed', TG_TABLE_NAME, TG_ARGV[0]; END $$"
    )
    for table in OWNED:
        op.execute(
            f"CREATE TRIGGER {table}_project_stays BEFORE UPDATE OF project_id ON {table} FOR EACH ROW "
            "WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id) "
            "EXECUTE FUNCTION expunge_access_guard('moving a row to another project')"
        )
    for table in KEPT:
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} FOR EACH ROW "
            "EXECUTE FUNCTION expunge_access_guard('deleting')"
        )


def downgrade() -> None:
    raise RuntimeError("which project a row belongs to is in the ledger: dropping it is not a migration")
