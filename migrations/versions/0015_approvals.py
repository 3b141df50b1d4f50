"""Approvals: a request that needs them waits in `pending_approval`, and the database counts them before it may be queued.

The status CHECK on SQLite is edited in place, as in revision 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

MOVES = {
    "pending_approval": ("queued", "rejected", "cancelled"),
    "queued": ("running", "paused", "pending_approval", "cancelled", "failed"),
    "running": ("succeeded", "failed", "queued", "pausing", "cancelling", "cancelled"),
    "pausing": ("paused", "succeeded", "failed", "cancelling", "cancelled"),
    "paused": ("queued", "pending_approval", "cancelled"),
    "cancelling": ("cancelled",),
}
"""The lifecycle as it was when this revision was written; a test holds it against the code's."""
TERMINAL = ("succeeded", "failed", "cancelled", "rejected")
STATUSES = (
    "pending_approval", "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled", "rejected",
)  # fmt: skip
EARLIER_STATUSES = ("queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")
ERASABLE = ("reason", "external_id", "metadata", "version")
"""What the shredding of its private data may still change of a request that has ended."""
SHREDDED = (
    "EXISTS (SELECT 1 FROM ledger_entry AS e JOIN ledger_private AS p ON p.log_id = e.log_id AND p.seq = e.seq "
    "WHERE e.request_id = OLD.id AND p.shredded_at IS NOT NULL "
    "AND (e.request_ordinal = 0 OR e.action = 'unlearning.request.amended'))"
)
UNAPPROVED = (
    "NEW.status = 'queued' AND OLD.status <> 'queued' AND NEW.approvals_required > 0 "
    "AND NOT EXISTS (SELECT 1 FROM request_approval AS a WHERE a.request_id = NEW.id AND a.decision = 'approved' "
    "GROUP BY a.request_digest HAVING count(DISTINCT a.approver) >= NEW.approvals_required)"
)
NOT_PENDING = "NEW.approvals_required > 0 AND NEW.status <> 'pending_approval'"
OWN = (
    "NEW.decision = 'approved' AND EXISTS (SELECT 1 FROM unlearn_request AS r "
    "LEFT JOIN api_key AS k ON k.id = r.created_key_id LEFT JOIN principal AS p ON p.id = k.principal_id "
    "WHERE r.id = NEW.request_id "
    "AND (r.created_by = NEW.approver OR (p.kind = 'service' AND k.created_by = NEW.approver)))"
)
NOT_WAITING = "NOT EXISTS (SELECT 1 FROM unlearn_request AS r WHERE r.id = NEW.request_id AND r.status = 'pending_approval')"
KEPT = ("request_id", "approver", "request_digest", "decision", "key_id", "at")
SAID = {
    "unapproved": "a request is queued once enough others have approved it",
    "not_pending": "a request that needs approval begins as pending_approval",
    "requirement": "how many must approve is fixed when a request is made",
    "own": "nobody approves their own request",
    "not_waiting": "only a request that waits for approval is decided about",
    "append_only": "request_approval is append-only",
}


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{v}'" for v in values)


def _illegal_move() -> str:
    legal = " OR ".join(f"(OLD.status = '{a}' AND NEW.status IN ({_quoted(b)}))" for a, b in MOVES.items())
    return f"NEW.status <> OLD.status AND NOT ({legal})"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    (_allow_statuses_sqlite if sqlite else _allow_statuses_postgresql)()
    required = "INTEGER DEFAULT 0 NOT NULL CONSTRAINT ck_unlearn_request_approvals CHECK (approvals_required BETWEEN 0 AND 9)"
    op.execute(f"ALTER TABLE unlearn_request ADD COLUMN approvals_required {required}")
    made_with = sa.Column("created_key_id", sa.String(64), nullable=True, comment="the API key that it was made with")
    op.add_column("unlearn_request", made_with)
    more = "INTEGER DEFAULT 0 NOT NULL CONSTRAINT ck_project_approvals CHECK (approvals BETWEEN 0 AND 9)"
    op.execute(f"ALTER TABLE project ADD COLUMN approvals {more}")
    op.create_table(
        "request_approval",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("approver", sa.String(200), nullable=False),
        sa.Column("request_digest", sa.String(64), nullable=False, comment="what was decided about"),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True, comment="a copy of what the ledger holds sealed"),
        sa.Column("key_id", sa.String(64), nullable=True, comment="the API key that it was decided with"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("decision IN ('approved', 'rejected')", name=op.f("ck_request_approval_decision")),
        sa.ForeignKeyConstraint(["request_id"], ["unlearn_request.id"], name=op.f("fk_request_approval_request_id")),
        sa.PrimaryKeyConstraint("request_id", "approver", "request_digest", name=op.f("pk_request_approval")),
    )
    (_guard_sqlite if sqlite else _guard_postgresql)()


