"""What the ledger says about webhooks: one closed model per event type, as in `audit.leaves`. Pure.

Ids alone: an address may hold a token.
"""

from __future__ import annotations

from typing import Literal

from service.audit.leaves import Fact


class WebhookCreated(Fact):
    """Events of a project are sent somewhere from now on."""

    action = "webhook-endpoint.created"
    endpoint_id: str


class WebhookDisabled(Fact):
    """They are sent there no more, until somebody says otherwise."""

    action = "webhook-endpoint.disabled"
    endpoint_id: str
    reason: Literal["asked", "gone", "failing"]


class WebhookDeleted(Fact):
    """They are sent there no more, and what was sent is forgotten."""

    action = "webhook-endpoint.deleted"
    endpoint_id: str
