"""The database holds an entry against its own text, its request's chain and the clock, and a redaction against its approval.

The application's role may append; what it appends must be what it says. Before, its word was taken for the time, the columns
and the place in the request's chain, and only a later verification would have told. A redaction took an entry that names it,
which that role can write; now it takes the approved row of that very entry, and where two people are needed the request in
the ledger, too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

SKEW_SECONDS = 5
"""How far a clock may be set back between two statements of one transaction before an honest entry is refused."""
WRONG_TIME = "ledger_entry is neither older than the last one nor of the future"
WRONG_TEXT = "ledger_entry is what its text says, next in its request"
ASKED_FIRST = "a redaction that takes two people is asked for first and approved later"


def upgrade() -> None:
    (_guard_sqlite if op.get_bind().dialect.name == "sqlite" else _guard_postgresql)()


# -------------------------------------------------------------------------------------------------------------- SQLite

TIME_SQLITE = (
    "EXISTS (SELECT 1 FROM ledger_head AS head WHERE head.log_id = NEW.log_id AND (NEW.at < ifnull(head.last_at, '') OR "  # noqa: S608 — names of our own
    f"NEW.at > max(strftime('%Y-%m-%d %H:%M:%f', 'now', '+{SKEW_SECONDS} seconds'), ifnull(head.last_at, ''))))"
)
OF_REQUEST_SQLITE = "FROM ledger_entry AS e WHERE e.log_id = NEW.log_id AND e.request_id = NEW.request_id"
ORDINAL_SQLITE = (
    f"CASE WHEN NEW.request_id IS NULL THEN NULL ELSE (SELECT ifnull(max(e.request_ordinal) + 1, 0) {OF_REQUEST_SQLITE}) END"
)
PREVIOUS_SQLITE = f"(SELECT lower(hex(e.leaf_hash)) {OF_REQUEST_SQLITE} AND e.request_ordinal = NEW.request_ordinal - 1)"
SAID_SQLITE = ", ".join(
    f"'$.{path}'"
    for path in (
        "type", "outcome", "at", "tenant", "actor.kind", "actor.id", "model", "request.id", "request.ordinal", "request.prev",
    )
)  # fmt: skip
TEXT_SQLITE = (
    f"NEW.request_ordinal IS NOT {ORDINAL_SQLITE} OR "
    f"json_extract(CAST(NEW.leaf AS TEXT), {SAID_SQLITE}) IS NOT json_array(NEW.action, NEW.outcome, "
    "replace(NEW.at, ' ', 'T') || 'Z', NEW.tenant, substr(NEW.actor, 1, instr(NEW.actor, ':') - 1), "
    f"substr(NEW.actor, instr(NEW.actor, ':') + 1), NEW.model_id, NEW.request_id, NEW.request_ordinal, {PREVIOUS_SQLITE})"
)
UNCHANGED = " AND ".join(
    f"NEW.{column} IS OLD.{column}"
    for column in (
        "log_id", "seq", "leaf_hash", "action", "outcome", "at", "tenant", "actor", "request_id", "request_ordinal", "model_id",
    )
)  # fmt: skip
REDACTION_SQLITE = (
    f"{UNCHANGED} AND OLD.leaf IS NOT NULL AND NEW.leaf IS NULL AND EXISTS (SELECT 1 FROM ledger_entry AS why "  # noqa: S608
    "JOIN ledger_redaction AS agreed ON agreed.log_id = why.log_id AND agreed.seq = OLD.seq "
    "WHERE why.log_id = OLD.log_id AND why.seq = NEW.redacted_by AND why.action = 'entry.redacted' "
    "AND json_extract(CAST(why.leaf AS TEXT), '$.public.seq', '$.public.ground') = json_array(OLD.seq, agreed.ground) "
    "AND agreed.approved_by = why.actor AND (agreed.four_eyes = 'solo' OR (agreed.approved_by <> agreed.requested_by "
    "AND EXISTS (SELECT 1 FROM ledger_entry AS asked WHERE asked.log_id = OLD.log_id AND asked.action = 'redaction.requested' "
    "AND asked.seq < why.seq AND asked.actor = agreed.requested_by "
    "AND json_extract(CAST(asked.leaf AS TEXT), '$.public.seq') = OLD.seq))))"
)


def _guard_sqlite() -> None:
    def refuse(name: str, when: str, message: str) -> None:
        op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{message}'); END")

    refuse("ledger_entry_in_time", f"BEFORE INSERT ON ledger_entry WHEN {TIME_SQLITE}", WRONG_TIME)
    refuse("ledger_entry_as_said", f"BEFORE INSERT ON ledger_entry WHEN {TEXT_SQLITE}", WRONG_TEXT)
    op.execute("DROP TRIGGER ledger_entry_no_update")
    changed = f"BEFORE UPDATE ON ledger_entry WHEN NOT ({REDACTION_SQLITE})"
    refuse("ledger_entry_no_update", changed, "ledger_entry is append-only")
    at_once = "BEFORE INSERT ON ledger_redaction WHEN NEW.four_eyes <> 'solo' AND NEW.approved_by IS NOT NULL"
    refuse("ledger_redaction_asked_first", at_once, ASKED_FIRST)


# ---------------------------------------------------------------------------------------------------------- PostgreSQL

APPEND_POSTGRESQL = f"""
DECLARE
  head record;
  ordinal integer;
  previous bytea;
  request jsonb;
