"""The signed list of revocations, kept until it changes: one row, which whoever has it signed anew claims first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    table = op.create_table(
        "revocation_list",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("revoked", sa.Integer(), nullable=False, comment="how many it names; revocations are only ever added"),
        sa.Column("key_sha256", sa.String(length=64), nullable=False, comment="of the public key that it was signed for"),
        sa.Column("next_update", sa.DateTime(timezone=True), nullable=True),
        sa.Column("bundle", sa.Text(), nullable=True, comment="as it is answered; null: none was signed yet"),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True, comment="somebody has the next one signed"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocation_list")),
    )
    op.bulk_insert(table, [{"id": 1, "number": 0, "revoked": 0, "key_sha256": ""}])


def downgrade() -> None:
    raise RuntimeError("a list that was signed keeps its number: dropping it is not a migration")
