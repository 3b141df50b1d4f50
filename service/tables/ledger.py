"""Rows of the ledger, and the secret that all hosts of a deployment share."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Row, one_of


class LedgerHead(Row):
    """The one row that appenders queue for: the next sequence number and the latest time."""

    __tablename__ = "ledger_head"

    log_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(BigInteger)
    last_at: Mapped[datetime | None]
    frontier: Mapped[bytes] = mapped_column(
        LargeBinary, server_default=text("''"), comment="cache: the perfect subtrees that the root is folded from"
    )


class LedgerEntry(Row):
    """One fact that can never change: canonical leaf bytes, their RFC 6962 hash, and columns to search by.

    Only a redaction that an entry of its own names takes the leaf away; its hash, and so the tree, stays.
    """

    __tablename__ = "ledger_entry"
    __table_args__ = (
        CheckConstraint("seq >= 0", name="seq"),
        CheckConstraint("(leaf IS NULL) = (redacted_by IS NOT NULL)", name="redacted"),
        UniqueConstraint("log_id", "request_id", "request_ordinal"),
        Index("ix_ledger_entry_model", "model_id", "seq"),
        Index("ix_ledger_entry_request", "request_id", "seq"),
        Index("ix_ledger_entry_action", "action", "seq"),
        Index("ix_ledger_entry_actor", "actor", "seq"),
        Index("ix_ledger_entry_at", "at", "seq"),
        Index("ix_ledger_entry_tenant", "tenant", "seq"),
        Index("ix_ledger_entry_outcome", "outcome", "seq"),
    )

    log_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    leaf: Mapped[bytes | None] = mapped_column(LargeBinary)
    leaf_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    action: Mapped[str] = mapped_column(String(64))
    outcome: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime]
    tenant: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(200))
    request_id: Mapped[str | None] = mapped_column(String(64))
    request_ordinal: Mapped[int | None]
    model_id: Mapped[str | None] = mapped_column(String(64))
    redacted_by: Mapped[int | None] = mapped_column(BigInteger)


class LedgerNode(Row):
    """The hash of a perfect subtree: the 2**level entries from idx * 2**level on. Written once, never changed."""

    __tablename__ = "ledger_node"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012 — SQLAlchemy reads it once

    log_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    level: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    idx: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(LargeBinary(32))


class LedgerCheckpoint(Row):
    """The tree at a size, signed. The same size may be signed again: daily, by a new key, by more witnesses."""

    __tablename__ = "ledger_checkpoint"

    log_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(Text, comment="C2SP checkpoint: text, signature of the log, cosignatures")
    time_stamp: Mapped[bytes | None] = mapped_column(LargeBinary, comment="RFC 3161 token over the note")


class LedgerPrivate(Row):
    """What opens an entry's commitment, and the values themselves, sealed. Shredding takes both away for ever; the entry stays
    valid."""

    __tablename__ = "ledger_private"
    __table_args__ = (Index("ix_ledger_private_kek_id", "kek_id"),)

    log_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    salt: Mapped[bytes | None] = mapped_column(LargeBinary)
    kek_id: Mapped[str | None] = mapped_column(String(80), comment="null: of a release that kept the salt alone")
    dek_wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    ciphertext: Mapped[bytes | None] = mapped_column(LargeBinary)
    kind: Mapped[str] = mapped_column("class", String(32), server_default=text("'request'"))
    retain_until: Mapped[datetime | None] = mapped_column(comment="null: the clock does not run yet")
    legal_hold: Mapped[bool] = mapped_column(server_default=false())
    shredded_at: Mapped[datetime | None]
    kek_destroyed_at: Mapped[datetime | None] = mapped_column(comment="when the ledger said so; the deed follows")


class LedgerRedaction(Row):
    """Somebody wants an entry's text taken away; where two people are needed, another one must approve."""

    __tablename__ = "ledger_redaction"
    __table_args__ = (
        CheckConstraint(one_of("four_eyes", ("solo", "two")), name="four_eyes"),
        CheckConstraint("approved_by IS NULL OR four_eyes = 'solo' OR approved_by <> requested_by", name="second_person"),
        CheckConstraint("(approved_by IS NULL) = (approved_at IS NULL)", name="approved"),
        UniqueConstraint("log_id", "seq"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    log_id: Mapped[int]
    seq: Mapped[int] = mapped_column(BigInteger)
    ground: Mapped[str] = mapped_column(String(32))
    four_eyes: Mapped[str] = mapped_column(String(8))
    requested_by: Mapped[str] = mapped_column(String(200))
    requested_at: Mapped[datetime]
    approved_by: Mapped[str | None] = mapped_column(String(200))
    approved_at: Mapped[datetime | None]


class SharedSecret(Row):
    """What all hosts of one deployment know and no engine may: drawn at first use, never changed, never shown."""

    __tablename__ = "shared_secret"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
