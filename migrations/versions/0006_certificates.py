"""What lies beside a certificate, and what became of it: evidence, commitments, revocations, and what was done with the parent.

Evidence, decisions and dispositions are append-only. A revocation takes two people; the database itself refuses the same one
twice, but where the operator has said that one person is enough, which the row then says. The key of a commitment may be
erased, and nothing else of its row.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

APPEND_ONLY = {
    "checkpoint_evidence": ("checkpoint_id", "path"),
    "checkpoint_revocation": ("checkpoint_id", "step"),
    "version_disposition": ("version_id", "number"),
}
ERASED = "NEW.checkpoint_id IS NOT DISTINCT FROM OLD.checkpoint_id AND NEW.secret IS NULL"


def upgrade() -> None:
    op.create_table(
        "checkpoint_evidence",
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_checkpoint_evidence_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "path", name=op.f("pk_checkpoint_evidence")),
    )
    op.create_table(
        "forget_commitment",
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=True, comment="all salts follow from it; null: erased"),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_forget_commitment_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_forget_commitment")),
    )
    op.create_table(
        "checkpoint_revocation",
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("self_approved", sa.Boolean(), nullable=False),
        sa.CheckConstraint("step IN ('asked', 'approved')", name=op.f("ck_checkpoint_revocation_step")),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_checkpoint_revocation_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "step", name=op.f("pk_checkpoint_revocation")),
    )
    op.create_table(
        "version_disposition",
        sa.Column("version_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('withdrawn', 'quarantined', 'destroyed')", name=op.f("ck_version_disposition_state")),
        sa.ForeignKeyConstraint(["version_id"], ["model_version.id"], name=op.f("fk_version_disposition_version_id")),
        sa.PrimaryKeyConstraint("version_id", "number", name=op.f("pk_version_disposition")),
    )
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


FIRST = "EXISTS (SELECT 1 FROM checkpoint_revocation WHERE checkpoint_id = NEW.checkpoint_id AND step = 'asked' AND (\"by\" <> "
SECOND = FIRST + 'NEW."by" OR NEW.self_approved))'


def _guard_sqlite() -> None:
    def refuse(name: str, when: str, message: str) -> None:
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")

    for table, key in APPEND_ONLY.items():
        same = " AND ".join(f"{column} IS NEW.{column}" for column in key)
        refuse(f"{table}_no_update", f"BEFORE UPDATE ON {table}", f"{table} is append-only")
        refuse(f"{table}_no_delete", f"BEFORE DELETE ON {table}", f"{table} is append-only")
        refuse(
            f"{table}_no_replace",
            f"BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})",  # noqa: S608 — names of our own
            f"{table} rows are not replaced",
        )
    refuse(
        "checkpoint_revocation_two_people",
        f"BEFORE INSERT ON checkpoint_revocation WHEN NEW.step = 'approved' AND NOT {SECOND}",
        "a revocation takes two people",
    )
    erased = ERASED.replace("IS NOT DISTINCT FROM", "IS")
    refuse("forget_commitment_erase_only", f"BEFORE UPDATE ON forget_commitment WHEN NOT ({erased})", "a commitment is kept")
    refuse("forget_commitment_no_delete", "BEFORE DELETE ON forget_commitment", "a commitment is kept")
    refuse(
        "forget_commitment_no_replace",
        "BEFORE INSERT ON forget_commitment WHEN EXISTS "
        "(SELECT 1 FROM forget_commitment WHERE checkpoint_id IS NEW.checkpoint_id)",
        "a commitment is kept",
    )


def _guard_postgresql() -> None:
    def function(name: str, body: str) -> None:
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ BEGIN {body} END $$"
        )

    def trigger(name: str, table: str, when: str, call: str = "expunge_refuse", level: str = "ROW") -> None:
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH {level} EXECUTE FUNCTION {call}()")
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")

    for table in (*APPEND_ONLY, "forget_commitment"):
        trigger(f"{table}_no_delete", table, "BEFORE DELETE")
        trigger(f"{table}_no_truncate", table, "BEFORE TRUNCATE", level="STATEMENT")
    for table in APPEND_ONLY:
        trigger(f"{table}_no_update", table, "BEFORE UPDATE")
    function(
        "expunge_two_people",
        f"IF NEW.step = 'approved' AND NOT {SECOND} THEN RAISE EXCEPTION 'a revocation takes two people'; END IF; RETURN NEW;",
    )
    trigger("checkpoint_revocation_two_people", "checkpoint_revocation", "BEFORE INSERT", "expunge_two_people")
    function(
        "expunge_erase_only",
        f"IF NOT ({ERASED}) THEN RAISE EXCEPTION 'a commitment is kept'; END IF; RETURN NEW;",
    )
    trigger("forget_commitment_erase_only", "forget_commitment", "BEFORE UPDATE", "expunge_erase_only")


def downgrade() -> None:
    raise RuntimeError("evidence and decisions are kept: dropping them is not a migration")
