"""What clients send and see of the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.audit.leaves import Outcome
from service.models.schemas import Key
from service.paging import Moment, Order, PageQuery
from service.values import Text

Action = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z.]{0,62}\*?$")]


class EntryFilters(BaseModel):
    """Filters that the list and the export share."""

    model_config = ConfigDict(extra="forbid")

    model_id: Key | None = None
    request_id: Key | None = None
    actor: Annotated[Text, StringConstraints(max_length=200)] | None = None
    action: list[Action] = Field(
        default_factory=list, max_length=20, description="any of these; a `*` at the end takes all that begin so"
    )
    outcome: Outcome | None = None
    since: Moment | None = Field(default=None, alias="at[gte]")
    until: Moment | None = Field(default=None, alias="at[lt]")


class EntryQuery(PageQuery, EntryFilters):
    """A page of entries."""

    order: Order = "asc"


class EntryRead(BaseModel):
    """One entry. `leaf_hash` is SHA-256(0x00 || the leaf's canonical bytes), RFC 6962 §2.1."""

    object: Literal["audit_entry"] = "audit_entry"
    seq: int
    action: str
    outcome: str
    at: datetime
    actor: str
    request_id: str | None
    model_id: str | None
    leaf_hash: str
    leaf: dict[str, Any] = Field(description="what is hashed, decoded; its RFC 8785 form is the canonical one")
