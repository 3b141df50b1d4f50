"""What clients see of unlearn requests."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, StrictBool

from service.compliance.schemas import ComplianceRead
from service.models.schemas import ClassSet, ForgetSet, SampleCount
from service.requests.lifecycle import Phase, Priority, Status
from service.requests.schemas import Resources


class StatusReason(BaseModel):
    """What keeps a request that waits from starting."""

    code: Literal["approval", "no_worker", "behind", "behind_paused", "behind_approval", "resting", "quota"]
    message: str
    request_id: str | None = Field(default=None, description="the request that it waits for")


class Progress(BaseModel):
    """How far the phase has come; null until it is known."""

    completed: int | None
    total: int | None
    unit: str | None
    estimated_remaining_seconds: float | None
    updated_at: datetime | None


class AttemptRead(BaseModel):
    """One run on one worker. Runs of one rung repeat each other: a run that died is taken up again with the same seeds."""

    number: int
    fence: int
    rung: int = Field(description="of the request's recipes, from 1, which one it ran")
    method: str | None = Field(description="that of the recipe; null: the run ended before its plan was made")
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    detail: dict[str, Any] | None
    verdict: str | None


class RungRead(BaseModel):
    """Where a request stands on its ladder: which of its recipes is running, comes next, or came last."""

    number: int = Field(description="from 1")
    of: int = Field(description="as many results as may be verified in turn; the chance of a false PASS is shared among them")
    method: str


class Policy(BaseModel):
    """The verification policy that the result is held to, fixed when the request was made."""

    name: str
    sha256: str


class SampleSet(SampleCount):
    """Single training items by id."""

    ids: list[str] = Field(description="in ascending order")


class ForgetRead(ClassSet):
    """What to forget, in full."""

    samples: SampleSet


class ProxyRead(ClassSet):
    """What stands in: classes that are set aside, and the dataset."""

    dataset_id: str | None


class RetainRead(BaseModel):
    """The retain data that were chosen."""

    classes: list[int] | None = Field(description="null: all that are neither forgotten nor proxy, or none where real is 0")
    class_names: list[str] | None
    real: float
    proxy: ProxyRead | None


class DecisionRead(BaseModel):
    """What one person decided."""

    approver: str
    decision: Literal["approved", "rejected"]
    comment: str | None
    at: datetime
    void: StrictBool = Field(description="true: what is said of the request was changed since, and it counts no more")


class ApprovalsRead(BaseModel):
    """Who must look at the request before it runs, and who has."""

    required: int = Field(description="others who must approve; 0: nobody, it is the requester's own decision (`solo`)")
    granted: int
    request_digest: str | None = Field(description="what an approval is given to; null: none is needed")
    decisions: list[DecisionRead]


class UnlearnRequestSummary(BaseModel):
    """An unlearn request, in short."""

    object: Literal["unlearning_request"] = "unlearning_request"
    id: str
    version: int
    status: Status
    phase: Phase | None
    model_id: str
    forget: ForgetSet
    retain: RetainRead | None = Field(description="null: every training image that is not to be forgotten")
    method: str
    params: dict[str, Any]
    seed: int
    resources: Resources
    priority: Priority
    latest_start_at: datetime | None = Field(
        description="deadline less expected run and margin: the earliest is taken first. null: no law's clock runs"
    )
    due_at: datetime | None = Field(description="when the law wants an answer; null: no law's clock runs")
    overdue: bool = Field(description="that moment is past, and nobody has answered")
    expected_run_seconds: float | None = Field(
        description="median of past runs of the method on this family, or the operator's guess; null: no law's clock runs"
    )
    on_conflict: str
    policy: Policy
    reason: str | None
    external_id: str | None
    metadata: dict[str, Any]
    progress: Progress
    checkpoint_id: str | None
    error: dict[str, Any] | None
    attempt_count: int
    cancel_requested_at: datetime | None
    supersedes: str | None = Field(description="the request that ended without a result, and whose wish this one takes up")
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None


class UnlearnRequestRead(UnlearnRequestSummary):
    """An unlearn request with its attempts and what verification found."""

    forget: ForgetRead  # type: ignore[assignment]  # the same shape, with the ids
    status_reason: StatusReason | None = Field(
        description="what keeps it from starting; null: only that others come first, or it is not queued"
    )
    superseded_by: str | None = Field(description="the request that takes up this one's wish")
    approvals: ApprovalsRead
    cumulative_forget: ForgetSet = Field(description="this and all that was forgotten before on this lineage")
    base_version: int | None = Field(description="the version it starts from; null until a worker takes it")
    rung: RungRead
    attempts: list[AttemptRead]
    verdict: str | None
    findings: list[dict[str, Any]] = Field(description="of the last attempt that was verified")
    compliance: ComplianceRead | None = Field(description="null: it was made without legal fields, and nothing was recorded")
    report_url: str | None
    checkpoint_url: str | None
    ledger_seq: int | None = Field(description="sequence number of the audit entry that records this request")
    receipt_url: str = Field(description="proof that this entry is in the signed ledger, once a checkpoint covers it")


class RecipeRead(BaseModel):
    """One rung of the ladder."""

    method: str
    params: dict[str, Any]


class PlanRead(BaseModel):
    """What would be made of a request, had it been asked for now. Nothing was."""

    object: Literal["unlearning_request_plan"] = "unlearning_request_plan"
    model_id: str
    status: Status = Field(description="that it would begin with; of `answered_by`, that it has")
    answered_by: str | None = Field(description="the pending request that `use_existing` would answer with")
    forget: ForgetSet
    cumulative_forget: ForgetSet = Field(description="with all that was forgotten before, or is pending, on this lineage")
    retain: RetainRead | None
    method: str
    recipes: list[RecipeRead] = Field(description="as many results as may be verified in turn, each with all of its parameters")
    policy: Policy
    approvals_required: int
    behind: list[str] = Field(description="pending requests of the model, which it would wait for")
    expected_run_seconds: float = Field(description="median of past runs of the method on this family, or the operator's guess")
    requests_in_front: int = Field(description="of the same project and GPU class, and sooner or at work already")
    workers: int = Field(description="that serve its GPU class now")
    estimated_finish_at: datetime | None = Field(
        description="if it is approved at once and no attempt fails; null: no worker serves its GPU class"
    )
    due_at: datetime | None
    latest_start_at: datetime | None
    late: StrictBool | None = Field(description="true: the estimate is after the deadline; null: one of the two is not known")


class BatchResult(BaseModel):
    """What became of one of them: `request` or `problem`."""

    index: int
    status: int = Field(description="that it would have been answered with by itself")
    replayed: StrictBool = Field(description="true: an earlier call with the same key made it")
    request: UnlearnRequestRead | None
    problem: dict[str, Any] | None = Field(description="RFC 9457")


class BatchRead(BaseModel):
    """What became of each, in the order of the items."""

    object: Literal["list"] = "list"
    data: list[BatchResult]
    failed: int


class EventRead(BaseModel):
    """Something that happened to the request. `id` is the stream's Last-Event-ID."""

    id: int
    type: str
    data: dict[str, Any]
    at: datetime


class ProjectEventRead(EventRead):
    """Something that happened to one of the requests."""

    request_id: str


class EventList(BaseModel):
    """All events of a request, oldest first."""

    object: Literal["list"] = "list"
    data: list[EventRead]
    has_more: StrictBool = False
