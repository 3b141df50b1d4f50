"""What clients see of checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from service.models.schemas import File, ForgetSet


class CheckpointRead(BaseModel):
    """A certified result. It never changes."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    model_id: str
    request_id: str
    version: int
    digest: str
    files: list[File]
    forgotten: ForgetSet
    certificate_url: str
    created_at: datetime
