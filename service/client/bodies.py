"""What the HTTP API takes and answers, as types of dictionaries. Written by `make openapi`; not by hand."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class Answer(TypedDict):
    answered_at: str
    note: NotRequired[str | None]
    result: Literal["erased", "partly", "refused"]
    type: Literal["answered"]


class ApiKeyCreate(TypedDict):
    expires_in_days: NotRequired[int]
    name: str
    principal_id: str


class ApiKeyMade(TypedDict):
    created_at: str
    created_by: str
    expires_at: str
    id: str
    key: str
    last_used_at: str | None
    name: str
    object: NotRequired[Literal["api_key"]]
    principal_id: str
    project_id: str
    revoked_at: str | None


class ApiKeyRead(TypedDict):
    created_at: str
    created_by: str
    expires_at: str
    id: str
    last_used_at: str | None
    name: str
    object: NotRequired[Literal["api_key"]]
    principal_id: str
    project_id: str
    revoked_at: str | None


class Approval(TypedDict):
    comment: NotRequired[str | None]
    request_digest: str


class AttemptRead(TypedDict):
    detail: dict[str, Any] | None
    ended_at: str | None
    fence: int
    method: str | None
    number: int
    outcome: str | None
    rung: int
    started_at: str
    verdict: str | None


class CheckpointStatus(TypedDict):
    at: str
    size: int


class ComplianceRead(TypedDict):
    answered_at: str | None
    due_at: str | None
    extended_at: str | None
    extension_late: bool
    extension_reason: str | None
    ground: str | None
    jurisdiction: Literal["gdpr", "uk-gdpr", "ccpa", "none"]
    overdue: bool
    received_at: str
    recipients: list[str]
    recipients_told: list[str]
    refused_at: str | None


ConsistencyProof = TypedDict(
    "ConsistencyProof",
    {
        "from": int,
        "from_root": str,
        "hashes": list[str],
        "object": NotRequired[Literal["audit_consistency_proof"]],
        "to": int,
        "to_root": str,
    },
)


ClassName: TypeAlias = str


class DatasetCreate(TypedDict):
    class_names: list[ClassName]
    format: Literal["npz", "image_folder"]
    held_out_ids: NotRequired[list[str]]
    location: str
    name: NotRequired[str | None]


class DatasetRead(TypedDict):
    class_names: list[str]
    created_at: str
    created_by: str
    digest: str
    file_count: int
    format: str
    held_out_count: int
    id: str
    location: str
    name: str
    object: NotRequired[Literal["dataset"]]


class DecisionRead(TypedDict):
    approver: str
    at: str
    comment: str | None
    decision: Literal["approved", "rejected"]
    void: bool


class DefaultFor(TypedDict):
    forgotten: list[Literal["class", "sample"]]
    kind: Literal["generator", "classifier", "i2i"]


class DispositionCreate(TypedDict):
    state: Literal["withdrawn", "quarantined", "destroyed"]


class DispositionRead(TypedDict):
    at: str
    by: str
    model_id: str
    number: int
    object: NotRequired[Literal["disposition"]]
    state: str


class EntryRead(TypedDict):
    action: str
    actor: str
    at: str
    leaf: dict[str, Any] | None
    leaf_hash: str
    model_id: str | None
    object: NotRequired[Literal["audit_entry"]]
    outcome: str
    private: NotRequired[dict[str, Any] | None]
    private_fault: NotRequired[Literal["key_gone", "damaged"] | None]
    redacted_by: int | None
    request_id: str | None
    seq: int


class EventRead(TypedDict):
    at: str
    data: dict[str, Any]
    id: int
    type: str


class EvidenceFile(TypedDict):
    path: str
    sha256: str
    size: int


class Extension(TypedDict):
    informed_at: str
    note: NotRequired[str | None]
    reason: str
    type: Literal["deadline.extended"]


class FamilyEntry(TypedDict):
    ignores: NotRequired[list[str]]
    kind: NotRequired[Literal["generator", "classifier", "i2i"]]
    prompts: NotRequired[bool]
    title: NotRequired[str]


class File(TypedDict):
    path: str
    sha256: str
    size: int


Sample: TypeAlias = str


class Forget(TypedDict):
    classes: NotRequired[list[int | str] | None]
    samples: NotRequired[list[Sample] | None]


class Health(TypedDict):
    status: NotRequired[Literal["ok"]]


class Hold(TypedDict):
    ground: Literal["legal_claim", "authority", "internal_review"]
    hold: bool


class InclusionProof(TypedDict):
    hashes: list[str]
    leaf_hash: str
    object: NotRequired[Literal["audit_inclusion_proof"]]
    root: str
    seq: int
    size: int


JsonValue: TypeAlias = Any


class LogStatus(TypedDict):
    accepted: CheckpointStatus | None
    object: NotRequired[Literal["audit_status"]]
    origin: str
    problems: list[str]
    signed: CheckpointStatus | None
    size: int
    status: Literal["ok", "degraded"]
    time_stamped: CheckpointStatus | None
    witnesses: dict[str, bool]


class ModelCreate(TypedDict):
    class_names: list[ClassName]
    dataset_id: str
    family: str
    location: str
    name: NotRequired[str | None]
    prompts: NotRequired[dict[str, str] | None]


class Notification(TypedDict):
    at: str
    note: NotRequired[str | None]
    recipient: str
    result: NotRequired[Literal["told", "impossible", "disproportionate"]]
    type: Literal["recipient.notified"]


class Opening(TypedDict):
    checkpoint_id: str
    commitment: dict[str, Any]
    index: int
    item: str
    object: NotRequired[Literal["membership"]]
    path: list[str]
    salt: str


class PageApiKeyRead(TypedDict):
    data: list[ApiKeyRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageDatasetRead(TypedDict):
    data: list[DatasetRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageEntryRead(TypedDict):
    data: list[EntryRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class Policy(TypedDict):
    name: str
    sha256: str


class PolicySummary(TypedDict):
    default_for: list[DefaultFor]
    kinds: list[Literal["generator", "classifier", "i2i"]]
    name: str
    object: NotRequired[Literal["policy"]]
    title: str


class Preset(TypedDict):
    families: list[str]
    params: dict[str, JsonValue]
    source: NotRequired[str]


class PrincipalCreate(TypedDict):
    kind: NotRequired[Literal["user", "service"]]
    name: str
    project_id: NotRequired[str | None]
    roles: list[Literal["requester", "approver", "operator", "auditor", "admin", "worker"]]


class PrincipalRead(TypedDict):
    created_at: str
    created_by: str
    deactivated_at: str | None
    id: str
    kind: str
    name: str
    object: NotRequired[Literal["principal"]]
    project_id: str
    roles: list[str]
    token: bool


class Error(TypedDict):
    code: NotRequired[str]
    detail: NotRequired[str]
    pointer: NotRequired[str]


class Problem(TypedDict):
    code: str
    detail: str
    errors: NotRequired[list[Error]]
    instance: str
    retryable: bool
    status: int
    title: str
    type: str


class Progress(TypedDict):
    completed: int | None
    estimated_remaining_seconds: float | None
    total: int | None
    unit: str | None
    updated_at: str | None


class ProjectAmendment(TypedDict):
    approvals: int


class ProjectCreate(TypedDict):
    approvals: NotRequired[int]
    id: str


class ProjectEventRead(TypedDict):
    at: str
    data: dict[str, Any]
    id: int
    request_id: str
    type: str


class ProjectRead(TypedDict):
    approvals: int
    created_at: str
    created_by: str
    id: str
    object: NotRequired[Literal["project"]]


class ProxyData(TypedDict):
    classes: NotRequired[list[int | str] | None]
    dataset_id: NotRequired[str | None]


class ProxyRead(TypedDict):
    class_names: list[str]
    classes: list[int]
    dataset_id: str | None


class QuestionRead(TypedDict):
    columns: list[str]
    name: str
    needs: list[str]
    object: NotRequired[Literal["audit_question"]]
    question: str
    takes: list[str]
    url: str


class Readiness(TypedDict):
    missing: list[Literal["broker", "signer"]]
    status: Literal["ok", "degraded"]


class RecipeEntry(TypedDict):
    method: str
    preset: NotRequired[str | None]


class RecipeRead(TypedDict):
    method: str
    params: dict[str, Any]


class RedactionCreate(TypedDict):
    reason: Literal["personal_data", "court_order", "security", "third_party_right"]
    seq: int


class RedactionRead(TypedDict):
    approved_at: str | None
    approved_by: str | None
    id: str
    object: NotRequired[Literal["redaction"]]
    reason: str
    redacted_by: int | None
    requested_at: str
    requested_by: str
    self_approved: bool
    seq: int
    status: Literal["pending", "done"]


class Refusal(TypedDict):
    ground: str
    informed_at: str
    note: NotRequired[str | None]
    remedy_notice: bool
    type: Literal["assessed.refused"]


class Rejection(TypedDict):
    reason: str


class Resolved(TypedDict):
    policy: dict[str, Any]
    sha256: str


class Resources(TypedDict):
    gpu_class: NotRequired[str]
    ranks: NotRequired[int | None]


class Retain(TypedDict):
    classes: NotRequired[list[int | str] | None]
    proxy: NotRequired[ProxyData | None]
    real: NotRequired[float | None]


class RetainRead(TypedDict):
    class_names: list[str] | None
    classes: list[int] | None
    proxy: ProxyRead | None
    real: float


class Retry(TypedDict):
    method: NotRequired[str | None]
    params: NotRequired[dict[str, JsonValue] | None]
    policy: NotRequired[str | None]
    seed: NotRequired[int | None]


class RevocationCreate(TypedDict):
    reason: Literal["key_compromised", "result_wrong", "data_wrong", "unlawful", "withdrawn", "other"]


class RevocationRead(TypedDict):
    approved_at: str | None
    approved_by: str | None
    asked_at: str
    asked_by: str
    checkpoint_id: str
    object: NotRequired[Literal["revocation"]]
    reason: str
    self_approved: bool
    status: Literal["asked", "approved"]


class RotateSecret(TypedDict):
    overlap_hours: NotRequired[float]


class Rows(TypedDict):
    columns: list[str]
    data: list[dict[str, Any]]
    name: str
    object: NotRequired[Literal["list"]]


class RungRead(TypedDict):
    method: str
    number: int
    of: int


class SampleCount(TypedDict):
    count: int


class SampleSet(TypedDict):
    count: int
    ids: list[str]


class SeqList(TypedDict):
    object: NotRequired[Literal["private_data"]]
    seqs: list[int]


class Shred(TypedDict):
    ground: Literal["erasure_request", "retention_ended", "withdrawn", "data_minimisation", "operator"]


class StatusReason(TypedDict):
    code: Literal["approval", "no_worker", "behind", "behind_paused", "behind_approval", "resting", "quota"]
    message: str
    request_id: NotRequired[str | None]


Recipient: TypeAlias = str


class UnlearnRequestCreate(TypedDict):
    external_id: NotRequired[str | None]
    forget: Forget
    jurisdiction: NotRequired[Literal["gdpr", "uk-gdpr", "ccpa", "none"] | None]
    metadata: NotRequired[dict[str, JsonValue]]
    method: NotRequired[str | None]
    model_id: str
    on_conflict: NotRequired[Literal["queue_after", "reject", "use_existing"]]
    params: NotRequired[dict[str, JsonValue]]
    policy: NotRequired[str | None]
    priority: NotRequired[Literal["urgent", "standard", "bulk"]]
    reason: NotRequired[str | None]
    received_at: NotRequired[str | None]
    recipients: NotRequired[list[Recipient]]
    resources: NotRequired[Resources]
    retain: NotRequired[Retain | None]
    seed: NotRequired[int | None]


class VerifierEntry(TypedDict):
    completes: NotRequired[bool]
    held_out: NotRequired[Literal["all", "forgotten", "retained"] | None]
    kinds: NotRequired[list[Literal["generator", "classifier", "i2i"]]]
    measures: NotRequired[Literal["classes", "samples"] | None]
    params: NotRequired[dict[str, JsonValue]]
    title: NotRequired[str]


class WebhookDeliveryRead(TypedDict):
    attempts: int
    body: dict[str, Any]
    created_at: str
    ended_at: str | None
    endpoint_id: str
    id: str
    last_error: str | None
    last_status: int | None
    message_id: str
    next_attempt_at: str | None
    object: NotRequired[Literal["webhook_delivery"]]
    redelivery_of: str | None
    status: Literal["pending", "delivered", "failed"]
    type: str


class WebhookEndpointChange(TypedDict):
    description: NotRequired[str | None]
    enabled: NotRequired[bool | None]
    event_types: NotRequired[
        list[
            Literal[
                "unlearning_request.created",
                "unlearning_request.pending_approval",
                "unlearning_request.approved",
                "unlearning_request.rejected",
                "unlearning_request.queued",
                "unlearning_request.started",
                "unlearning_request.paused",
                "unlearning_request.succeeded",
                "unlearning_request.failed",
                "unlearning_request.cancelled",
                "unlearning_request.deadline_at_risk",
                "unlearning_request.deadline_missed",
                "checkpoint.certified",
                "checkpoint.revoked",
            ]
        ]
        | None
    ]
    url: NotRequired[str | None]


class WebhookEndpointCreate(TypedDict):
    description: NotRequired[str]
    event_types: NotRequired[
        list[
            Literal[
                "unlearning_request.created",
                "unlearning_request.pending_approval",
                "unlearning_request.approved",
                "unlearning_request.rejected",
                "unlearning_request.queued",
                "unlearning_request.started",
                "unlearning_request.paused",
                "unlearning_request.succeeded",
                "unlearning_request.failed",
                "unlearning_request.cancelled",
                "unlearning_request.deadline_at_risk",
                "unlearning_request.deadline_missed",
                "checkpoint.certified",
                "checkpoint.revoked",
            ]
        ]
    ]
    url: str


class WebhookEndpointRead(TypedDict):
    created_at: str
    delivered_at: str | None
    description: str
    disabled_at: str | None
    disabled_reason: Literal["asked", "gone", "failing"] | None
    enabled: bool
    event_types: list[
        Literal[
            "unlearning_request.created",
            "unlearning_request.pending_approval",
            "unlearning_request.approved",
            "unlearning_request.rejected",
            "unlearning_request.queued",
            "unlearning_request.started",
            "unlearning_request.paused",
            "unlearning_request.succeeded",
            "unlearning_request.failed",
            "unlearning_request.cancelled",
            "unlearning_request.deadline_at_risk",
            "unlearning_request.deadline_missed",
            "checkpoint.certified",
            "checkpoint.revoked",
        ]
    ]
    id: str
    object: NotRequired[Literal["webhook_endpoint"]]
    previous_secret_until: str | None
    url: str


class WebhookEndpointSecret(TypedDict):
    created_at: str
    delivered_at: str | None
    description: str
    disabled_at: str | None
    disabled_reason: Literal["asked", "gone", "failing"] | None
    enabled: bool
    event_types: list[
        Literal[
            "unlearning_request.created",
            "unlearning_request.pending_approval",
            "unlearning_request.approved",
            "unlearning_request.rejected",
            "unlearning_request.queued",
            "unlearning_request.started",
            "unlearning_request.paused",
            "unlearning_request.succeeded",
            "unlearning_request.failed",
            "unlearning_request.cancelled",
            "unlearning_request.deadline_at_risk",
            "unlearning_request.deadline_missed",
            "checkpoint.certified",
            "checkpoint.revoked",
        ]
    ]
    id: str
    object: NotRequired[Literal["webhook_endpoint"]]
    previous_secret_until: str | None
    secret: str
    url: str


class WorkerRead(TypedDict):
    alive: bool
    gpu_classes: list[str]
    host: str
    id: str
    object: NotRequired[Literal["worker"]]
    request_id: str | None
    seen_at: str
    started_at: str
    state: Literal["active", "draining"]


class Amendment(TypedDict):
    external_id: NotRequired[str | None]
    metadata: NotRequired[dict[str, JsonValue] | None]
    priority: NotRequired[Literal["urgent", "standard", "bulk"] | None]


class ApprovalsRead(TypedDict):
    decisions: list[DecisionRead]
    granted: int
    request_digest: str | None
    required: int


class Batch(TypedDict):
    atomic: NotRequired[bool]
    items: list[UnlearnRequestCreate]


class ComplianceEventRead(TypedDict):
    compliance: ComplianceRead
    object: NotRequired[Literal["compliance_event"]]
    request_id: str
    seq: int


class EventList(TypedDict):
    data: list[EventRead]
    has_more: NotRequired[bool]
    object: NotRequired[Literal["list"]]


class ForgetRead(TypedDict):
    class_names: list[str]
    classes: list[int]
    samples: SampleSet


class ForgetSet(TypedDict):
    class_names: list[str]
    classes: list[int]
    samples: SampleCount


class MethodEntry(TypedDict):
    conditions: NotRequired[dict[str, dict[str, list[JsonValue]]]]
    default_presets: NotRequired[dict[str, dict[Literal["class", "sample"], str | None]]]
    families: list[str]
    guarantee: NotRequired[str]
    params: dict[str, JsonValue]
    presets: NotRequired[dict[str, Preset]]
    title: NotRequired[str]


class ModelSummary(TypedDict):
    class_names: list[str]
    created_at: str
    created_by: str
    current_version: int
    dataset_id: str
    family: str
    forgotten: ForgetSet
    id: str
    name: str
    object: NotRequired[Literal["model"]]
    prompts: dict[str, str] | None


class PageModelSummary(TypedDict):
    data: list[ModelSummary]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PagePrincipalRead(TypedDict):
    data: list[PrincipalRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageProjectEventRead(TypedDict):
    data: list[ProjectEventRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageProjectRead(TypedDict):
    data: list[ProjectRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageRedactionRead(TypedDict):
    data: list[RedactionRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageWebhookDeliveryRead(TypedDict):
    data: list[WebhookDeliveryRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PageWebhookEndpointRead(TypedDict):
    data: list[WebhookEndpointRead]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class PlanRead(TypedDict):
    answered_by: str | None
    approvals_required: int
    behind: list[str]
    cumulative_forget: ForgetSet
    due_at: str | None
    estimated_finish_at: str | None
    expected_run_seconds: float
    forget: ForgetSet
    late: bool | None
    latest_start_at: str | None
    method: str
    model_id: str
    object: NotRequired[Literal["unlearning_request_plan"]]
    policy: Policy
    recipes: list[RecipeRead]
    requests_in_front: int
    retain: RetainRead | None
    status: Literal[
        "pending_approval",
        "queued",
        "running",
        "pausing",
        "paused",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
        "rejected",
    ]
    workers: int


class PolicyList(TypedDict):
    data: list[PolicySummary]
    has_more: NotRequired[bool]
    object: NotRequired[Literal["list"]]


class PolicyRead(TypedDict):
    by_kind: dict[Literal["generator", "classifier", "i2i"], Resolved]
    default_for: list[DefaultFor]
    kinds: list[Literal["generator", "classifier", "i2i"]]
    name: str
    object: NotRequired[Literal["policy"]]
    title: str


class QueueEntry(TypedDict):
    gpu_class: str
    latest_start_at: str | None
    model_id: str
    object: NotRequired[Literal["queue_entry"]]
    position: int
    priority: Literal["urgent", "standard", "bulk"]
    request_id: str
    status: Literal[
        "pending_approval",
        "queued",
        "running",
        "pausing",
        "paused",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
        "rejected",
    ]
    status_reason: StatusReason | None
    waiting_seconds: float


class UnlearnRequestRead(TypedDict):
    approvals: ApprovalsRead
    attempt_count: int
    attempts: list[AttemptRead]
    base_version: int | None
    cancel_requested_at: str | None
    checkpoint_id: str | None
    checkpoint_url: str | None
    compliance: ComplianceRead | None
    created_at: str
    created_by: str
    cumulative_forget: ForgetSet
    due_at: str | None
    error: dict[str, Any] | None
    expected_run_seconds: float | None
    external_id: str | None
    findings: list[dict[str, Any]]
    finished_at: str | None
    forget: ForgetRead
    id: str
    latest_start_at: str | None
    ledger_seq: int | None
    metadata: dict[str, Any]
    method: str
    model_id: str
    object: NotRequired[Literal["unlearning_request"]]
    on_conflict: str
    overdue: bool
    params: dict[str, Any]
    phase: Literal["staging", "unlearning", "verifying", "certifying", "publishing"] | None
    policy: Policy
    priority: Literal["urgent", "standard", "bulk"]
    progress: Progress
    reason: str | None
    receipt_url: str
    report_url: str | None
    resources: Resources
    retain: RetainRead | None
    rung: RungRead
    seed: int
    started_at: str | None
    status: Literal[
        "pending_approval",
        "queued",
        "running",
        "pausing",
        "paused",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
        "rejected",
    ]
    status_reason: StatusReason | None
    superseded_by: str | None
    supersedes: str | None
    verdict: str | None
    version: int


class UnlearnRequestSummary(TypedDict):
    attempt_count: int
    cancel_requested_at: str | None
    checkpoint_id: str | None
    created_at: str
    created_by: str
    due_at: str | None
    error: dict[str, Any] | None
    expected_run_seconds: float | None
    external_id: str | None
    finished_at: str | None
    forget: ForgetSet
    id: str
    latest_start_at: str | None
    metadata: dict[str, Any]
    method: str
    model_id: str
    object: NotRequired[Literal["unlearning_request"]]
    on_conflict: str
    overdue: bool
    params: dict[str, Any]
    phase: Literal["staging", "unlearning", "verifying", "certifying", "publishing"] | None
    policy: Policy
    priority: Literal["urgent", "standard", "bulk"]
    progress: Progress
    reason: str | None
    resources: Resources
    retain: RetainRead | None
    seed: int
    started_at: str | None
    status: Literal[
        "pending_approval",
        "queued",
        "running",
        "pausing",
        "paused",
        "cancelling",
        "succeeded",
        "failed",
        "cancelled",
        "rejected",
    ]
    supersedes: str | None
    version: int


class VersionRead(TypedDict):
    checkpoint_id: str | None
    created_at: str
    digest: str
    files: list[File]
    forgotten: ForgetSet
    id: str
    number: int
    parent_id: str | None


class WorkerList(TypedDict):
    data: list[WorkerRead]
    has_more: NotRequired[bool]
    object: NotRequired[Literal["list"]]


class BatchResult(TypedDict):
    index: int
    problem: dict[str, Any] | None
    replayed: bool
    request: UnlearnRequestRead | None
    status: int


class Catalogue(TypedDict):
    families: dict[str, FamilyEntry]
    ladders: NotRequired[dict[str, dict[Literal["class", "sample"], list[RecipeEntry]]]]
    methods: dict[str, MethodEntry]
    policy: NotRequired[dict[str, JsonValue]]
    verifiers: dict[str, VerifierEntry]


class CheckpointRead(TypedDict):
    certificate_url: str
    created_at: str
    digest: str
    evidence: list[EvidenceFile]
    files: list[File]
    forgotten: ForgetSet
    id: str
    later: list[str]
    model_id: str
    object: NotRequired[Literal["checkpoint"]]
    request_id: str
    status: Literal["current", "superseded", "revoked"]
    superseded_by: str | None
    version: int


class ModelRead(TypedDict):
    class_names: list[str]
    created_at: str
    created_by: str
    current_version: int
    dataset_id: str
    family: str
    forgotten: ForgetSet
    id: str
    name: str
    object: NotRequired[Literal["model"]]
    prompts: dict[str, str] | None
    versions: list[VersionRead]


class PageUnlearnRequestSummary(TypedDict):
    data: list[UnlearnRequestSummary]
    has_more: bool
    next_cursor: NotRequired[str | None]
    object: NotRequired[Literal["list"]]


class Queue(TypedDict):
    data: list[QueueEntry]
    has_more: bool
    object: NotRequired[Literal["list"]]


class BatchRead(TypedDict):
    data: list[BatchResult]
    failed: int
    object: NotRequired[Literal["list"]]
