"""What clients see of webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.paging import PageQuery
from service.values import Text
from service.webhooks.messages import EVENT_TYPES, EventType

Url = Annotated[Text, StringConstraints(min_length=1, max_length=2000)]
Description = Annotated[Text, StringConstraints(max_length=200)]
EventTypes = Annotated[list[EventType], Field(max_length=len(EVENT_TYPES))]
State = Literal["pending", "delivered", "failed"]
DisabledReason = Literal["asked", "gone", "failing"]


class WebhookEndpointCreate(BaseModel):
    """An address that events are to be sent to."""

    model_config = ConfigDict(extra="forbid")

    url: Url = Field(description="https://, on the public internet, without credentials")
    description: Description = ""
    event_types: EventTypes = Field(default=[], description="which events; empty: all that are sent")


class WebhookEndpointChange(BaseModel):
    """What is to be different."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    description: Description | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = Field(default=None, description="true also takes up again what was switched off by failures")


class WebhookEndpointRead(BaseModel):
    """An address that events are sent to. Its secret is shown when it is made, never again."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    id: str
    url: str
    description: str
    event_types: list[EventType] = Field(description="empty: all that are sent")
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None = Field(
        description="asked: by somebody; gone: it answered 410; failing: ten attempts in vain, and nothing arrived meanwhile"
    )
    previous_secret_until: datetime | None = Field(description="so long the secret before signs, too")
    delivered_at: datetime | None = Field(description="its last success")
    created_at: datetime


class WebhookEndpointSecret(WebhookEndpointRead):
    """The same with its secret, this once."""

    secret: str = Field(description="`whsec_…`, as Standard Webhooks 1.0 writes it")


class RotateSecret(BaseModel):
    """How long both secrets are to sign."""

    model_config = ConfigDict(extra="forbid")

    overlap_hours: float = Field(default=24.0, ge=0, le=24 * 30, description="0: the old one signs nothing any more")


class WebhookDeliveryRead(BaseModel):
    """One message to one endpoint."""

    object: Literal["webhook_delivery"] = "webhook_delivery"
    id: str
    endpoint_id: str
    message_id: str = Field(description="the header `webhook-id`: the same however often it is sent")
    type: str
    body: dict[str, Any] = Field(description="what is sent")
    status: State
    attempts: int
    next_attempt_at: datetime | None = Field(description="null: none is to come")
    last_status: int | None = Field(description="HTTP status of the last answer")
    last_error: str | None = Field(
        description="connection, timeout, protocol, status, redirect, gone, address_refused, secret_unavailable, "
        "endpoint_disabled"
    )
    redelivery_of: str | None
    created_at: datetime
    ended_at: datetime | None


class DeliveryQuery(PageQuery):
    """Filters of the list of deliveries."""

    status: State | None = None
