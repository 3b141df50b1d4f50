"""The ledger as a Merkle tree: perfect subtrees, signed checkpoints, redaction; on PostgreSQL an append function and roles.

Nodes are written once and never changed, so they take the guards that entries have. `frontier` in the head is a cache of the
rightmost ones. On PostgreSQL the application's role may call `expunge_ledger_append` and may not write the tables; whoever
owns them can still switch triggers off, which is why the login of the service must not be the one that migrates.
"""

from __future__ import annotations

import hashlib
import logging

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

log = logging.getLogger("alembic.runtime.migration")

APPEND_ONLY = ("ledger_node", "ledger_checkpoint")
KEYS = {"ledger_node": ("log_id", "level", "idx"), "ledger_checkpoint": ("log_id", "size", "created_at")}
ROLES = {
    "expunge_app": "what the service and its workers log in as members of",
    "expunge_auditor": "may read the ledger and nothing else",
    "expunge_signer": "may read the ledger and store checkpoints",
}
LEDGER = ("ledger_head", "ledger_entry", "ledger_node", "ledger_checkpoint", "ledger_private")
REDACTED = "(leaf IS NULL) = (redacted_by IS NOT NULL)"
BATCH = 10_000
HEAD_CACHE = sa.Column(
    "frontier",
    sa.LargeBinary(),
    nullable=False,
    server_default=sa.text("''"),
    comment="cache: the perfect subtrees that the root is folded from",
)


