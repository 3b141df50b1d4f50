"""What the ledger says about webhooks: one closed model per event type, as in `audit.leaves`. Pure.

Ids alone: an address may hold a token.
"""

from __future__ import annotations

from typing import Literal

from service.audit.leaves import Fact

Amendable = Literal["description", "event_types", "url"]


class WebhookCreated(Fact):
    """Events of a project are sent somewhere from now on."""

    action = "webhook-endpoint.created"
    endpoint_id: str


class WebhookAmended(Fact):
    """They are sent elsewhere, or others are, from now on."""

    action = "webhook-endpoint.amended"
    endpoint_id: str
    changed: tuple[Amendable, ...]


class WebhookSecretRotated(Fact):
    """They are signed with another secret from now on."""

    action = "webhook-endpoint.secret-rotated"
    endpoint_id: str


class WebhookEnabled(Fact):
    """They are sent there again."""

    action = "webhook-endpoint.enabled"
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
