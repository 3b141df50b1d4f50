"""Private payloads that can be shredded, redactions that two people decide, and the law's side of a request.

Columns are added in place: rebuilding a table, as Alembic's batch mode does on SQLite, would drop its triggers. The guards say
what may still change: a private row may lose its secrets, once and all of them; a request that has ended may lose what its
client said, once the entry that commits to it was shredded.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TERMINAL = "('succeeded', 'failed', 'cancelled')"
SECRETS = ("salt", "dek_wrapped", "ciphertext", "shredded_at")
FREE_PRIVATE = ("legal_hold", "retain_until", "kek_destroyed_at")
KEPT_PRIVATE = ("log_id", "seq", "kek_id", "class")
KEPT_REQUEST = (
    "id", "model_id", "forget_classes", "forget_samples", "retain", "method", "params", "seed", "ranks", "on_conflict",
    "policy", "status", "phase", "fence", "attempts_charged", "lease_owner", "lease_expires_at", "not_before",
    "cancel_requested_at", "base_version_id", "checkpoint_id", "error", "progress_completed", "progress_total",
    "progress_unit", "estimated_remaining_seconds", "progress_at", "created_at", "created_by", "started_at", "finished_at",
)  # fmt: skip
KEPT_REDACTION = ("id", "log_id", "seq", "ground", "four_eyes", "requested_by", "requested_at")
SHREDDED_REQUEST = (
    "EXISTS (SELECT 1 FROM ledger_entry AS e JOIN ledger_private AS p ON p.log_id = e.log_id AND p.seq = e.seq "
    "WHERE e.request_id = OLD.id AND e.request_ordinal = 0 AND p.shredded_at IS NOT NULL)"
)
NO_DELETE = {"ledger_private": ("log_id", "seq"), "ledger_redaction": ("id",)}


def upgrade() -> None:
    for column in (
        sa.Column("kek_id", sa.String(80), nullable=True, comment="null: of a release that kept the salt alone"),
        sa.Column("dek_wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=True),
        sa.Column("class", sa.String(32), nullable=False, server_default=sa.text("'request'")),
        sa.Column("retain_until", sa.DateTime(timezone=True), nullable=True, comment="null: the clock does not run yet"),
        sa.Column("legal_hold", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column(
            "kek_destroyed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the ledger said so; the deed follows",
        ),
    ):
        op.add_column("ledger_private", column)
    op.create_index("ix_ledger_private_kek_id", "ledger_private", ["kek_id"])
    _redactions()
    _compliance()
    (_guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgresql)()


def _redactions() -> None:
    op.create_table(
        "ledger_redaction",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("log_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("ground", sa.String(32), nullable=False),
        sa.Column("four_eyes", sa.String(8), nullable=False),
        sa.Column("requested_by", sa.String(200), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("approved_by", sa.String(200), nullable=True),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("four_eyes IN ('solo', 'two')", name=op.f("ck_ledger_redaction_four_eyes")),
        sa.CheckConstraint(
            "approved_by IS NULL OR four_eyes = 'solo' OR approved_by <> requested_by",
            name=op.f("ck_ledger_redaction_second_person"),
        ),
        sa.CheckConstraint("(approved_by IS NULL) = (approved_at IS NULL)", name=op.f("ck_ledger_redaction_approved")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_redaction")),
        sa.UniqueConstraint("log_id", "seq", name=op.f("uq_ledger_redaction_log_id")),
    )


def _compliance() -> None:
    told = "those who were told, or need not be: the entry says which"
    op.create_table(
        "request_compliance",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("jurisdiction", sa.String(16), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True, comment="null: no law's clock runs"),
        sa.Column("extended_at", sa.DateTime(timezone=True), nullable=True, comment="when the person was told of it"),
        sa.Column("extension_reason", sa.String(32), nullable=True),
        sa.Column(
            "extension_late",
            sa.Boolean(),
            nullable=False,
            server_default=sa.false(),
            comment="told after the first deadline: it moved nothing",
        ),
        sa.Column("ground", sa.String(32), nullable=True, comment="of the refusal"),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("recipients", sa.JSON(), nullable=False, comment="who was given the data"),
        sa.Column("recipients_told", sa.JSON(), nullable=False, comment=told),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_request_compliance_request_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_compliance")),
    )
    op.create_index("ix_request_compliance_due", "request_compliance", ["answered_at", "due_at"])


# -------------------------------------------------------------------------------------------------------------- SQLite


def _same(columns: tuple[str, ...]) -> str:
    return " AND ".join(f"NEW.{column} IS OLD.{column}" for column in columns)


SHRED_SQLITE = (
    f"{_same(KEPT_PRIVATE)} AND ({_same(SECRETS)} OR "
    "(OLD.shredded_at IS NULL AND NEW.shredded_at IS NOT NULL AND NOT OLD.legal_hold AND NOT NEW.legal_hold "
    "AND NEW.salt IS NULL AND NEW.dek_wrapped IS NULL AND NEW.ciphertext IS NULL))"
)
ERASURE_SQLITE = (
    f"{_same(KEPT_REQUEST)} AND NEW.reason IS NULL AND NEW.external_id IS NULL AND NEW.metadata = '{{}}' "
    f"AND NEW.version = OLD.version + 1 AND {SHREDDED_REQUEST}"
)


def _guard_sqlite() -> None:
    def refuse(name: str, when: str, message: str) -> None:
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")

    only = "a private row may only be shredded"
    refuse("ledger_private_shred_only", f"BEFORE UPDATE ON ledger_private WHEN NOT ({SHRED_SQLITE})", only)
    approval = f"{_same(KEPT_REDACTION)} AND OLD.approved_by IS NULL AND NEW.approved_by IS NOT NULL"
    refuse("ledger_redaction_approve_only", f"BEFORE UPDATE ON ledger_redaction WHEN NOT ({approval})", "only an approval")
    for table, key in NO_DELETE.items():
        refuse(f"{table}_no_delete", f"BEFORE DELETE ON {table}", f"{table} rows are kept")
        # INSERT OR REPLACE deletes without firing DELETE triggers unless the writer's own connection asks for it
        same = " AND ".join(f"{column} IS NEW.{column}" for column in key)
        there = f"BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 — names of our own
        refuse(f"{table}_no_replace", there, f"{table} rows are not replaced")
    op.execute("DROP TRIGGER unlearn_request_terminal")
    ended = f"BEFORE UPDATE ON unlearn_request WHEN OLD.status IN {TERMINAL} AND NOT ({ERASURE_SQLITE})"
    refuse("unlearn_request_terminal", ended, "a terminal request never changes")


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def _without(columns: tuple[str, ...]) -> str:
    names = "'{" + ",".join(columns) + "}'::text[]"
    return f"to_jsonb(NEW) - {names} = to_jsonb(OLD) - {names}"


SHRED_POSTGRESQL = f"""
BEGIN
  IF {_without(FREE_PRIVATE)} THEN RETURN NEW; END IF;
  IF OLD.shredded_at IS NULL AND NEW.shredded_at IS NOT NULL AND NOT OLD.legal_hold AND NOT NEW.legal_hold
     AND NEW.salt IS NULL AND NEW.dek_wrapped IS NULL AND NEW.ciphertext IS NULL
     AND {_without((*SECRETS, *FREE_PRIVATE))} THEN RETURN NEW; END IF;
  RAISE EXCEPTION 'a private row may only be shredded';
