"""Rows of webhooks: where events are sent, and what was sent, or still is to be."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service import tenancy
from service.tables.base import Row, one_of

DELIVERY_STATES = ("pending", "delivered", "failed")


class WebhookEndpoint(Row):
    """An address that a project's events are sent to. Its secrets are wrapped by a key that is not in the database."""

    __tablename__ = "webhook_endpoint"
    __table_args__ = (
        CheckConstraint("(previous_secret IS NULL) = (previous_until IS NULL)", name="previous"),
        CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled"),
        Index("ix_webhook_endpoint_project", "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))
    url: Mapped[str] = mapped_column(String(2000))
    description: Mapped[str] = mapped_column(String(200))
    event_types: Mapped[list[Any]] = mapped_column(comment="empty: all")
    secret: Mapped[bytes] = mapped_column(LargeBinary, comment="32 bytes, AES key wrap")
    previous_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_until: Mapped[datetime | None] = mapped_column(comment="so long both sign")
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    delivered_at: Mapped[datetime | None] = mapped_column(comment="its last success")
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(16), comment="asked gone failing")


class WebhookDelivery(Row):
    """One message to one endpoint. Written with the event that it tells of, so neither is ever without the other."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint(one_of("status", DELIVERY_STATES), name="status"),
        Index("ix_webhook_delivery_due", "status", "next_attempt_at"),
        Index(
            "ix_webhook_delivery_waiting",
            "endpoint_id",
            "next_attempt_at",
            "id",
            sqlite_where=text("status = 'pending'"),
            postgresql_where=text("status = 'pending'"),
        ),
        Index("ix_webhook_delivery_endpoint", "endpoint_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoint.id"))
    message_id: Mapped[str] = mapped_column(String(64), comment="webhook-id: the same however often it is sent")
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text, comment="the JSON text that is signed")
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(server_default=text("0"), comment="begun, not ended")
    next_attempt_at: Mapped[datetime]
    fence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    lease_expires_at: Mapped[datetime | None]
    last_status: Mapped[int | None] = mapped_column(comment="HTTP status of the last answer")
    last_error: Mapped[str | None] = mapped_column(String(32), comment="why the last attempt failed: a code")
    redelivery_of: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
