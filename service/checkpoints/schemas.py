"""What clients see of checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.audit.leaves import RevocationReason
from service.models.schemas import File, ForgetSet

Status = Literal["current", "superseded", "revoked"]


class EvidenceFile(BaseModel):
    """A small file beside the published ones, downloaded as they are."""

    path: str
    size: int
    sha256: str


class CheckpointRead(BaseModel):
    """A certified result. Its files and its certificate never change; whether it still stands may."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    model_id: str
    request_id: str
    version: int
    digest: str
    files: list[File]
    forgotten: ForgetSet
    evidence: list[EvidenceFile]
    later: list[str] = Field(description="proofs, to be had once the ledger's log has signed a tree that holds the certificate")
    certificate_url: str
    status: Status
    superseded_by: str | None = Field(description="the checkpoint of the lineage's next version")
    created_at: datetime


class RevocationCreate(BaseModel):
    """Why a certificate is to be taken back."""

    model_config = ConfigDict(extra="forbid")

    reason: RevocationReason


class RevocationRead(BaseModel):
    """How far a revocation has come."""

    object: Literal["revocation"] = "revocation"
    checkpoint_id: str
    status: Literal["asked", "approved"]
    reason: str
    asked_by: str
    asked_at: datetime
    approved_by: str | None
    approved_at: datetime | None
    self_approved: bool


class Opening(BaseModel):
    """What shows that one item is among those that a certificate says were forgotten, and nothing of any other."""

    object: Literal["membership"] = "membership"
    checkpoint_id: str
    item: str
    salt: str
    index: int
    path: list[str]
    commitment: dict[str, Any]
