"""What an audit entry says: one closed model per event type, and its canonical bytes. Pure.

A leaf is the RFC 8785 form of a JSON object with ASCII keys, no floats (decimals are strings), integers below 2^53 and UTC
microseconds; at most 65,535 bytes (the entry limit of C2SP tlog-tiles). Entries can never be erased, so nothing about a
person enters one: classes are indices, never names; `reason`, `external_id` and `metadata` appear only as an HMAC under a
random salt that can be destroyed, and as the digest of a ciphertext whose key can be. Ids of single samples may be personal
data too (a file is easily named after a person), and there may be 100,000 of them: an entry holds how many.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

LEAF_VERSION = 1
MAX_LEAF_BYTES = 65_535
SALT_BYTES = 32

Outcome = Literal["succeeded", "failed", "denied"]
Sha256 = str


class Fact(BaseModel):
    """The public part of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    action: ClassVar[str]
    outcome: ClassVar[Outcome] = "succeeded"


class SampleDigest(BaseModel):
    """How many samples. Entries of older releases say to whoever has the list which ones, too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    sha256: Sha256 | None = Field(default=None, description="of entries of older releases")


def sample_count(ids: Collection[str]) -> SampleDigest | None:
    """How many there are; None: none. An entry can never be erased, so it holds nothing that could confirm a guess of them."""
    return SampleDigest(count=len(ids)) if ids else None


def sample_digest(request_id: str, ids: Iterable[str]) -> SampleDigest:
    """SHA-256 of the RFC 8785 JSON `[request id, [ids in ascending order]]`.

    It has no salt: somebody who guesses the whole list can confirm the guess. So it is kept where it can be erased; entries and
    certificates of older releases hold it in the open.

    Args:
        ids: in any order, each once. Ascending means by Unicode code points.
    """
    ordered = sorted(ids)
    return SampleDigest(count=len(ordered), sha256=hashlib.sha256(canonical([request_id, ordered])).hexdigest())


class DatasetRegistered(Fact):
    """A dataset may now be named by models."""

    action = "dataset.registered"
    dataset_id: str
    digest: Sha256
    format: str
    files: int
    held_out: int


class ModelRegistered(Fact):
    """A lineage begins: these weights are its root."""

    action = "model.registered"
    family: str
    dataset_id: str
    version_id: str
    digest: Sha256


class RetainChosen(BaseModel):
    """What the unlearner may look at to keep the rest: classes by index, the share of real images, and what stands in."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    real: str = Field(description="a decimal, 0 to 1")
    classes: tuple[int, ...] | None = Field(description="None: all that are neither forgotten nor proxy")
    proxy_classes: tuple[int, ...]
    proxy_dataset_id: str | None
    proxy_dataset_digest: Sha256 | None


class RequestReceived(Fact):
    """Somebody asked a model to forget classes, or samples: one of the two is empty."""

    action = "unlearning.request.received"
    classes: tuple[int, ...]
    samples: SampleDigest | None = None
    retain: RetainChosen | None = None
    method: str
    params_sha256: Sha256
    seed: int
    policy_sha256: Sha256
    jurisdiction: str | None = Field(default=None, description="which law's clock runs")
    received_at: str | None = Field(default=None, description="when the person asked; the entry is when it was recorded")
    due_at: str | None = Field(default=None, description="as the rules of that day have it: later rules do not move it")
    recipients: tuple[str, ...] | None = Field(default=None, description="who was given the data and is to be told")
    supersedes: str | None = Field(default=None, description="the request whose wish, and whose law's clock, it takes up")
    priority: str | None = Field(default=None, description="None: standard")
    gpu_class: str | None = Field(default=None, description="None: default")
    approvals: int | None = Field(default=None, description="others who must approve it before it runs; None: nobody")


class RequestWithdrawn(Fact):
    """Somebody asked to cancel."""

    action = "unlearning.request.withdrawn"
    status: str


class RequestClosed(Fact):
    """The request has ended; its status never changes again."""

    action = "unlearning.request.closed"
    status: str


class RequestPaused(Fact):
    """Somebody asked to pause it (`pausing`), or no worker is at it any more until somebody resumes it (`paused`)."""

    action = "unlearning.request.paused"
    status: Literal["pausing", "paused"]


