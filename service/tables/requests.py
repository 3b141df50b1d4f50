"""Rows of the requests: the wish, its law, its runs, its events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import JSON

from service import tenancy
from service.requests.lifecycle import HOLDS_LINEAGE, PHASES, PRIORITIES, STATUSES
from service.tables.base import BigId, Row, one_of

_HELD = one_of("status", [status for status in STATUSES if status in HOLDS_LINEAGE])


class UnlearnRequest(Row):
    """The wish, and where its fulfilment stands. The row is the job: broker messages only ring about it."""

    __tablename__ = "unlearn_request"
    __table_args__ = (
        CheckConstraint(one_of("status", STATUSES), name="status"),
        CheckConstraint("phase IS NULL OR " + one_of("phase", PHASES), name="phase"),
        Index("ix_unlearn_request_due", "status", "not_before", "created_at"),
        Index("ix_unlearn_request_model", "model_id", "status"),
        Index("ix_unlearn_request_project", "project_id", "created_at", "id"),
        Index("ix_unlearn_request_created", "created_at", "id"),
        Index("ix_unlearn_request_status_created", "status", "created_at", "id"),
        Index("ix_unlearn_request_model_created", "model_id", "created_at", "id"),
        Index("ix_unlearn_request_external", "external_id", "created_at", "id"),
        Index(
            "uq_unlearn_request_one_at_a_time",
            "model_id",
            unique=True,
            sqlite_where=text(_HELD),
            postgresql_where=text(_HELD),
        ),
        Index("uq_unlearn_request_supersedes", "supersedes", unique=True),
        CheckConstraint(one_of("priority", PRIORITIES), name="priority"),
        CheckConstraint("approvals_required BETWEEN 0 AND 9", name="approvals"),
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
    gpu_class: Mapped[str] = mapped_column(String(32), default="default", server_default=text("'default'"))
    supersedes: Mapped[str | None] = mapped_column(ForeignKey("unlearn_request.id"))

    priority: Mapped[str] = mapped_column(String(16), default="standard", server_default=text("'standard'"))
    expected_run_seconds: Mapped[float | None]
    latest_start_at: Mapped[datetime | None] = mapped_column(comment="null: no law's clock runs")

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

    traceparent: Mapped[str | None] = mapped_column(String(55), comment="W3C Trace Context of the POST; null: not traced")
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    created_key_id: Mapped[str | None] = mapped_column(String(64), comment="the API key that it was made with")
    approvals_required: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class RequestApproval(Row):
    """What one person decided about a request, as it was said then. Append-only, but for the erasure of the comment."""

    __tablename__ = "request_approval"
    __table_args__ = (CheckConstraint("decision IN ('approved', 'rejected')", name="decision"),)

    request_id: Mapped[str] = mapped_column(ForeignKey("unlearn_request.id"), primary_key=True)
    approver: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_digest: Mapped[str] = mapped_column(String(64), primary_key=True, comment="what was decided about")
    decision: Mapped[str] = mapped_column(String(16))
    comment: Mapped[str | None] = mapped_column(Text, comment="a copy of what the ledger holds sealed")
    key_id: Mapped[str | None] = mapped_column(String(64), comment="the API key that it was decided with")
    at: Mapped[datetime]


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
    # or paused, since 0011
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


class Worker(Row):
    """A worker that is there, or was until a moment ago. It says so itself, at every sweep."""

    __tablename__ = "worker"
    __table_args__ = (CheckConstraint("state IN ('active', 'draining')", name="state"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, comment="digest of the lease owner's name")
    host: Mapped[str] = mapped_column(String(32), comment="digest of the host's name")
    gpu_classes: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str | None] = mapped_column(String(64), comment="what it is at work on")
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(comment="its last word to the database")
