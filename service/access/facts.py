"""What the ledger says about access: one closed model per event type, as in `audit.leaves`. Pure.

Ids alone: what a principal is called is in a row that can change.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.audit.leaves import Fact

DenialReason = Literal["wrong_secret", "expired", "revoked", "principal_deactivated", "role_missing", "not_own", "many"]


class AccessDenied(Fact):
    """Somebody with a key or a token of ours was turned away; like attempts share an entry."""

    action = "access.denied"
    outcome = "denied"
    reason: DenialReason = Field(description="many: of several kinds, for the limit on such entries was reached")
    key_id: str | None = None
    scope: str | None = Field(default=None, description="what the route asked for")
    count: int = Field(description="attempts that this entry stands for")
    since: str = Field(description="when the first of them was")


class ProjectCreated(Fact):
    """There is a new tenant."""

    action = "project.created"
    project_id: str
    approvals: int | None = Field(default=None, description="None: as many as the installation asks for")


class ProjectAmended(Fact):
    """From now on another number of people must approve the tenant's requests."""

    action = "project.amended"
    project_id: str
    approvals: int


class PrincipalCreated(Fact):
    """There is somebody new who may act."""

    action = "principal.created"
    principal_id: str
    project_id: str
    kind: str
    roles: tuple[str, ...] = Field(description="of API keys; a token brings its own")
    token: bool = Field(description="true: first seen with a token of the identity provider")


class PrincipalDeactivated(Fact):
    """They may act no more, with whatever key or token."""

    action = "principal.deactivated"
    principal_id: str
    project_id: str


class ApiKeyCreated(Fact):
    """A key was handed out."""

    action = "api-key.created"
    key_id: str
    principal_id: str
    project_id: str
    expires_at: str
    bootstrap: bool = Field(default=False, description="true: made at the installation's own terminal")


class ApiKeyRevoked(Fact):
    """A key opens nothing any more."""

    action = "api-key.revoked"
    key_id: str
    principal_id: str
    project_id: str
