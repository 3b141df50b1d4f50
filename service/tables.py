"""Every row. The migrations are the schema's truth; a test compares the two.

Lists of sample ids may be long, so they are loaded only where they are looked at.

Ids are text: a type prefix and a UUIDv4 (`ureq_…`), which tells a reader what he holds and an outsider nothing.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import JSON

from service import tenancy
from service.db import UtcDateTime
from service.requests.lifecycle import PHASES, STATUSES

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite gives rowids to INTEGER PRIMARY KEY alone."""


def new_id(prefix: str) -> str:
    """A fresh id: `ureq_8c6f…`."""
    return f"{prefix}_{uuid.uuid4().hex}"


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Row(DeclarativeBase):
    """The base of all rows."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime(), dict[str, Any]: JSON(), list[Any]: JSON()}


# -------------------------------------------------------------------------------------------------------- the registry


class Dataset(Row):
    """Images and labels that models were trained on; files stay where they are, their digests are kept."""

    __tablename__ = "dataset"
    __table_args__ = (Index("ix_dataset_project", "project_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    format: Mapped[str] = mapped_column(String(32))
    location: Mapped[str] = mapped_column(Text)
    class_names: Mapped[list[Any]]
    held_out_ids: Mapped[list[Any]]
    files: Mapped[list[Any]]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class Model(Row):
    """A registered model: a lineage of versions, of which one is current."""

    __tablename__ = "model"
    __table_args__ = (Index("ix_model_project", "project_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    family: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    class_names: Mapped[list[Any]]
    prompts: Mapped[list[Any] | None] = mapped_column(JSON(), comment="what a text-conditional model calls each class")
    current_version: Mapped[int]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class ModelVersion(Row):
    """One set of weights of a lineage. Number 1 is as registered; each later one is a published checkpoint."""

    __tablename__ = "model_version"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    number: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("model_version.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(String(64))
    location: Mapped[str | None] = mapped_column(Text, comment="of a registered version; a published one is in the store")
    files: Mapped[list[Any]]
    digest: Mapped[str] = mapped_column(String(64))
    forgotten_classes: Mapped[list[Any]]
    forgotten_samples: Mapped[list[Any]] = mapped_column(default=list, deferred=True)
    created_at: Mapped[datetime]


# -------------------------------------------------------------------------------------------------------- the requests


class UnlearnRequest(Row):
    """The wish, and where its fulfilment stands. The row is the job: broker messages only ring about it."""

    __tablename__ = "unlearn_request"
    __table_args__ = (
        CheckConstraint(_one_of("status", STATUSES), name="status"),
        CheckConstraint("phase IS NULL OR " + _one_of("phase", PHASES), name="phase"),
        Index("ix_unlearn_request_due", "status", "not_before", "created_at"),
        Index("ix_unlearn_request_model", "model_id", "status"),
        Index("ix_unlearn_request_project", "project_id", "created_at"),
        Index(
            "uq_unlearn_request_one_at_a_time",
            "model_id",
            unique=True,
            sqlite_where=text("status IN ('running', 'cancelling')"),
            postgresql_where=text("status IN ('running', 'cancelling')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    forget_classes: Mapped[list[Any]]
    forget_samples: Mapped[list[Any]] = mapped_column(default=list, deferred=True)
    retain: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True), comment="requests.retain.Choice; null: all that is not to be forgotten"
    )
    method: Mapped[str] = mapped_column(String(64))
    params: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(BigInteger)
    ranks: Mapped[int | None]
    on_conflict: Mapped[str] = mapped_column(String(16))
    policy: Mapped[dict[str, Any]]
    reason: Mapped[str | None] = mapped_column(Text)
    external_id: Mapped[str | None] = mapped_column(String(200))
    client_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSON())

    status: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str | None] = mapped_column(String(16))
    version: Mapped[int] = mapped_column(default=1, comment="raised by every change of state")
    fence: Mapped[int] = mapped_column(BigInteger, default=0, comment="raised by every claim and every lost lease")
    attempts_charged: Mapped[int] = mapped_column(default=0, comment="counted before work starts; a drained one is given back")
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    not_before: Mapped[datetime]
    cancel_requested_at: Mapped[datetime | None]
    base_version_id: Mapped[str | None] = mapped_column(ForeignKey("model_version.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[dict[str, Any] | None]

    progress_completed: Mapped[int | None]
    progress_total: Mapped[int | None]
    progress_unit: Mapped[str | None] = mapped_column(String(32))
    estimated_remaining_seconds: Mapped[float | None]
    progress_at: Mapped[datetime | None]

    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class RequestCompliance(Row):
    """The law's side of a request: whose clock runs, until when, and what has been done. Each change has an audit entry."""

    __tablename__ = "request_compliance"
    __table_args__ = (Index("ix_request_compliance_due", "answered_at", "due_at"),)

    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"), primary_key=True)
    jurisdiction: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    due_at: Mapped[datetime | None] = mapped_column(comment="null: no law's clock runs")
    extended_at: Mapped[datetime | None] = mapped_column(comment="when the person was told of it")
    extension_reason: Mapped[str | None] = mapped_column(String(32))
    extension_late: Mapped[bool] = mapped_column(
        server_default=false(), comment="told after the first deadline: it moved nothing"
    )
    ground: Mapped[str | None] = mapped_column(String(32), comment="of the refusal")
    refused_at: Mapped[datetime | None]
    answered_at: Mapped[datetime | None]
    recipients: Mapped[list[Any]] = mapped_column(comment="who was given the data")
    recipients_told: Mapped[list[Any]] = mapped_column(comment="those who were told, or need not be: the entry says which")


