"""Secrets of endpoints, and the headers that prove who sent a message.

Source: Standard Webhooks 1.0, "Signature scheme": HMAC-SHA256 of `id.timestamp.body`, base64, `v1,…`; while a secret is being
rotated, one signature of each, separated by a blank.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook

from service.audit.vault import KeyStore

SECRET_BYTES = 32
KEK = "webhooks.0000-00"
"""Wraps all secrets. No tenant's month is ever 0000-00, so this key is not destroyed with anybody's private data."""


def draw(keys: KeyStore) -> tuple[str, bytes]:
    """A fresh secret as its owner is told it (`whsec_…`), and the same wrapped. Raises: KekGone, OSError."""
    secret = os.urandom(SECRET_BYTES)
    return shown(secret), keys.wrap(KEK, secret)


def opened(keys: KeyStore, wrapped: bytes) -> str:
    """A kept secret. Raises: KekGone, Unopenable, OSError."""
    return shown(keys.unwrap(KEK, wrapped))


def shown(secret: bytes) -> str:
    return f"whsec_{base64.b64encode(secret).decode()}"


def headers(secrets: Iterable[str], message_id: str, at: datetime, body: str) -> dict[str, str]:
    """What goes with a message that is sent at an aware time.

    Args:
        secrets: that are valid now, the newest first.
    """
    moment = at.astimezone(UTC)
    signatures = [Webhook(secret).sign(message_id, moment, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "expunge",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
