"""What clients see of workers and of the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field, StrictBool

from service.requests.lifecycle import Priority, Status
from service.requests.responses import StatusReason
from service.requests.schemas import GpuClass


class WorkerRead(BaseModel):
    """A worker, as it last said of itself."""

    object: Literal["worker"] = "worker"
    id: str = Field(description="a digest; the actor of its audit entries")
    host: str = Field(description="a digest: workers of one host have the same")
    gpu_classes: list[GpuClass]
    state: Literal["active", "draining"] = Field(description="a draining worker takes no new request")
    alive: bool = Field(description="it was in touch with the database within its last three sweeps")
    request_id: str | None = Field(description="what it is at work on")
    started_at: datetime
    seen_at: datetime = Field(description="its last word to the database")


class WorkerList(BaseModel):
    """All workers that were there within the last hour, the oldest first."""

    object: Literal["list"] = "list"
    data: list[WorkerRead]
    has_more: StrictBool = False


class QueueEntry(BaseModel):
    """A request that waits."""

    object: Literal["queue_entry"] = "queue_entry"
    position: int = Field(description="from 1, over all GPU classes; a worker takes the first that it serves and may start")
    request_id: str
    model_id: str
    status: Status
    priority: Priority
    gpu_class: GpuClass
    latest_start_at: datetime | None = Field(description="null: no law's clock runs")
    waiting_seconds: float = Field(description="since it was made")
    status_reason: StatusReason | None


class Queue(BaseModel):
    """Requests that wait, in the order in which they are taken."""

    object: Literal["list"] = "list"
    data: list[QueueEntry]
    has_more: StrictBool = Field(description="more wait than are shown")