BEGIN
  SELECT h.size, h.last_at INTO head FROM ledger_head AS h WHERE h.log_id = NEW.log_id;
  IF NEW.seq IS DISTINCT FROM head.size THEN
    RAISE EXCEPTION 'ledger_entry takes the next sequence number only'; END IF;
  IF NEW.leaf IS NULL OR NEW.leaf_hash IS DISTINCT FROM sha256('\\x00'::bytea || NEW.leaf) THEN
    RAISE EXCEPTION 'leaf_hash is not the hash of leaf'; END IF;
  -- an entry is of the transaction that writes it, so it is not older than its beginning either
  IF NEW.at < head.last_at OR NEW.at < transaction_timestamp() - interval '{SKEW_SECONDS} s'
     OR NEW.at > greatest(clock_timestamp() + interval '{SKEW_SECONDS} s', head.last_at) THEN
    RAISE EXCEPTION '{WRONG_TIME}'; END IF;
  IF NEW.request_id IS NOT NULL THEN
    SELECT e.request_ordinal, e.leaf_hash INTO ordinal, previous FROM ledger_entry AS e
      WHERE e.log_id = NEW.log_id AND e.request_id = NEW.request_id ORDER BY e.request_ordinal DESC LIMIT 1;
    ordinal := coalesce(ordinal + 1, 0);
    request := jsonb_build_object('id', NEW.request_id, 'ordinal', ordinal, 'prev', encode(previous, 'hex'));
  END IF;
  IF NEW.request_ordinal IS DISTINCT FROM ordinal OR (convert_from(NEW.leaf, 'UTF8')::jsonb @> jsonb_build_object(
       'type', NEW.action, 'outcome', NEW.outcome, 'tenant', NEW.tenant, 'model', NEW.model_id, 'request', request,
       'at', to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
       'actor', jsonb_build_object('kind', split_part(NEW.actor, ':', 1), 'id', substr(NEW.actor, strpos(NEW.actor, ':') + 1))
     )) IS NOT TRUE THEN
    RAISE EXCEPTION '{WRONG_TEXT}'; END IF;
  RETURN NEW;
END
"""  # noqa: S608
REDACTION_POSTGRESQL = """
BEGIN
  IF TG_OP = 'UPDATE' AND OLD.leaf IS NOT NULL AND NEW.leaf IS NULL
     AND to_jsonb(NEW) - 'leaf' - 'redacted_by' = to_jsonb(OLD) - 'leaf' - 'redacted_by'
     AND EXISTS (SELECT 1 FROM ledger_entry AS why
       JOIN ledger_redaction AS agreed ON agreed.log_id = why.log_id AND agreed.seq = OLD.seq
       WHERE why.log_id = OLD.log_id AND why.seq = NEW.redacted_by AND why.action = 'entry.redacted'
       AND convert_from(why.leaf, 'UTF8')::jsonb -> 'public' @> jsonb_build_object('seq', OLD.seq, 'ground', agreed.ground)
       AND agreed.approved_by = why.actor AND (agreed.four_eyes = 'solo' OR (agreed.approved_by <> agreed.requested_by
         AND EXISTS (SELECT 1 FROM ledger_entry AS asked WHERE asked.log_id = OLD.log_id
           AND asked.action = 'redaction.requested' AND asked.seq < why.seq AND asked.actor = agreed.requested_by
           AND convert_from(asked.leaf, 'UTF8')::jsonb -> 'public' @> jsonb_build_object('seq', OLD.seq)))))
  THEN RETURN NEW; END IF;
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END
"""
ASKED_FIRST_POSTGRESQL = f"""
BEGIN
  IF NEW.four_eyes <> 'solo' AND NEW.approved_by IS NOT NULL THEN RAISE EXCEPTION '{ASKED_FIRST}'; END IF;
  RETURN NEW;
END
"""


def _guard_postgresql() -> None:
    for name, body in (
        ("expunge_ledger_in_order", APPEND_POSTGRESQL),
        ("expunge_redact_only", REDACTION_POSTGRESQL),
        ("expunge_asked_first", ASKED_FIRST_POSTGRESQL),
    ):
        op.execute(
            sa.text(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql "
                f"SET search_path = pg_catalog, public, pg_temp AS $$ {body.replace(':', chr(92) + ':')} $$"
            )
        )
    op.execute(
        "CREATE TRIGGER ledger_redaction_asked_first BEFORE INSERT ON ledger_redaction FOR EACH ROW "
        "EXECUTE FUNCTION expunge_asked_first()"
    )
    # ALWAYS: also under session_replication_role = replica
    op.execute("ALTER TABLE ledger_redaction ENABLE ALWAYS TRIGGER ledger_redaction_asked_first")


def downgrade() -> None:
    raise RuntimeError("guards are not taken away by a migration")