END
"""
APPROVE_POSTGRESQL = f"""
BEGIN
  IF OLD.approved_by IS NULL AND NEW.approved_by IS NOT NULL AND {_without(("approved_by", "approved_at"))} THEN
    RETURN NEW; END IF;
  RAISE EXCEPTION 'only an approval';
END
"""
LIFECYCLE_POSTGRESQL = """
BEGIN
  IF OLD.status IN {terminal} THEN
    IF NEW.reason IS NULL AND NEW.external_id IS NULL AND NEW.metadata::text = '{{}}' AND NEW.version = OLD.version + 1
       AND {same} AND {shredded} THEN RETURN NEW; END IF;
    RAISE EXCEPTION 'a terminal request never changes';
  END IF;
  IF {illegal} THEN RAISE EXCEPTION 'illegal change of status'; END IF;
  RETURN NEW;
END
"""
MOVES = {
    "queued": "('running', 'cancelled', 'failed')",
    "running": "('succeeded', 'failed', 'queued', 'cancelling', 'cancelled')",
    "cancelling": "('cancelled')",
}
"""As in revision 0001."""


def _guard_postgresql() -> None:
    def function(name: str, body: str) -> None:
        op.execute(
            sa.text(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
                f"SET search_path = pg_catalog, public, pg_temp AS $$ {body.replace(':', chr(92) + ':')} $$"
            )
        )

    def trigger(name: str, table: str, when: str, call: str, level: str = "ROW") -> None:
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH {level} EXECUTE FUNCTION {call}()")
        # ALWAYS: also under session_replication_role = replica
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")

    function("expunge_shred_only", SHRED_POSTGRESQL)
    trigger("ledger_private_shred_only", "ledger_private", "BEFORE UPDATE", "expunge_shred_only")
    function("expunge_approve_only", APPROVE_POSTGRESQL)
    trigger("ledger_redaction_approve_only", "ledger_redaction", "BEFORE UPDATE", "expunge_approve_only")
    for table in NO_DELETE:
        trigger(f"{table}_no_delete", table, "BEFORE DELETE", "expunge_refuse")
        trigger(f"{table}_no_truncate", table, "BEFORE TRUNCATE", "expunge_refuse", "STATEMENT")
    legal = " OR ".join(f"(OLD.status = '{a}' AND NEW.status IN {b})" for a, b in MOVES.items())
    body = LIFECYCLE_POSTGRESQL.format(
        terminal=TERMINAL,
        same=_without(("reason", "external_id", "metadata", "version")),
        shredded=SHREDDED_REQUEST,
        illegal=f"NEW.status <> OLD.status AND NOT ({legal})",
    )
    function("expunge_lifecycle", body)


def downgrade() -> None:
    raise RuntimeError("the new columns hold what the ledger committed to: dropping them is not a migration")
