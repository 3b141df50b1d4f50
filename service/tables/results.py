"""Rows of what was published, and of what people decided about it afterwards."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import JSON

from service.tables.base import Row


class Checkpoint(Row):
    """A certified result. `request_id` is unique: a request publishes once or never."""

    __tablename__ = "checkpoint"
    __table_args__ = (UniqueConstraint("request_id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    fence: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[str] = mapped_column(String(64))
    certificate: Mapped[dict[str, Any]] = mapped_column(JSON(), comment="DSSE envelope")  # in a Sigstore bundle since 0006
    created_at: Mapped[datetime]


class CheckpointFile(Row):
    """One published file: a name, and the digest under which the store holds its bytes."""

    __tablename__ = "checkpoint_file"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class CheckpointEvidence(Row):
    """A small file beside the published ones: signatures, provenance, bill of materials. `path` is as it is downloaded."""

    __tablename__ = "checkpoint_evidence"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    sha256: Mapped[str] = mapped_column(String(64))


class ForgetCommitment(Row):
    """The leaves of the certificate's commitment to what was forgotten, and what opens those of its own request. That may be
    erased."""

    __tablename__ = "forget_commitment"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    secret: Mapped[bytes | None] = mapped_column(LargeBinary, comment="its request's salts follow from it; null: erased")
    leaves: Mapped[bytes | None] = mapped_column(LargeBinary, comment="32 bytes each, ascending; null: of older releases")


class CheckpointRevocation(Row):
    """A step of taking a certificate back: one person asks, another approves."""

    __tablename__ = "checkpoint_revocation"
    __table_args__ = (CheckConstraint("step IN ('asked', 'approved')", name="step"),)

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    step: Mapped[str] = mapped_column(String(16), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    by: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]
    self_approved: Mapped[bool]


class RevocationList(Row):
    """The signed list of revocations: one row, which whoever has it signed anew claims first."""

    __tablename__ = "revocation_list"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int]
    revoked: Mapped[int] = mapped_column(comment="how many it names; revocations are only ever added")
    key_sha256: Mapped[str] = mapped_column(String(64), comment="of the public key that it was signed for")
    next_update: Mapped[datetime | None]
    bundle: Mapped[str | None] = mapped_column(Text, comment="as it is answered; null: none was signed yet")
    claimed_until: Mapped[datetime | None] = mapped_column(comment="somebody has the next one signed")


class VersionDisposition(Row):
    """What an operator says has become of a version: the last one counts."""

    __tablename__ = "version_disposition"
    __table_args__ = (CheckConstraint("state IN ('withdrawn', 'quarantined', 'destroyed')", name="state"),)

    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    by: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]