def upgrade() -> None:
    op.create_table(
        "ledger_node",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("log_id", "level", "idx", name=op.f("pk_ledger_node")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_checkpoint",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text(), nullable=False, comment="C2SP checkpoint: text, signature of the log, cosignatures"),
        sa.Column("time_stamp", sa.LargeBinary(), nullable=True, comment="RFC 3161 token over the note"),
        sa.PrimaryKeyConstraint("log_id", "size", "created_at", name=op.f("pk_ledger_checkpoint")),
    )
    op.add_column("ledger_head", HEAD_CACHE)
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        _redactable_sqlite()
    else:
        op.alter_column("ledger_entry", "leaf", nullable=True)
        op.add_column("ledger_entry", sa.Column("redacted_by", sa.BigInteger(), nullable=True))
        op.create_check_constraint(
            op.f("ck_ledger_entry_redacted"), "ledger_entry", "(leaf IS NULL) = (redacted_by IS NOT NULL)"
        )
    _grow()
    (_guard_sqlite if sqlite else _guard_postgresql)()


def _grow() -> None:
    """The tree over the entries that are there already."""
    connection = op.get_bind()
    nodes = sa.table("ledger_node", *(sa.column(c) for c in ("log_id", "level", "idx", "hash")))
    frontier: list[bytes] = []
    for begin in range(0, connection.execute(sa.text("SELECT size FROM ledger_head WHERE log_id = 1")).scalar_one(), BATCH):
        chosen = sa.text("SELECT seq, leaf_hash FROM ledger_entry WHERE log_id = 1 AND seq >= :a AND seq < :b ORDER BY seq")
        rows = []
        for seq, value in connection.execute(chosen, {"a": begin, "b": begin + BATCH}):
            level, idx, value = 0, seq, bytes(value)
            rows.append((level, idx, value))
            while idx & 1:
                level, idx, value = level + 1, idx >> 1, hashlib.sha256(b"\x01" + frontier.pop() + value).digest()
                rows.append((level, idx, value))
            frontier.append(value)
        connection.execute(nodes.insert(), [{"log_id": 1, "level": a, "idx": b, "hash": c} for a, b, c in rows])
    if frontier:
        # the head's own guard lets it move forward only, so it is not there while this is written
        _without_head_guard(sa.text("UPDATE ledger_head SET frontier = :f WHERE log_id = 1").bindparams(f=b"".join(frontier)))


def _without_head_guard(statement: sa.TextClause) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER ledger_head_forward")
        op.execute(statement)
        op.execute(HEAD_FORWARD_SQLITE)
        return
    op.execute("ALTER TABLE ledger_head DISABLE TRIGGER ledger_head_forward")
    op.execute(statement)
    op.execute("ALTER TABLE ledger_head ENABLE ALWAYS TRIGGER ledger_head_forward")


# -------------------------------------------------------------------------------------------------------------- SQLite

HEAD_FORWARD_SQLITE = (
    "CREATE TRIGGER ledger_head_forward BEFORE UPDATE ON ledger_head WHEN NEW.size IS NOT OLD.size + 1 OR NEW.log_id IS NOT "
    "OLD.log_id OR NOT EXISTS (SELECT 1 FROM ledger_entry WHERE log_id = OLD.log_id AND seq = OLD.size) "
    "OR NOT EXISTS (SELECT 1 FROM ledger_node WHERE log_id = OLD.log_id AND level = 0 AND idx = OLD.size) "
    "BEGIN SELECT RAISE(ABORT, 'ledger_head moves one forward, with its entry'); END"
)
ENTRY_GUARDS_SQLITE = (
    "CREATE TRIGGER ledger_entry_no_delete BEFORE DELETE ON ledger_entry "
    "BEGIN SELECT RAISE(ABORT, 'ledger_entry is append-only'); END",
    "CREATE TRIGGER ledger_entry_no_replace BEFORE INSERT ON ledger_entry WHEN EXISTS "
    "(SELECT 1 FROM ledger_entry WHERE log_id IS NEW.log_id AND seq IS NEW.seq) "
    "BEGIN SELECT RAISE(ABORT, 'ledger_entry rows are not replaced'); END",
    "CREATE TRIGGER ledger_entry_in_order BEFORE INSERT ON ledger_entry WHEN "
    "NEW.seq IS NOT (SELECT size FROM ledger_head WHERE log_id = NEW.log_id) OR NEW.leaf IS NULL "
    "BEGIN SELECT RAISE(ABORT, 'ledger_entry takes the next sequence number only'); END",
)
UNCHANGED = " AND ".join(
    f"NEW.{column} IS OLD.{column}"
    for column in (
        "log_id", "seq", "leaf_hash", "action", "outcome", "at", "tenant", "actor", "request_id", "request_ordinal", "model_id",
    )
)  # fmt: skip
REDACTION_SQLITE = (
    "CREATE TRIGGER ledger_entry_no_update BEFORE UPDATE ON ledger_entry WHEN NOT ("  # noqa: S608 — names of our own
    f"{UNCHANGED} AND OLD.leaf IS NOT NULL AND NEW.leaf IS NULL AND EXISTS (SELECT 1 FROM ledger_entry AS why "
    "WHERE why.log_id = OLD.log_id AND why.seq = NEW.redacted_by AND why.action = 'entry.redacted' AND "
    "json_extract(CAST(why.leaf AS TEXT), '$.public.seq') = OLD.seq)) "
    "BEGIN SELECT RAISE(ABORT, 'ledger_entry is append-only'); END"
)


def _redactable_sqlite() -> None:
    """A column's nullability cannot be altered in place: the table is made anew, and with it its guards."""
    guards = ("ledger_head_forward", "ledger_entry_no_update", "ledger_entry_no_delete", "ledger_entry_no_replace",
              "ledger_entry_in_order")  # fmt: skip
    for name in guards:
        op.execute(f"DROP TRIGGER {name}")
    with op.batch_alter_table("ledger_entry") as table:
        table.alter_column("leaf", existing_type=sa.LargeBinary(), nullable=True)
        table.add_column(sa.Column("redacted_by", sa.BigInteger(), nullable=True))
        table.create_check_constraint(op.f("ck_ledger_entry_redacted"), REDACTED)
    for statement in (*ENTRY_GUARDS_SQLITE, REDACTION_SQLITE, HEAD_FORWARD_SQLITE):
        op.execute(statement)


def _guard_sqlite() -> None:
    for table in APPEND_ONLY:
        same = " AND ".join(f"{column} IS NEW.{column}" for column in KEYS[table])
        for name, when, message in (
            (f"{table}_no_update", f"BEFORE UPDATE ON {table}", f"{table} is append-only"),
            (f"{table}_no_delete", f"BEFORE DELETE ON {table}", f"{table} is append-only"),
            (
                f"{table}_no_replace",
                f"BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})",  # noqa: S608 — names of our own
                f"{table} rows are not replaced",
            ),
        ):
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")


# ---------------------------------------------------------------------------------------------------------- PostgreSQL

REDACTION_POSTGRESQL = """
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.leaf IS NOT NULL AND NEW.leaf IS NULL
     AND to_jsonb(NEW) - 'leaf' - 'redacted_by' = to_jsonb(OLD) - 'leaf' - 'redacted_by'
     AND EXISTS (SELECT 1 FROM ledger_entry AS why WHERE why.log_id = OLD.log_id AND why.seq = NEW.redacted_by
                 AND why.action = 'entry.redacted'
                 AND (convert_from(why.leaf, 'UTF8')::jsonb #>> '{public,seq}')::bigint = OLD.seq)
  THEN RETURN NEW; END IF;
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END
"""
FORWARD_POSTGRESQL = """
BEGIN
  IF NEW.size IS DISTINCT FROM OLD.size + 1 OR NEW.log_id <> OLD.log_id
     OR NOT EXISTS (SELECT 1 FROM ledger_entry WHERE log_id = OLD.log_id AND seq = OLD.size)
     OR NOT EXISTS (SELECT 1 FROM ledger_node WHERE log_id = OLD.log_id AND level = 0 AND idx = OLD.size)
  THEN RAISE EXCEPTION 'ledger_head moves one forward, with its entry'; END IF;
  RETURN NEW;
END
"""
IN_ORDER_POSTGRESQL = """
BEGIN
  IF NEW.seq IS DISTINCT FROM (SELECT size FROM ledger_head WHERE log_id = NEW.log_id) THEN
    RAISE EXCEPTION 'ledger_entry takes the next sequence number only'; END IF;
  IF NEW.leaf IS NULL OR NEW.leaf_hash <> sha256('\\x00'::bytea || NEW.leaf) THEN
    RAISE EXCEPTION 'leaf_hash is not the hash of leaf'; END IF;
  RETURN NEW;
END
"""
LOCK = """
CREATE FUNCTION expunge_ledger_lock(log integer, request text,
    OUT size bigint, OUT last_at timestamptz, OUT clock timestamptz, OUT ordinal integer, OUT prev bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  SELECT h.size, h.last_at INTO STRICT size, last_at FROM ledger_head AS h WHERE h.log_id = log FOR UPDATE;
  clock := clock_timestamp();
  IF request IS NOT NULL THEN
    SELECT e.request_ordinal, e.leaf_hash INTO ordinal, prev FROM ledger_entry AS e
      WHERE e.log_id = log AND e.request_id = request ORDER BY e.request_ordinal DESC LIMIT 1;
  END IF;
END $$
"""
APPEND = """
CREATE FUNCTION expunge_ledger_append(log integer, seq bigint, leaf bytea, action text, outcome text, at timestamptz,
    tenant text, actor text, request text, ordinal integer, model text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  value bytea := sha256('\\x00'::bytea || leaf);
  lvl integer := 0;
  place bigint := seq;
  edge bytea;
BEGIN
  SELECT h.frontier INTO STRICT edge FROM ledger_head AS h WHERE h.log_id = log FOR UPDATE;
  INSERT INTO ledger_entry (log_id, seq, leaf, leaf_hash, action, outcome, at, tenant, actor, request_id, request_ordinal,
      model_id) VALUES (log, seq, leaf, value, action, outcome, at, tenant, actor, request, ordinal, model);
  INSERT INTO ledger_node (log_id, level, idx, hash) VALUES (log, 0, place, value);
  WHILE place & 1 = 1 LOOP
    value := sha256('\\x01'::bytea || substr(edge, octet_length(edge) - 31, 32) || value);
    edge := substr(edge, 1, octet_length(edge) - 32);
    lvl := lvl + 1;
    place := place >> 1;
    INSERT INTO ledger_node (log_id, level, idx, hash) VALUES (log, lvl, place, value);
  END LOOP;
  UPDATE ledger_head SET size = seq + 1, last_at = at, frontier = edge || value WHERE log_id = log;
END $$
"""


def _guard_postgresql() -> None:
    def function(name: str, body: str) -> None:
        op.execute(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ {body} $$"
        )

    for table in APPEND_ONLY:
        for verb, level in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            name = f"{table}_no_{verb.lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH {level} EXECUTE FUNCTION expunge_refuse()")
            op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
    function("expunge_redact_only", REDACTION_POSTGRESQL)
    function("expunge_ledger_forward", FORWARD_POSTGRESQL)
    function("expunge_ledger_in_order", IN_ORDER_POSTGRESQL)
    op.execute("DROP TRIGGER ledger_entry_no_update ON ledger_entry")
    op.execute(
        "CREATE TRIGGER ledger_entry_no_update BEFORE UPDATE ON ledger_entry FOR EACH ROW "
        "EXECUTE FUNCTION expunge_redact_only()"
    )
    op.execute("ALTER TABLE ledger_entry ENABLE ALWAYS TRIGGER ledger_entry_no_update")
    op.execute(sa.text(LOCK))
    op.execute(sa.text(APPEND))
    for name in ("expunge_ledger_lock", "expunge_ledger_append"):
        op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
    _roles()


