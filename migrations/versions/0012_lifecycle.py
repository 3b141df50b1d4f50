"""Pausing, priorities, GPU classes, superseding requests, and the workers that are there.

SQLite cannot change a CHECK constraint, and rebuilding the table would drop its triggers and break what refers to it. The text
of the schema is edited in place instead, as SQLite's own page on ALTER TABLE has it for changes that touch no stored byte
("Making Other Kinds Of Table Schema Changes").
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

MOVES = {
    "queued": ("running", "paused", "cancelled", "failed"),
    "running": ("succeeded", "failed", "queued", "pausing", "cancelling", "cancelled"),
    "pausing": ("paused", "succeeded", "failed", "cancelling", "cancelled"),
    "paused": ("queued", "cancelled"),
    "cancelling": ("cancelled",),
}
"""The lifecycle as it was when this revision was written; a test holds it against the code's."""
TERMINAL = ("succeeded", "failed", "cancelled")
STATUSES = ("queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")
EARLIER_STATUSES = ("queued", "running", "cancelling", "succeeded", "failed", "cancelled")
HOLDS_LINEAGE = ("running", "pausing", "cancelling")
PRIORITIES = ("urgent", "standard", "bulk")
ERASABLE = ("reason", "external_id", "metadata", "version")
"""What the shredding of its private data may still change of a request that has ended."""
SHREDDED = (
    "EXISTS (SELECT 1 FROM ledger_entry AS e JOIN ledger_private AS p ON p.log_id = e.log_id AND p.seq = e.seq "
    "WHERE e.request_id = OLD.id AND p.shredded_at IS NOT NULL "
    "AND (e.request_ordinal = 0 OR e.action = 'unlearning.request.amended'))"
)


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{v}'" for v in values)


def _illegal_move() -> str:
    legal = " OR ".join(f"(OLD.status = '{a}' AND NEW.status IN ({_quoted(b)}))" for a, b in MOVES.items())
    return f"NEW.status <> OLD.status AND NOT ({legal})"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    (_allow_statuses_sqlite if sqlite else _allow_statuses_postgresql)()
    _columns()
    op.drop_index("uq_unlearn_request_one_at_a_time", table_name="unlearn_request")
    held = sa.text(f"status IN ({_quoted(HOLDS_LINEAGE)})")
    op.create_index(
        "uq_unlearn_request_one_at_a_time",
        "unlearn_request",
        ["model_id"],
        unique=True,
        sqlite_where=held,
        postgresql_where=held,
    )
    op.create_index("uq_unlearn_request_supersedes", "unlearn_request", ["supersedes"], unique=True)
    op.create_table(
        "worker",
        sa.Column("id", sa.String(32), nullable=False, comment="digest of the lease owner's name"),
        sa.Column("host", sa.String(32), nullable=False, comment="digest of the host's name"),
        sa.Column("gpu_classes", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=True, comment="what it is at work on"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False, comment="its last word to the database"),
        sa.CheckConstraint("state IN ('active', 'draining')", name=op.f("ck_worker_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    (_guard_sqlite if sqlite else _guard_postgresql)()


def _columns() -> None:
    """Each in place, with its constraints: the same words on both databases."""
    for column in (
        f"priority VARCHAR(16) DEFAULT 'standard' NOT NULL "
        f"CONSTRAINT ck_unlearn_request_priority CHECK (priority IN ({_quoted(PRIORITIES)}))",
        "gpu_class VARCHAR(32) DEFAULT 'default' NOT NULL",
        "supersedes VARCHAR(64) CONSTRAINT fk_unlearn_request_supersedes REFERENCES unlearn_request (id)",
    ):
        op.execute(f"ALTER TABLE unlearn_request ADD COLUMN {column}")
    for added in (
        sa.Column("expected_run_seconds", sa.Double(), nullable=True),
        sa.Column("latest_start_at", sa.DateTime(timezone=True), nullable=True, comment="null: no law's clock runs"),
    ):
        op.add_column("unlearn_request", added)


def _allow_statuses_sqlite() -> None:
    earlier, later = f"status IN ({_quoted(EARLIER_STATUSES)})", f"status IN ({_quoted(STATUSES)})"
    bind = op.get_bind()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    edited = bind.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'unlearn_request' AND instr(sql, ?)",
        (f"CHECK ({earlier})", f"CHECK ({later})", f"CHECK ({earlier})"),
    )
    if edited.rowcount != 1:
        raise RuntimeError("the constraint on unlearn_request.status is not the one that revision 0001 made")
    bind.exec_driver_sql("PRAGMA writable_schema = RESET")  # the schema is read again


def _allow_statuses_postgresql() -> None:
    name = op.f("ck_unlearn_request_status")
    op.drop_constraint(name, "unlearn_request", type_="check")
    op.create_check_constraint(name, "unlearn_request", f"status IN ({_quoted(STATUSES)})")


# -------------------------------------------------------------------------------------------------------------- SQLite


def _guard_sqlite() -> None:
    columns = [row[1] for row in op.get_bind().exec_driver_sql("PRAGMA table_info(unlearn_request)")]
    same = " AND ".join(f"NEW.{column} IS OLD.{column}" for column in columns if column not in ERASABLE)
    erasure = (
        f"{same} AND NEW.reason IS NULL AND NEW.external_id IS NULL AND NEW.metadata = '{{}}' "
        f"AND NEW.version = OLD.version + 1 AND {SHREDDED}"
    )
    for name, when, message in (  # the last one made is asked first
        ("moves", _illegal_move(), "illegal change of status"),
        ("terminal", f"OLD.status IN ({_quoted(TERMINAL)}) AND NOT ({erasure})", "a terminal request never changes"),
    ):
        op.execute(f"DROP TRIGGER unlearn_request_{name}")
        op.execute(
            f"CREATE TRIGGER unlearn_request_{name} BEFORE UPDATE ON unlearn_request WHEN {when} "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def _guard_postgresql() -> None:
    names = f"ARRAY[{_quoted(ERASABLE)}]"
    body = f"""
BEGIN
  IF OLD.status IN ({_quoted(TERMINAL)}) THEN
    IF NEW.reason IS NULL AND NEW.external_id IS NULL AND NEW.metadata::text = '{{}}' AND NEW.version = OLD.version + 1
       AND to_jsonb(NEW) - {names} = to_jsonb(OLD) - {names} AND {SHREDDED} THEN RETURN NEW; END IF;
    RAISE EXCEPTION 'a terminal request never changes';
  END IF;
  IF {_illegal_move()} THEN RAISE EXCEPTION 'illegal change of status'; END IF;
  RETURN NEW;
END
"""
    op.execute(
        sa.text(
            "CREATE OR REPLACE FUNCTION expunge_lifecycle() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ {body.replace(':', chr(92) + ':')} $$"
        )
    )


def downgrade() -> None:
    raise RuntimeError("the new columns hold what was asked for: dropping them is not a migration")