class RequestResumed(Fact):
    """Somebody put it back into the queue."""

    action = "unlearning.request.resumed"


class RequestAmended(Fact):
    """Somebody changed what may be changed of a request that has not ended. What a client said of it is a commitment only."""

    action = "unlearning.request.amended"
    priority: Literal["urgent", "standard", "bulk"] | None = Field(default=None, description="None: as it was")
    changed: tuple[Literal["external_id", "metadata", "priority"], ...]


class RequestSuperseded(Fact):
    """A new request takes up the wish of this one, which ended without a result."""

    action = "unlearning.request.superseded"
    by: str


class RunStarted(Fact):
    """A worker holds the request."""

    action = "run.started"
    fence: int
    base_version_id: str


class PlanCommitted(Fact):
    """Algorithm, parameters, thresholds and inputs, fixed before the run."""

    action = "plan.committed"
    fence: int
    spec_sha256: Sha256
    policy_sha256: Sha256
    base_digest: Sha256
    original_digest: Sha256
    dataset_digest: Sha256
    proxy_digest: Sha256 | None = None
    rung: int | None = Field(default=None, description="which of the request's recipes this is, from 1")
    rungs: int | None = Field(default=None, description="how many it has")
    method: str | None = None
    params_sha256: Sha256 | None = None


class RunFinished(Fact):
    """The loop ran to its end and left a manifest."""

    action = "run.finished"
    fence: int
    candidate_digest: Sha256
    iterations: int


class RunStopped(Fact):
    """The worker gave the request back unharmed."""

    action = "run.stopped"
    fence: int


class RunLost(Fact):
    """The worker fell silent and its lease ran out."""

    action = "run.lost"
    outcome = "failed"
    fence: int


class RunFailed(Fact):
    """The run ended without a result."""

    action = "run.failed"
    outcome = "failed"
    fence: int
    code: str


class _Evaluation(Fact):
    """What verification said of a saved result. Entries of older releases do not know of rungs."""

    fence: int
    verdict: str
    report_sha256: Sha256
    findings_sha256: Sha256 | None = None
    rung: int | None = Field(default=None, description="which of the request's recipes it is a result of, from 1")
    rungs: int | None = Field(default=None, description="how many it has: the chance of a false PASS is shared among them")


class EvaluationFinished(_Evaluation):
    """The saved result passed the gate."""

    action = "evaluation.finished"


class EvaluationRejected(_Evaluation):
    """The saved result did not pass the gate; nothing is published."""

    action = "evaluation.rejected"
    outcome = "failed"


class CertificateIssued(Fact):
    """The signer signed this payload."""

    action = "certificate.issued"
    checkpoint_id: str
    payload_sha256: Sha256
    key_id: str


class CertificateSuperseded(Fact):
    """A later version of the lineage was certified: this one is current no more."""

    action = "certificate.superseded"
    checkpoint_id: str
    by: str


RevocationReason = Literal["key_compromised", "result_wrong", "data_wrong", "unlawful", "withdrawn", "other"]


class RevocationAsked(Fact):
    """Somebody asked that a certificate be taken back; a second person decides."""

    action = "certificate.revocation.asked"
    checkpoint_id: str
    reason: RevocationReason


class CertificateRevoked(Fact):
    """A certificate was taken back: its checkpoint is downloaded no more, and whoever holds a copy should not rely on it."""

    action = "certificate.revoked"
    checkpoint_id: str
    payload_sha256: Sha256
    reason: RevocationReason
    self_approved: bool


Disposition = Literal["withdrawn", "quarantined", "destroyed"]


class ParentDisposed(Fact):
    """What became of a version that still knows what a later one has forgotten: the operator's statement."""

    action = "model.parent.disposed"
    version_id: str
    number: int
    digest: Sha256
    state: Disposition


class CachesPurged(Fact):
    """What had been computed from the forgotten data and was kept on a worker's disk is there no more."""

    action = "caches.purged"
    fence: int
    entries: int


class StoredFilesGivenUp(Fact):
    """Files that a run put into the store, and that nothing published names, are deleted once nobody wrote them again."""

    action = "store.files.given_up"
    fence: int
    files: tuple[Sha256, ...] = Field(description="their digests")