class IdempotencyKey(Row):
    """The first request made under a key, and the digest of its body."""

    __tablename__ = "idempotency_key"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"))
    created_at: Mapped[datetime]


class Attempt(Row):
    """One run on one worker. Retrying adds a row, it never rewrites one."""

    __tablename__ = "attempt"

    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    worker: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16), comment="succeeded failed cancelled drained lost")
    detail: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(), comment="worker.contract.Report, kept pass or fail")
    evidence: Mapped[list[Any] | None] = mapped_column(
        JSON(), comment="pictures of the report: path, size, sha256 in the store"
    )


class RequestEvent(Row):
    """What happened to a request, for its followers. `id` is the Last-Event-ID of the stream."""

    __tablename__ = "request_event"
    __table_args__ = (Index("ix_request_event_request", "request_id", "id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"))
    type: Mapped[str] = mapped_column(String(64))
    data: Mapped[dict[str, Any]]
    at: Mapped[datetime]


# --------------------------------------------------------------------------------------------------------- the results


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
    """What opens the certificate's commitment to what was forgotten, item by item. It may be erased."""

    __tablename__ = "forget_commitment"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoint.id"), primary_key=True)
    secret: Mapped[bytes | None] = mapped_column(LargeBinary, comment="all salts follow from it; null: erased")


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


class VersionDisposition(Row):
    """What an operator says has become of a version: the last one counts."""

    __tablename__ = "version_disposition"
    __table_args__ = (CheckConstraint("state IN ('withdrawn', 'quarantined', 'destroyed')", name="state"),)

    version_id: Mapped[str] = mapped_column(ForeignKey("model_version.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    by: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime]


# ---------------------------------------------------------------------------------------------------------- the ledger


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
        CheckConstraint(_one_of("four_eyes", ("solo", "two")), name="four_eyes"),
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


# --------------------------------------------------------------------------------------------------------- the secret


class SharedSecret(Row):
    """What all hosts of one deployment know and no engine may: drawn at first use, never changed, never shown."""

    __tablename__ = "shared_secret"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]


from service.access import tables as _access  # noqa: E402, F401 — they are rows of this schema, too, and build on what is above
