"""Everything that can be wrong with a request, as classes with a status and a stable code.

    ServiceError
    ├── BadRequest 400            malformed
    ├── NotFound 404              not_found · model_not_found · dataset_not_found · request_not_found · checkpoint_not_found
    │                             · report_not_found · file_not_found · entry_not_found · receipt_not_found
    │                             · kek_not_found
    ├── SelfApproval 403          self_approval_forbidden     (and foreign_host, foreign_origin, of `service.access.nearby`)
    ├── Conflict 409              duplicate_request · lineage_busy · invalid_state_transition · legal_hold
    │                             · already_recorded · already_superseded · concurrent_change · request_changed
    ├── Revoked 410               checkpoint_revoked
    ├── VersionMismatch 412       version_mismatch
    ├── BodyTooLarge 413          body_too_large
    ├── Unprocessable 422         validation_failed · unknown_class · … (one class each, below)
    ├── PreconditionRequired 428  precondition_required
    ├── QuotaExceeded 429         quota_exceeded              (and rate_limited, of `service.access.limiting`)
    └── Unavailable 503           unavailable · not_yet_signed

Bodies are RFC 9457 problem+json. They never carry an input value or a traceback: a problem may end up in a log, a ticket or
a browser, and what a client sent may be personal data.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ServiceError(Exception):
    """A request that cannot be served as asked."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "The service failed"
    retryable: ClassVar[bool] = False
    retry_after: ClassVar[int] = 2
    """Seconds, for those that are retryable."""

    def __init__(self, detail: str = "", *, pointer: str | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.pointer = pointer
        self.extra = extra


class BadRequest(ServiceError):
    """The body is not JSON, or not what its Content-Type says."""

    status, code, title = 400, "malformed", "The request is malformed"


class NotFound(ServiceError):
    """Nothing lives at this address."""

    status, code, title = 404, "not_found", "Not found"


class ModelNotFound(NotFound):
    """No model has this id."""

    code, title = "model_not_found", "No model has this id"


class DatasetNotFound(NotFound):
    """No dataset has this id."""

    code, title = "dataset_not_found", "No dataset has this id"


class PolicyNotFound(NotFound):
    """No verification policy has this name."""

    code, title = "policy_not_found", "No verification policy has this name"


class RequestNotFound(NotFound):
    """No unlearn request has this id."""

    code, title = "request_not_found", "No unlearn request has this id"


class ReportNotFound(NotFound):
    """Nothing has been verified yet."""

    code, title = "report_not_found", "Nothing has been verified yet"


class CheckpointNotFound(NotFound):
    """No checkpoint has this id."""

    code, title = "checkpoint_not_found", "No checkpoint has this id"


class KekNotFound(NotFound):
    """Nothing was ever sealed under a key of this name, and there is none."""

    code, title = "kek_not_found", "No key has this name"


class QuestionNotFound(NotFound):
    """No saved question or report has this name."""

    code, title = "question_not_found", "No saved question or report has this name"


class FileNotFound(NotFound):
    """The manifest names no such file."""

    code, title = "file_not_found", "The manifest names no such file"


class EntryNotFound(NotFound):
    """The ledger has no such entry, or nothing of it at that place."""

    code, title = "entry_not_found", "The ledger has nothing at this place"


class ReceiptNotFound(NotFound):
    """No audit entry belongs to it."""

    code, title = "receipt_not_found", "No audit entry belongs to it"


class MethodNotAllowed(ServiceError):
    """The address exists, the method does not."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class Conflict(ServiceError):
    """The state of things does not allow it."""

    status, code, title = 409, "conflict", "The state of things does not allow it"


class DuplicateRequest(Conflict):
    """A class, or an item, is already pending on this model."""

    code, title = "duplicate_request", "Already asked for by a pending request on this model"


class LineageBusy(Conflict):
    """Another request is at work on this model, and the caller asked not to wait."""

    code, title = "lineage_busy", "Another request is at work on this model"


class InvalidTransition(Conflict):
    """The request's status does not allow this move."""

    code, title = "invalid_state_transition", "The request's status does not allow this move"


class ConcurrentChange(Conflict):
    """Two people decided about the same thing at the same moment, and the other one was first. Look at it, and decide again."""

    code, title, retryable = "concurrent_change", "Somebody else changed it at the same moment", True


class Revoked(ServiceError):
    """The certificate was taken back, and its files with it."""

    status, code, title = 410, "checkpoint_revoked", "The certificate was revoked"


class LegalHold(Conflict):
    """A dispute or an authority wants these data kept."""

    code, title = "legal_hold", "A legal hold keeps these data"


class AlreadyRecorded(Conflict):
    """This can be said of a request once."""

    code, title = "already_recorded", "Already recorded for this request"


class AlreadySuperseded(Conflict):
    """Another request has taken up this one's wish; its id is `superseded_by`."""

    code, title = "already_superseded", "Another request has taken up this one's wish"


class RequestChanged(Conflict):
    """What is said of the request was changed since it was read: read it again before you decide."""

    code, title = "request_changed", "The request was changed since it was read"


class VersionMismatch(ServiceError):
    """The request changed since the ETag was given: read it again."""

    status, code, title = 412, "version_mismatch", "Changed since the ETag in If-Match was given"


class PreconditionRequired(ServiceError):
    """A change says what it changes: If-Match with the ETag that was read."""

    status, code, title = 428, "precondition_required", "If-Match with the ETag that was read is required"


class QuotaExceeded(ServiceError):
    """As many requests wait as may."""

    status, code, title, retryable, retry_after = 429, "quota_exceeded", "As many requests wait as may", True, 60


class SelfApproval(ServiceError):
    """Two people are needed."""

    status, code, title = 403, "self_approval_forbidden", "Another person must approve what you asked for"


class BodyTooLarge(ServiceError):
    """The body is over the limit."""

    status, code, title = 413, "body_too_large", "The body is over the limit"


class Unprocessable(ServiceError):
    """The request is well formed and cannot be meant."""

    status, code, title = 422, "validation_failed", "The request is well formed but invalid"


class UnknownClass(Unprocessable):
    """A class that the model does not have."""

    code, title = "unknown_class", "The model has no such class"


class UnknownSample(Unprocessable):
    """An id that the dataset does not have."""

    code, title = "unknown_sample", "The dataset has no such item"


class HeldOutSample(Unprocessable):
    """An item that nothing was trained on: there is nothing to forget, and verification needs it."""

    code, title = "held_out_sample", "A held-out item was not trained on"


class EmptiedClass(Unprocessable):
    """Forgetting these items would leave a retained class without a training item."""

    code, title = "emptied_class", "A retained class would be left without a training item"


class SamplesUnverifiable(Unprocessable):
    """No verifier can tell whether a model of this kind has forgotten single items."""

    code, title = "samples_unverifiable", "Forgetting single samples cannot be verified for this kind of model"


class UnknownPolicy(Unprocessable):
    """No verification policy that a request may name has this name."""

    code, title = "unknown_policy", "No such verification policy"


class PolicyUnfit(Unprocessable):
    """The verification policy cannot be kept for this model, its data and what is to be forgotten."""

    code, title = "policy_unfit", "The verification policy does not fit the model, its data or what is forgotten"


class RetainUnsupported(Unprocessable):
    """Methods for this kind of model may look at other data than a request could choose."""

    code, title = "retain_unsupported", "Retain data cannot be chosen for this kind of model"


class RetainUnfit(Unprocessable):
    """The retain data contradict the wish, each other, or the model's own images."""

    code, title = "retain_unfit", "The retain data do not fit the request or the model"


class ProxyForgotten(Unprocessable):
    """Images of a class that is to be forgotten would be trained on in the place of retained ones."""

    code, title = "proxy_forgotten", "Proxy data must not hold a class that is forgotten"


class NothingToRetain(Unprocessable):
    """Forgetting every class leaves nothing to retain."""

    code, title = "nothing_to_retain", "At least one class must be retained"


class AlreadyForgotten(Unprocessable):
    """The model's current version has already forgotten this class, or this item."""

    code, title = "already_forgotten", "Already forgotten by the current version"


class UnknownMethod(Unprocessable):
    """The model's family has no such method."""

    code, title = "unknown_method", "The model's family has no such method"


class UnknownFamily(Unprocessable):
    """No such model family."""

    code, title = "unknown_family", "No such model family"


class InvalidParams(Unprocessable):
    """A method parameter is unknown or out of range."""

    code, title = "invalid_params", "A method parameter is unknown or out of range"


class ComplianceUnfit(Unprocessable):
    """What is recorded about the law does not fit the request's jurisdiction, or the clock."""

    code, title = "compliance_unfit", "Does not fit the request's jurisdiction or its dates"


class IdempotencyKeyReused(Unprocessable):
    """The Idempotency-Key was used with another body."""

    code, title = "idempotency_key_reused", "The Idempotency-Key was used with another body"


class BadLocation(Unprocessable):
    """The location cannot be read, or holds what it must not."""

    code, title = "bad_location", "The location cannot be registered"


class PickleWeights(Unprocessable):
    """Weights must be safetensors: a pickle runs code when it is loaded."""

    code, title = "pickle_weights", "Weights must be safetensors"


class InvalidCursor(Unprocessable):
    """The page cursor is not one of ours."""

    code, title = "invalid_cursor", "The page cursor is not valid"


class Unavailable(ServiceError):
    """The database cannot be reached just now."""

    status, code, title, retryable = 503, "unavailable", "The service is not available just now", True


class NotYetSigned(Unavailable):
    """The entry is in the ledger, and no checkpoint that the policy accepts covers it yet."""

    code, title, retry_after = "not_yet_signed", "No accepted checkpoint covers it yet", 10
