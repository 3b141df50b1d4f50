"""The first schema: registry, requests, results, ledger, and the guards that the database itself enforces."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOVES = {
    "queued": ("running", "cancelled", "failed"),
    "running": ("succeeded", "failed", "queued", "cancelling", "cancelled"),
    "cancelling": ("cancelled",),
}
"""The lifecycle as it was when this revision was written; a test holds it against the code's."""
TERMINAL = ("succeeded", "failed", "cancelled")
KEYS = {
    "ledger_entry": ("log_id", "seq"),
    "ledger_head": ("log_id",),
    "checkpoint": ("id",),
    "checkpoint_file": ("checkpoint_id", "path"),
    "unlearn_request": ("id",),
}
APPEND_ONLY = ("ledger_entry", "checkpoint", "checkpoint_file")


def upgrade() -> None:
    op.create_table(
        "dataset",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("format", sa.String(length=32), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("held_out_ids", sa.JSON(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
    )
    op.create_table(
        "ledger_entry",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("request_ordinal", sa.Integer(), nullable=True),
        sa.Column("model_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint("seq >= 0", name=op.f("ck_ledger_entry_seq")),
        sa.PrimaryKeyConstraint("log_id", "seq", name=op.f("pk_ledger_entry")),
        sa.UniqueConstraint("log_id", "request_id", "request_ordinal", name=op.f("uq_ledger_entry_log_id")),
    )
    op.create_index("ix_ledger_entry_action", "ledger_entry", ["action", "seq"], unique=False)
    op.create_index("ix_ledger_entry_actor", "ledger_entry", ["actor", "seq"], unique=False)
    op.create_index("ix_ledger_entry_at", "ledger_entry", ["at", "seq"], unique=False)
    op.create_index("ix_ledger_entry_model", "ledger_entry", ["model_id", "seq"], unique=False)
    op.create_index("ix_ledger_entry_request", "ledger_entry", ["request_id", "seq"], unique=False)

    op.create_table(
        "ledger_head",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("log_id", name=op.f("pk_ledger_head")),
    )
    op.create_table(
        "ledger_private",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("shredded_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("log_id", "seq", name=op.f("pk_ledger_private")),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("class_names", sa.JSON(), nullable=False),
        sa.Column("current_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_model_dataset_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
    )
    op.create_table(
        "model_version",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("checkpoint_id", sa.String(length=64), nullable=True),
        sa.Column("location", sa.Text(), nullable=True, comment="of a registered version; a published one is in the store"),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("forgotten_classes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_model_version_model_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["model_version.id"], name=op.f("fk_model_version_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_model_version_model_id")),
    )
    op.create_table(
        "unlearn_request",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("forget_classes", sa.JSON(), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("ranks", sa.Integer(), nullable=True),
        sa.Column("on_conflict", sa.String(length=16), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("external_id", sa.String(length=200), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False, comment="raised by every change of state"),
        sa.Column("fence", sa.BigInteger(), nullable=False, comment="raised by every claim and every lost lease"),
        sa.Column(
            "attempts_charged",
            sa.Integer(),
            nullable=False,
            comment="counted before work starts; a drained one is given back",
        ),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("base_version_id", sa.String(length=64), nullable=True),
        sa.Column("checkpoint_id", sa.String(length=64), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("progress_completed", sa.Integer(), nullable=True),
        sa.Column("progress_total", sa.Integer(), nullable=True),
        sa.Column("progress_unit", sa.String(length=32), nullable=True),
        sa.Column("estimated_remaining_seconds", sa.Double(), nullable=True),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "phase IS NULL OR phase IN ('staging', 'unlearning', 'verifying', 'certifying', 'publishing')",
            name=op.f("ck_unlearn_request_phase"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_unlearn_request_status"),
        ),
        sa.ForeignKeyConstraint(["base_version_id"], ["model_version.id"], name=op.f("fk_unlearn_request_base_version_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_unlearn_request_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unlearn_request")),
    )
    op.create_index("ix_unlearn_request_due", "unlearn_request", ["status", "not_before", "created_at"], unique=False)
    op.create_index("ix_unlearn_request_model", "unlearn_request", ["model_id", "status"], unique=False)
    op.create_index(
        "uq_unlearn_request_one_at_a_time",
        "unlearn_request",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text("status IN ('running', 'cancelling')"),
        postgresql_where=sa.text("status IN ('running', 'cancelling')"),
    )

    op.create_table(
        "attempt",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True, comment="succeeded failed cancelled drained lost"),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=True, comment="worker.contract.Report, kept pass or fail"),
        sa.Column("evidence", sa.JSON(), nullable=True, comment="pictures of the report: path, size, sha256 in the store"),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_attempt_request_id")),
        sa.PrimaryKeyConstraint("request_id", "fence", name=op.f("pk_attempt")),
    )
    op.create_table(
        "checkpoint",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=64), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("certificate", sa.JSON(), nullable=False, comment="DSSE envelope"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_checkpoint_model_id")),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_checkpoint_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("request_id", name=op.f("uq_checkpoint_request_id")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_idempotency_key_request_id")),
        sa.PrimaryKeyConstraint("tenant", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_table(
        "request_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_request_event_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_event")),
    )
    op.create_index("ix_request_event_request", "request_event", ["request_id", "id"], unique=False)

    op.create_table(
        "checkpoint_file",
        sa.Column("checkpoint_id", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_checkpoint_file_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "path", name=op.f("pk_checkpoint_file")),
    )
    op.execute("INSERT INTO ledger_head (log_id, size) VALUES (1, 0)")
    if op.get_bind().dialect.name == "sqlite":
        _guard_sqlite()
    else:
        _guard_postgresql()


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{v}'" for v in values)


def _illegal_move() -> str:
    legal = " OR ".join(f"(OLD.status = '{a}' AND NEW.status IN ({_quoted(b)}))" for a, b in MOVES.items())
    return f"NEW.status <> OLD.status AND NOT ({legal})"


def _guard_sqlite() -> None:
    def refuse(name: str, when: str, message: str) -> None:
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")

    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            refuse(f"{table}_no_{verb.lower()}", f"BEFORE {verb} ON {table}", f"{table} is append-only")
    refuse(
        "ledger_entry_in_order",  # closes INSERT OR REPLACE, back-dated inserts and gaps
        "BEFORE INSERT ON ledger_entry WHEN NEW.seq IS NOT (SELECT size FROM ledger_head WHERE log_id = NEW.log_id)",
        "ledger_entry takes the next sequence number only",
    )
    # INSERT OR REPLACE deletes without firing DELETE triggers unless the writer's own connection asks for it: refuse the insert
    for table, key in KEYS.items():
        same = " AND ".join(f"{column} IS NEW.{column}" for column in key)
        refuse(
            f"{table}_no_replace",
            f"BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})",  # noqa: S608 — names of our own
            f"{table} rows are not replaced",
        )
    refuse("ledger_head_no_delete", "BEFORE DELETE ON ledger_head", "ledger_head is permanent")
    refuse(
        "ledger_head_forward",
        "BEFORE UPDATE ON ledger_head WHEN NEW.size IS NOT OLD.size + 1 OR NEW.log_id IS NOT OLD.log_id "
        "OR NOT EXISTS (SELECT 1 FROM ledger_entry WHERE log_id = OLD.log_id AND seq = OLD.size)",
        "ledger_head moves one forward, with its entry",
    )
    refuse("unlearn_request_no_delete", "BEFORE DELETE ON unlearn_request", "requests are kept")
    refuse(
        "unlearn_request_terminal",
        f"BEFORE UPDATE ON unlearn_request WHEN OLD.status IN ({_quoted(TERMINAL)})",
        "a terminal request never changes",
    )
    refuse(
        "unlearn_request_moves",
        f"BEFORE UPDATE ON unlearn_request WHEN {_illegal_move()}",
        "illegal change of status",
    )


def _guard_postgresql() -> None:
    def function(name: str, body: str) -> None:
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public AS "
            f"$$ BEGIN {body} END $$"
        )

    def trigger(name: str, table: str, when: str, call: str, level: str = "ROW") -> None:
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH {level} EXECUTE FUNCTION {call}()")
        # ALWAYS: also under session_replication_role = replica
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")

    function("expunge_refuse", "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;")
    for table in (*APPEND_ONLY, "unlearn_request"):
        trigger(f"{table}_no_delete", table, "BEFORE DELETE", "expunge_refuse")
        trigger(f"{table}_no_truncate", table, "BEFORE TRUNCATE", "expunge_refuse", "STATEMENT")
    for table in APPEND_ONLY:
        trigger(f"{table}_no_update", table, "BEFORE UPDATE", "expunge_refuse")
    trigger("ledger_head_no_delete", "ledger_head", "BEFORE DELETE", "expunge_refuse")
    trigger("ledger_head_no_truncate", "ledger_head", "BEFORE TRUNCATE", "expunge_refuse", "STATEMENT")
    function(
        "expunge_ledger_in_order",
        "IF NEW.seq IS DISTINCT FROM (SELECT size FROM ledger_head WHERE log_id = NEW.log_id) THEN "
        "RAISE EXCEPTION 'ledger_entry takes the next sequence number only'; END IF; "
        "IF NEW.leaf_hash <> sha256('\\x00'::bytea || NEW.leaf) THEN "
        "RAISE EXCEPTION 'leaf_hash is not the hash of leaf'; END IF; RETURN NEW;",
    )
    trigger("ledger_entry_in_order", "ledger_entry", "BEFORE INSERT", "expunge_ledger_in_order")
    function(
        "expunge_ledger_forward",
        "IF NEW.size IS DISTINCT FROM OLD.size + 1 OR NEW.log_id <> OLD.log_id OR NOT EXISTS "
        "(SELECT 1 FROM ledger_entry WHERE log_id = OLD.log_id AND seq = OLD.size) THEN "
        "RAISE EXCEPTION 'ledger_head moves one forward'; END IF; RETURN NEW;",
    )
    trigger("ledger_head_forward", "ledger_head", "BEFORE UPDATE", "expunge_ledger_forward")
    function(
        "expunge_lifecycle",
        f"IF OLD.status IN ({_quoted(TERMINAL)}) THEN RAISE EXCEPTION 'a terminal request never changes'; END IF; "
        f"IF {_illegal_move()} THEN RAISE EXCEPTION 'illegal change of status'; END IF; RETURN NEW;",
    )
    trigger("unlearn_request_moves", "unlearn_request", "BEFORE UPDATE", "expunge_lifecycle")


def downgrade() -> None:
    raise RuntimeError("the first schema holds the audit ledger: dropping it is not a migration")
