"""The revocation list: which certificates were taken back, as of which tree of the ledger. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

ROW = {"checkpoint", "certificateSha256", "at", "reason"}
HEX = re.compile("[0-9a-f]{64}")
SLACK = timedelta(minutes=5)
LONGEST = timedelta(days=7)
"""So far ahead the next update may be: nobody should get a list that looks fresh for years."""
PREDICATE_TYPE = "urn:expunge:attestation:revocations:v1"


def statement(
    *, number: int, as_of: str, next_update: str, origin: str, size: int, root: bytes, revoked: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The list.

    Args:
        number: of the list; each later one has a larger number, from 1.
        next_update: RFC 3339 UTC. By then there is another list; whoever has none after that should get one.
        as_of: RFC 3339 UTC. A list is as old as that: whoever relies on a certificate decides how old is too old.
        origin, size, root: of the ledger's tree; what was revoked later is in a larger one.
        revoked: {"checkpoint", "certificateSha256", "at", "reason"} of each.
    """
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": origin, "digest": {"sha256": root.hex()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "number": number,
            "asOf": as_of,
            "nextUpdate": next_update,
            "ledgerSize": size,
            "revoked": [dict(one) for one in revoked],
        },
    }


def objections(said: Any, now: datetime) -> list[str]:
    """Why a signer must not sign this; empty when it may. That it leaves nothing out is the asker's word.

    Args:
        now: by the signer's own clock. A list of tomorrow would be newer than any that follows.
    """
    try:
        predicate, (subject,) = said["predicate"], said["subject"]
        rows = predicate["revoked"]
        good = (
            set(said) == {"_type", "subject", "predicateType", "predicate"}
            and said["_type"] == "https://in-toto.io/Statement/v1"
            and said["predicateType"] == PREDICATE_TYPE
            and isinstance(subject["name"], str)
            and HEX.fullmatch(subject["digest"]["sha256"]) is not None
            and set(predicate) == {"number", "asOf", "nextUpdate", "ledgerSize", "revoked"}
            and type(predicate["ledgerSize"]) is int
            and type(predicate["number"]) is int
            and predicate["number"] > 0
            and abs(datetime.fromisoformat(predicate["asOf"]) - now) <= SLACK
            and timedelta() < datetime.fromisoformat(predicate["nextUpdate"]) - now <= LONGEST
            and all(set(one) == ROW and all(isinstance(value, str) for value in one.values()) for one in rows)
        )
    except (KeyError, TypeError, ValueError):
        good = False
    return [] if good else ["it is no list of revocations as of now"]
