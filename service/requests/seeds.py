"""The seeds that verification draws with: nobody can know them before it, and every host of a deployment has the same.

They follow from a secret in the database. A second host, or one whose disk was lost, thus takes a rung up again with the seed
that it had: a verification that is repeated looks at the same samples, and is no second chance. The engine gets the seed of
its own run alone, and neither the secret nor a way to the database.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service.db import now
from service.tables import SharedSecret

NAME = "verification"
SECRET_BYTES = 32


def verification_secret(session: OrmSession, *, kept_on_host: Path) -> bytes:
    """The deployment's secret. Whoever asks first draws it.

    Args:
        kept_on_host: where earlier releases kept a secret for each host. If the database has none yet and this file is there,
            it becomes the deployment's, so that requests that are under way keep their seeds.

    Raises:
        ValueError: the secret, or the file, is cut short.
    """
    found = session.get(SharedSecret, NAME)
    if found is None:
        drawn = kept_on_host.read_bytes() if kept_on_host.exists() else os.urandom(SECRET_BYTES)
        try:
            with session.begin_nested():
                found = SharedSecret(name=NAME, value=_whole(drawn), created_at=now(session))
                session.add(found)
        except IntegrityError:  # another host was first: its secret counts
            found = session.get_one(SharedSecret, NAME, populate_existing=True)
    return _whole(found.value)


def _whole(secret: bytes) -> bytes:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"expected a verification secret of {SECRET_BYTES} bytes, got {len(secret)}")
    return secret


def verification_seed(secret: bytes, request_id: str, rung: int) -> int:
    """A seed that nobody can know before verification: HMAC mod 2^53.

    Every rung has one of its own, so that no result is drawn with what another was rejected on. Every run of one rung gets it
    again.
    """
    message = request_id if rung == 1 else f"{request_id}/{rung}"
    return int.from_bytes(hmac.digest(secret, message.encode(), "sha256"), "big") % 2**53
