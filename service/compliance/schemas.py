"""What clients send and see of the law's side of a request."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.compliance.rules import Jurisdiction
from service.models.schemas import Key
from service.paging import Moment
from service.values import Text

Recipient = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
"""Of an organisation, as the operator numbers them; never a person's name: it enters the ledger."""
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,31}$")]
Note = Annotated[Text, StringConstraints(min_length=1, max_length=2000)]


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: Note | None = Field(default=None, description="sealed beside the ledger, and shredded with the request's other data")


class Extension(_Event):
    """The person was told that it takes longer."""

    type: Literal["deadline.extended"]
    reason: Code = Field(description="one of the jurisdiction's `extension_reasons`")
    informed_at: Moment


class Refusal(_Event):
    """The wish was refused, wholly or in part."""

    type: Literal["assessed.refused"]
    ground: Code = Field(description="one of the jurisdiction's `grounds`")
    informed_at: Moment
    remedy_notice: bool = Field(description="the person was told how to complain and where to sue")


class Notification(_Event):
    """A recipient was told of the erasure, or need not be."""

    type: Literal["recipient.notified"]
    recipient: Recipient
    result: Literal["told", "impossible", "disproportionate"] = "told"
    at: Moment


class Answer(_Event):
    """The person was told what was done."""

    type: Literal["answered"]
    answered_at: Moment
    result: Literal["erased", "partly", "refused"]


ComplianceEvent = Annotated[Extension | Refusal | Notification | Answer, Field(discriminator="type")]


class ComplianceRead(BaseModel):
    """Where a request stands in law."""

    jurisdiction: Jurisdiction
    received_at: datetime
    due_at: datetime | None = Field(description="null: no law's clock runs")
    overdue: bool
    extended_at: datetime | None
    extension_reason: str | None
    extension_late: bool
    ground: str | None
    refused_at: datetime | None
    answered_at: datetime | None
    recipients: list[str]
    recipients_told: list[str]


class ComplianceEventRead(BaseModel):
    """What was recorded, and where the request stands now."""

    object: Literal["compliance_event"] = "compliance_event"
    seq: int = Field(description="of its audit entry")
    request_id: str
    compliance: ComplianceRead


class Asked(BaseModel):
    """What a question or a report may be narrowed by; which of them it takes is in its description."""

    model_config = ConfigDict(extra="forbid")

    request_id: Key | None = None
    model_id: Key | None = None
    jurisdiction: Jurisdiction | None = None
    year: int | None = Field(default=None, ge=2000, le=9000, description="of receipt, UTC; default: this one")
    format: Literal["json", "csv", "jsonl"] | None = Field(default=None, description="wins over `Accept`; JSON by default")


class QuestionRead(BaseModel):
    """A saved question."""

    object: Literal["audit_question"] = "audit_question"
    name: str
    question: str
    columns: list[str]
    needs: list[str] = Field(description="parameters that it cannot be answered without")
    takes: list[str] = Field(description="parameters that narrow it")
    url: str


class Rows(BaseModel):
    """The answer."""

    object: Literal["list"] = "list"
    name: str
    columns: list[str]
    data: list[dict[str, Any]]
