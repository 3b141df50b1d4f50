"""A commitment's leaves are kept with it: proving membership reads no dataset, and a later version's tree takes them over.

What opens a commitment may be erased; the leaves stay, for without it they say nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ERASED = (
    "NEW.checkpoint_id IS NOT DISTINCT FROM OLD.checkpoint_id AND NEW.leaves IS NOT DISTINCT FROM OLD.leaves "
    "AND NEW.secret IS NULL"
)


def upgrade() -> None:
    leaves = sa.Column("leaves", sa.LargeBinary(), nullable=True, comment="32 bytes each, ascending; null: of older releases")
    op.add_column("forget_commitment", leaves)
    if op.get_bind().dialect.name == "sqlite":
        erased = ERASED.replace("IS NOT DISTINCT FROM", "IS")
        op.execute("DROP TRIGGER forget_commitment_erase_only")
        op.execute(
            f"CREATE TRIGGER forget_commitment_erase_only BEFORE UPDATE ON forget_commitment WHEN NOT ({erased}) "
            "BEGIN SELECT RAISE(ABORT, 'a commitment is kept'); END"
        )
        return
    op.alter_column("forget_commitment", "secret", comment="its request's salts follow from it; null: erased")
    op.execute(
        "CREATE OR REPLACE FUNCTION expunge_erase_only() RETURNS trigger LANGUAGE plpgsql "
        f"SET search_path = pg_catalog, public, pg_temp AS $$ BEGIN IF NOT ({ERASED}) "
        "THEN RAISE EXCEPTION 'a commitment is kept'; END IF; RETURN NEW; END $$"
    )


def downgrade() -> None:
    raise RuntimeError("evidence and decisions are kept: dropping them is not a migration")
