"""What clients send and see of the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.audit.leaves import Outcome
from service.audit.shredding import Fault
from service.compliance.rules import Jurisdiction
from service.models.schemas import Key
from service.paging import Moment, Order, PageQuery
from service.requests.lifecycle import Status
from service.values import Text

Action = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z.-]{0,62}\*?$")]


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
    first: Moment | None = Field(default=None, alias="from", description="the same as at[gte]")
    last: Moment | None = Field(default=None, alias="to", description="the same as at[lt]")
    tenant: Key | None = None
    type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z.-]{0,62}$")] | None = Field(
        default=None, description="actions that begin so: `run`, `certificate.`"
    )
    model_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="of models that have, or had, a version with this digest"
    )
    certificate: Key | None = Field(default=None, description="of the request that a checkpoint's certificate came of; its id")
    state: Status | None = Field(default=None, description="of requests that have this status now")
    jurisdiction: Jurisdiction | None = Field(default=None, description="of requests under this law")
    overdue: bool | None = Field(default=None, description="of requests that are, or are not, past their deadline now")
    ground: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")] | None = Field(
        default=None, description="of requests that were refused on this ground"
    )


class EntryQuery(PageQuery, EntryFilters):
    """A page of entries."""

    order: Order = "asc"
    include: list[Literal["private"]] = Field(
        default_factory=list, max_length=1, description="`private` opens sealed payloads, and the ledger says who did"
    )


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
    leaf: dict[str, Any] | None = Field(
        description="what is hashed, decoded; its RFC 8785 form is the canonical one. Null: it was redacted"
    )
    redacted_by: int | None = Field(description="sequence number of the entry that says so")
    private: dict[str, Any] | None = Field(
        default=None, description="with `include=private`: what the entry commits to, unless it was shredded"
    )
    private_fault: Fault | None = Field(
        default=None,
        description="with `include=private`: why values that nobody shredded are not here. `key_gone`: the key of their month "
        "is lost; `damaged`: they are not what was sealed",
    )


class InclusionProof(BaseModel):
    """RFC 6962 §2.1.1: from an entry's hash to the root. Hashes in base64, but `leaf_hash`, which is hex as in the entry."""

    object: Literal["audit_inclusion_proof"] = "audit_inclusion_proof"
    seq: int
    size: int
    leaf_hash: str
    root: str
    hashes: list[str] = Field(description="from the leaf's neighbour up")


class ConsistencyProof(BaseModel):
    """RFC 6962 §2.1.2: the tree of one size begins with that of another. Hashes in base64."""

    model_config = ConfigDict(populate_by_name=True)

    object: Literal["audit_consistency_proof"] = "audit_consistency_proof"
    old: int = Field(alias="from")
    new: int = Field(alias="to")
    from_root: str
    to_root: str
    hashes: list[str]


class CheckpointStatus(BaseModel):
    """A signed tree: how many entries, and when."""

    size: int
    at: datetime


class LogStatus(BaseModel):
    """How far the ledger is signed, and seen by others."""

    object: Literal["audit_status"] = "audit_status"
    origin: str
    size: int = Field(description="entries there are")
    signed: CheckpointStatus | None = Field(description="the newest checkpoint; null: none yet")
    accepted: CheckpointStatus | None = Field(description="the newest that enough witnesses have seen")
    witnesses: dict[str, bool] = Field(description="by its name in the policy: has it cosigned the newest checkpoint")
    time_stamped: CheckpointStatus | None = Field(description="the newest with a time stamp of an authority")
    status: Literal["ok", "degraded"] = Field(description="degraded: somebody should look at the problems")
    problems: list[str] = Field(
        description="stored checkpoints that are none of this ledger (of the largest and the latest), entries other than signed"
    )
