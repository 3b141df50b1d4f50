"""What the ledger says about people who decide whether a request may run: closed models, as in `leaves`. Pure.

The actor of the entry is who decided. What they wrote is private: a commitment alone is in the entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pydantic import Field

from service.audit.leaves import Fact, Sha256, canonical


class RequestApproved(Fact):
    """Somebody who did not make the request looked at it, and would have it run."""

    action = "unlearning.request.approved"
    request_digest: Sha256 = Field(description="of what was approved: see `request_digest`")
    granted: int = Field(description="as many have approved this digest by now")
    required: int


class RequestRejected(Fact):
    """Somebody decided that the request is not to run."""

    action = "unlearning.request.rejected"
    request_digest: Sha256


class ApprovalsVoided(Fact):
    """What is said of the request was changed, so that what was approved is not what would run."""

    action = "unlearning.request.approvals-voided"
    request_digest: Sha256 = Field(description="the new one")


def request_digest(request_id: str, leaf_hashes: Iterable[bytes]) -> Sha256:
    """SHA-256 of the RFC 8785 JSON `[request id, [leaf hashes in hex]]`.

    The leaves say all that is public of the request, and commit to what is private under a salt: so whoever has the entries
    can compute it, and nobody can confirm a guess of what was erased.

    Args:
        leaf_hashes: of the request's `unlearning.request.received` entry and of each `…amended` one that changed `external_id`
            or `metadata`, oldest first.
    """
    return hashlib.sha256(canonical([request_id, [leaf.hex() for leaf in leaf_hashes]])).hexdigest()
