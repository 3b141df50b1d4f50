"""What clients send and see of projects, principals and keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

from service.access.scopes import Role
from service.values import Name

ProjectId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
Approvals = Annotated[
    StrictInt,
    Field(ge=0, le=9, description="others who must approve an unlearn request; at least as many as the installation asks for"),
]
LONGEST_DAYS, USUAL_DAYS = 366, 90


class ProjectCreate(BaseModel):
    """A tenant. Its id cannot change: the ledger has it for ever, so it should name nobody."""

    model_config = ConfigDict(extra="forbid")

    id: ProjectId
    approvals: Approvals = 0


class ProjectAmendment(BaseModel):
    """What may be changed of a tenant. Requests that are made already keep what they need."""

    model_config = ConfigDict(extra="forbid")

    approvals: Approvals


class ProjectRead(BaseModel):
    """A tenant."""

    object: Literal["project"] = "project"
    id: str
    approvals: int
    created_at: datetime
    created_by: str


class PrincipalCreate(BaseModel):
    """A person or a program that may act."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="for people; the ledger has the id alone")
    kind: Literal["user", "service"] = "user"
    roles: list[Role] = Field(min_length=1, max_length=6)
    project_id: ProjectId | None = Field(default=None, description="default: the caller's own")


class PrincipalRead(BaseModel):
    """A person or a program that may act."""

    object: Literal["principal"] = "principal"
    id: str
    project_id: str
    kind: str
    name: str
    roles: list[str] = Field(description="of API keys; a token brings its own")
    token: bool = Field(description="true: comes with tokens of the identity provider")
    created_at: datetime
    created_by: str
    deactivated_at: datetime | None


class ApiKeyCreate(BaseModel):
    """A key for a principal. It has its owner's roles."""

    model_config = ConfigDict(extra="forbid")

    principal_id: Annotated[str, StringConstraints(max_length=64)]
    name: Name = Field(description="for people: where it is used")
    expires_in_days: int = Field(default=USUAL_DAYS, ge=1, le=LONGEST_DAYS)


class ApiKeyRead(BaseModel):
    """A key, without what it opens with."""

    object: Literal["api_key"] = "api_key"
    id: str = Field(description="how the key begins")
    principal_id: str
    project_id: str
    name: str
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")


class ApiKeyMade(ApiKeyRead):
    """A new key, this once."""

    key: str = Field(description="shown now and never again")
