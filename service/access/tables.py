"""Projects, who acts in them, and their keys. Rows are switched off, never deleted: the ledger names them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Row


class Project(Row):
    """A tenant. Its id is its name, for the ledger has it for ever."""

    __tablename__ = "project"
    __table_args__ = (CheckConstraint("approvals BETWEEN 0 AND 9", name="approvals"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    approvals: Mapped[int] = mapped_column(default=0, server_default=text("0"))


class Principal(Row):
    """A person or a program. `issuer` and `subject` are of one who comes with tokens of an identity provider."""

    __tablename__ = "principal"
    __table_args__ = (
        CheckConstraint("kind IN ('user', 'service')", name="kind"),
        CheckConstraint("(issuer IS NULL) = (subject IS NULL)", name="subject"),
        UniqueConstraint("project_id", "issuer", "subject"),
        Index("ix_principal_project", "project_id", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(200))
    roles: Mapped[list[Any]] = mapped_column(comment="of API keys; a token brings its own")
    issuer: Mapped[str | None] = mapped_column(String(200))
    subject: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    deactivated_at: Mapped[datetime | None]


class ApiKey(Row):
    """One key of a principal, as its digest. The id is the key's own beginning."""

    __tablename__ = "api_key"
    __table_args__ = (Index("ix_api_key_principal", "principal_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    name: Mapped[str] = mapped_column(String(200))
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None] = mapped_column(comment="to the minute")