def _allow_statuses_sqlite() -> None:
    earlier, later = f"status IN ({_quoted(EARLIER_STATUSES)})", f"status IN ({_quoted(STATUSES)})"
    bind = op.get_bind()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    edited = bind.exec_driver_sql(
        "UPDATE sqlite_schema SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = 'unlearn_request' AND instr(sql, ?)",
        (f"CHECK ({earlier})", f"CHECK ({later})", f"CHECK ({earlier})"),
    )
    if edited.rowcount != 1:
        raise RuntimeError("the constraint on unlearn_request.status is not the one that revision 0012 made")
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
    op.execute("DROP TRIGGER unlearn_request_moves")
    op.execute("DROP TRIGGER unlearn_request_terminal")
    kept = " AND ".join(f"NEW.{column} IS OLD.{column}" for column in KEPT)
    for name, when, message in (  # the last one made is asked first
        ("unlearn_request_moves", f"UPDATE ON unlearn_request WHEN {_illegal_move()}", "illegal change of status"),
        ("unlearn_request_approved", f"UPDATE ON unlearn_request WHEN {UNAPPROVED}", SAID["unapproved"]),
        ("unlearn_request_waits", f"INSERT ON unlearn_request WHEN {NOT_PENDING}", SAID["not_pending"]),
        (
            "unlearn_request_requirement",
            "UPDATE ON unlearn_request WHEN NEW.approvals_required IS NOT OLD.approvals_required "
            "OR NEW.created_by IS NOT OLD.created_by OR NEW.created_key_id IS NOT OLD.created_key_id",
            SAID["requirement"],
        ),
        (
            "unlearn_request_terminal",
            f"UPDATE ON unlearn_request WHEN OLD.status IN ({_quoted(TERMINAL)}) AND NOT ({erasure})",
            "a terminal request never changes",
        ),
        ("request_approval_waiting", f"INSERT ON request_approval WHEN {NOT_WAITING}", SAID["not_waiting"]),
        ("request_approval_own", f"INSERT ON request_approval WHEN {OWN}", SAID["own"]),
        (
            "request_approval_no_update",
            f"UPDATE ON request_approval WHEN NOT ({kept} AND NEW.comment IS NULL)",
            SAID["append_only"],
        ),
        ("request_approval_no_delete", "DELETE ON request_approval", SAID["append_only"]),
    ):
        op.execute(f"CREATE TRIGGER {name} BEFORE {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def _function(name: str, body: str, *, replace: bool = False) -> None:
    op.execute(
        sa.text(
            f"CREATE {'OR REPLACE ' if replace else ''}FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ {body.replace(':', chr(92) + ':')} $$"
        )
    )


def _guard_postgresql() -> None:
    names = f"ARRAY[{_quoted(ERASABLE)}]"
    lifecycle = f"""
BEGIN
  IF OLD.status IN ({_quoted(TERMINAL)}) THEN
    IF NEW.reason IS NULL AND NEW.external_id IS NULL AND NEW.metadata::text = '{{}}' AND NEW.version = OLD.version + 1
       AND to_jsonb(NEW) - {names} = to_jsonb(OLD) - {names} AND {SHREDDED} THEN RETURN NEW; END IF;
    RAISE EXCEPTION 'a terminal request never changes';
  END IF;
  IF NEW.approvals_required <> OLD.approvals_required OR NEW.created_by <> OLD.created_by
     OR NEW.created_key_id IS DISTINCT FROM OLD.created_key_id THEN RAISE EXCEPTION '{SAID["requirement"]}'; END IF;
  IF {_illegal_move()} THEN RAISE EXCEPTION 'illegal change of status'; END IF;
  IF {UNAPPROVED} THEN RAISE EXCEPTION '{SAID["unapproved"]}'; END IF;
  RETURN NEW;
END
"""
    waits = f"BEGIN IF {NOT_PENDING} THEN RAISE EXCEPTION '{SAID['not_pending']}'; END IF; RETURN NEW; END"
    decided = f"""
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF {NOT_WAITING} THEN RAISE EXCEPTION '{SAID["not_waiting"]}'; END IF;
    IF {OWN} THEN RAISE EXCEPTION '{SAID["own"]}'; END IF;
    RETURN NEW;
  END IF;
  IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'comment' = to_jsonb(OLD) - 'comment' AND NEW.comment IS NULL THEN
    RETURN NEW;
  END IF;
  RAISE EXCEPTION '{SAID["append_only"]}';
END
"""
    _function("expunge_lifecycle", lifecycle, replace=True)
    _function("expunge_request_waits", waits)
    _function("expunge_request_approval", decided)
    op.execute(
        "CREATE TRIGGER unlearn_request_waits BEFORE INSERT ON unlearn_request FOR EACH ROW "
        "EXECUTE FUNCTION expunge_request_waits()"
    )
    op.execute(
        "CREATE TRIGGER request_approval_guard BEFORE INSERT OR UPDATE OR DELETE ON request_approval FOR EACH ROW "
        "EXECUTE FUNCTION expunge_request_approval()"
    )


def downgrade() -> None:
    raise RuntimeError("who approved what was asked for is kept: dropping it is not a migration")