class ModelPublished(Fact):
    """The lineage has a new current version."""

    action = "model.published"
    checkpoint_id: str
    version_id: str
    number: int
    digest: Sha256
    forgotten_classes: tuple[int, ...]
    forgotten_samples: SampleDigest | None = None


class _KeyFact(Fact):
    """A verifier key of the log: whoever knows it can check what the log signs."""

    use: Literal["ledger"] = "ledger"
    vkey: str = Field(description="C2SP verifier key: name, id, type and public key")


class KeyAdded(_KeyFact):
    """The log signs with this key, too, from now on."""

    action = "key.added"


class KeyRetired(_KeyFact):
    """The log signs with this key no more."""

    action = "key.retired"


class EntryRedacted(Fact):
    """The text of an earlier entry was taken away; its hash, and so the tree, stays."""

    action = "entry.redacted"
    seq: int
    ground: str
    requested_by: str | None = None
    self_approved: bool | None = Field(default=None, description="true: nobody but the actor looked at it")


class PrivateShredded(Fact):
    """What opens the commitments of earlier entries was destroyed."""

    action = "private.shredded"
    seqs: tuple[int, ...]
    ground: str


class Actor(BaseModel):
    """Who did it: a person, a key or a part of the service. Never a name or an address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["user", "service", "worker"]
    id: str = Field(pattern=r"^[A-Za-z0-9._|@:-]{1,160}$")

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


LOCAL = Actor(kind="user", id="local")
"""Where no credentials are required, every caller on the loopback is this one."""


def rfc3339(at: datetime) -> str:
    """UTC with microseconds, always six digits: the string is hashed, so it may not vary."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes. Raises: rfc8785.CanonicalizationError for NaN, integers of 2^53 and more, or keys that are no strings."""
    return rfc8785.dumps(value)


def commitment(salt: bytes, private: dict[str, Any]) -> str:
    """HMAC-SHA256 of the canonical private part: opens only for who has the salt and the very same values."""
    return hmac.new(salt, canonical(without_floats(private)), hashlib.sha256).hexdigest()


def without_floats(value: Any) -> Any:
    """Numbers a client may put into metadata, in a form that RFC 8785 takes without loss."""
    match value:
        case bool() | None | str():
            return value
        case int() if abs(value) < 2**53:
            return value
        case int() | float():
            return repr(value)
        case dict():
            return {k: without_floats(v) for k, v in value.items()}
        case list() | tuple():
            return [without_floats(v) for v in value]
        case _:
            raise TypeError(f"expected a JSON value, got {type(value).__name__}")


def leaf(
    fact: Fact,
    *,
    at: datetime,
    tenant: str,
    actor: Actor,
    request: tuple[str, int, bytes | None] | None,
    model_id: str | None,
    subject_commitment: str | None,
    private_sha256: Sha256 | None = None,
) -> bytes:
    """The entry's canonical bytes.

    Args:
        request: id, ordinal within the request, and leaf hash of the request's previous entry: each request's history is a
            chain of its own, so one dossier proves that nothing in its middle was left out.
        private_sha256: `private_digest` of the row that holds what must not be in the entry.

    Raises:
        ValueError: longer than 65,535 bytes.
    """
    body = {
        "v": LEAF_VERSION,
        "type": fact.action,
        "at": rfc3339(at),
        "tenant": tenant,
        "actor": {"kind": actor.kind, "id": actor.id},
        "outcome": fact.outcome,
        "request": None
        if request is None
        else {"id": request[0], "ordinal": request[1], "prev": request[2].hex() if request[2] else None},
        "model": model_id,
        "subjectCommitment": subject_commitment,
        "privateSha256": private_sha256,
        "public": fact.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    data = canonical(body)
    if len(data) > MAX_LEAF_BYTES:
        raise ValueError(f"an audit entry holds at most {MAX_LEAF_BYTES} bytes, got {len(data)}")
    return data


def private_digest(kek_id: str, salt: bytes, dek_wrapped: bytes, ciphertext: bytes) -> str:
    """SHA-256 over a private row's key name, a line feed, salt, wrapped key and ciphertext: none of them changes unseen."""
    return hashlib.sha256(kek_id.encode() + b"\n" + salt + dek_wrapped + ciphertext).hexdigest()