def _roles() -> None:
    """Roles belong to the whole server. Where this login may not make them, its operator does, before the migration."""
    connection = op.get_bind()
    able = connection.execute(
        sa.text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    ).scalar_one()
    for role in ROLES:
        if able:
            op.execute(
                f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
            )
        if not connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :r"), {"r": role}).first():
            log.warning("the role %s is missing and cannot be made by this login: its grants are left out", role)
            continue
        for statement in GRANTS[role]:
            op.execute(statement)


_ALL = ", ".join(LEDGER)
GRANTS = {
    "expunge_app": (
        "GRANT USAGE ON SCHEMA public TO expunge_app",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO expunge_app",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE ON TABLES TO expunge_app",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO expunge_app",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO expunge_app",
        f"REVOKE INSERT, UPDATE ON {_ALL}, alembic_version FROM expunge_app",
        "GRANT INSERT, UPDATE ON ledger_private TO expunge_app",
        "GRANT INSERT ON ledger_checkpoint TO expunge_app",
        "GRANT UPDATE (leaf, redacted_by) ON ledger_entry TO expunge_app",  # the trigger lets redactions alone through
        "GRANT EXECUTE ON FUNCTION expunge_ledger_lock TO expunge_app",
        "GRANT EXECUTE ON FUNCTION expunge_ledger_append TO expunge_app",
    ),
    "expunge_auditor": (
        "GRANT USAGE ON SCHEMA public TO expunge_auditor",
        "GRANT SELECT ON ledger_head, ledger_entry, ledger_node, ledger_checkpoint TO expunge_auditor",
    ),
    "expunge_signer": (
        "GRANT USAGE ON SCHEMA public TO expunge_signer",
        "GRANT SELECT ON ledger_head, ledger_node, ledger_checkpoint TO expunge_signer",
        "GRANT INSERT ON ledger_checkpoint TO expunge_signer",
    ),
}


def downgrade() -> None:
    raise RuntimeError("the tree holds the audit ledger: dropping it is not a migration")
