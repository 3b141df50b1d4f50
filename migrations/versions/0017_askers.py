"""Who asked: everybody whose wish is taken up anew, and whoever made the keys that it was asked with, people's or programs'.

Revision 0015 knew the last of a chain of requests alone, and the maker of a key of programs alone. And an index of what waits
for each webhook endpoint, so that the first one of each is found without those behind it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

OWN = (
    "NEW.decision = 'approved' AND EXISTS ("
    "WITH RECURSIVE asked(created_by, created_key_id, supersedes) AS ("
    "SELECT r.created_by, r.created_key_id, r.supersedes FROM unlearn_request AS r WHERE r.id = NEW.request_id "
    "UNION SELECT b.created_by, b.created_key_id, b.supersedes FROM unlearn_request AS b "
    "JOIN asked ON b.id = asked.supersedes) "
    "SELECT 1 FROM asked LEFT JOIN api_key AS k ON k.id = asked.created_key_id LEFT JOIN api_key AS m ON m.id = NEW.key_id "
    "WHERE asked.created_by = NEW.approver OR k.created_by = NEW.approver OR m.created_by = asked.created_by)"
)
NOT_WAITING = "NOT EXISTS (SELECT 1 FROM unlearn_request AS r WHERE r.id = NEW.request_id AND r.status = 'pending_approval')"
SAID = {
    "own": "nobody approves their own request",
    "not_waiting": "only a request that waits for approval is decided about",
    "append_only": "request_approval is append-only",
}


def upgrade() -> None:
    _index_what_waits()
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER request_approval_own")
        op.execute(
            f"CREATE TRIGGER request_approval_own BEFORE INSERT ON request_approval WHEN {OWN} "
            f"BEGIN SELECT RAISE(ABORT, '{SAID['own']}'); END"
        )
        return
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
    op.execute(
        sa.text(
            "CREATE OR REPLACE FUNCTION expunge_request_approval() RETURNS trigger LANGUAGE plpgsql "
            f"SET search_path = pg_catalog, public, pg_temp AS $$ {decided.replace(':', chr(92) + ':')} $$"
        )
    )


def _index_what_waits() -> None:
    pending = sa.text("status = 'pending'")
    columns = ["endpoint_id", "next_attempt_at", "id"]
    name, table = "ix_webhook_delivery_waiting", "webhook_delivery"
    op.create_index(name, table, columns, sqlite_where=pending, postgresql_where=pending)


def downgrade() -> None:
    raise RuntimeError("who approved what was asked for is kept under this rule: taking it back is not a migration")
