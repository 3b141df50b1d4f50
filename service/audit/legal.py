"""What the ledger says about people's rights and about who looked: one closed model per event type, as in `leaves`. Pure.

Nothing here names a person. Grounds and reasons are codes; a sentence about somebody belongs into the private payload.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.audit.leaves import Fact, Sha256

# ------------------------------------------------------------------------------------------------------------- access


class AuditRead(Fact):
    """Somebody read the ledger over HTTP."""

    action = "audit.read"
    what: str = Field(description="which list, report or question")
    filters_sha256: Sha256 = Field(description="of the RFC 8785 JSON of the filters: the same search has the same digest")
    count: int = Field(description="entries or rows in the answer")


class ExportMade(Fact):
    """Somebody took a copy."""

    action = "export.made"
    what: str
    filters_sha256: Sha256
    count: int


class PrivateOpened(Fact):
    """Somebody read the private payloads of these entries."""

    action = "private.opened"
    seqs: tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------ erasure


class HoldSet(Fact):
    """A dispute is on: these private payloads may not be shredded."""

    action = "legal-hold.set"
    seqs: tuple[int, ...]
    ground: str


class HoldReleased(Fact):
    """They may be shredded again."""

    action = "legal-hold.released"
    seqs: tuple[int, ...]
    ground: str


class KekDestroyed(Fact):
    """The key that private payloads of a month were sealed under is gone, and with it what backups hold of them.

    Written before the key is destroyed: a crash in between leaves a key that the next run destroys, never a silent loss.
    """

    action = "kek.destroyed"
    kek_id: str


class RedactionRequested(Fact):
    """Somebody wants the text of an entry taken away; another person must approve."""

    action = "redaction.requested"
    seq: int
    ground: str


# ---------------------------------------------------------------------------------------------------------- deadlines


class DeadlineExtended(Fact):
    """The person was told that it takes longer, and why."""

    action = "deadline.extended"
    reason: str
    informed_at: str
    due_at: str = Field(description="the deadline from now on")
    late: bool = Field(description="true: told after the first deadline, so it moved nothing")


class RequestRefused(Fact):
    """The wish was refused, wholly or in part."""

    action = "assessed.refused"
    ground: str
    informed_at: str
    remedy_notice: bool = Field(description="the person was told how to complain")


class RecipientNotified(Fact):
    """Somebody who was given the data was told that they are to be erased, or need not be told."""

    action = "recipient.notified"
    recipient: str
    result: Literal["told", "impossible", "disproportionate"]
    at: str


class RequestAnswered(Fact):
    """The person was told what was done."""

    action = "answered"
    answered_at: str
    result: Literal["erased", "partly", "refused"]
    late: bool | None = Field(default=None, description="after the deadline; null: no law's clock runs")
