"""What must hold when everything has come to rest, counted from the tables, the store and the process list alone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from sqlalchemy import select

from service import db
from service.audit import repository
from service.certificates.dsse import payload_of
from service.config import get_settings
from service.requests.lifecycle import TERMINAL
from service.storage import get_store
from service.tables import Attempt, Checkpoint, CheckpointFile, LedgerEntry, Model, ModelVersion, UnlearnRequest
from service.verifier.merkle import Frontier, leaf_hash
from tests.faults.stack import Stack
from tests.worker.conductor import house as h

AFTER_SECONDS = 15.0
"""So long after the end a process of a request may still be on its way out."""
OUTCOME_ACTIONS = {"lost": "run.lost", "drained": "run.stopped", "paused": "run.stopped", "cancelled": "run.stopped"}
"""How the ledger calls the end of an attempt; one that failed is `run.failed`, and one that succeeded published."""


@dataclass
class Counts:
    """Zeros, or something is wrong; `why` says what."""

    lost: int = 0
    """Accepted and not in the tables, or the other way round; or published and not to be had as it was certified."""
    doubled: int = 0
    """Published more than once, or more than one version for one publication."""
    zombie_publishes: int = 0
    """Published under a fence that was not the request's last claim, or by an attempt that had ended otherwise."""
    unaudited_changes: int = 0
    """Changes of state without their ledger entry, entries without their change, or a chain that does not add up."""
    stuck: int = 0
    """Not ended, though nothing is broken any more; or a process still at work for a request that has ended."""
    why: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.why

    def add(self, kind: str, why: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.why.append(f"{kind}: {why}")

    def shown(self) -> dict[str, Any]:
        return {name: number for name, number in asdict(self).items() if name != "why"}


def check(stack: Stack) -> Counts:
    """Count. Call it when the queue is empty."""
    counts = Counts()
    with db.reading() as session:
        rows = {r.id: r for r in session.scalars(select(UnlearnRequest))}
        checkpoints = list(session.scalars(select(Checkpoint)))
        attempts = list(session.scalars(select(Attempt).order_by(Attempt.fence)))
        files = list(session.scalars(select(CheckpointFile)))
        versions = list(session.scalars(select(ModelVersion)))
        models = {m.id: m for m in session.scalars(select(Model))}
        entries = list(session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq)))
        root = repository.root(session, repository.size(session))
    _requests(counts, stack, rows, checkpoints)
    _publications(counts, rows, checkpoints, attempts, versions, models)
    _files(counts, checkpoints, files)
    _ledger(counts, rows, checkpoints, attempts, entries, root)
    _processes(counts, stack)
    return counts


def _requests(counts: Counts, stack: Stack, rows: dict[str, UnlearnRequest], checkpoints: list[Checkpoint]) -> None:
    for request_id in stack.accepted - set(rows):
        counts.add("lost", f"{request_id} was accepted and has no row")
    for request_id in set(rows) - stack.accepted:
        counts.add("lost", f"{request_id} has a row that nobody was told of")
    published = {c.request_id for c in checkpoints}
    for row in rows.values():
        if row.status not in TERMINAL:
            counts.add("stuck", f"{row.id} is {row.status}")
        if (row.status == "succeeded") != (row.id in published):
            counts.add("lost", f"{row.id} is {row.status}, and published: {row.id in published}")
        if row.status in TERMINAL and (row.lease_owner is not None or row.lease_expires_at is not None):
            counts.add("stuck", f"{row.id} has ended and is still held")


def _publications(
    counts: Counts,
    rows: dict[str, UnlearnRequest],
    checkpoints: list[Checkpoint],
    attempts: list[Attempt],
    versions: list[ModelVersion],
    models: dict[str, Model],
) -> None:
    for request_id, times in Counter(c.request_id for c in checkpoints).items():
        if times > 1:
            counts.add("doubled", f"{request_id} was published {times} times")
    made = Counter(v.checkpoint_id for v in versions if v.checkpoint_id)
    for checkpoint in checkpoints:
        if made[checkpoint.id] != 1:
            counts.add("doubled", f"{checkpoint.id} has {made[checkpoint.id]} versions")
        mine = [a for a in attempts if a.request_id == checkpoint.request_id]
        won = [a.fence for a in mine if a.outcome == "succeeded"]
        if won != [checkpoint.fence] or rows[checkpoint.request_id].fence != checkpoint.fence or mine[-1].fence != won[-1]:
            counts.add("zombie_publishes", f"{checkpoint.request_id}: published under {checkpoint.fence}, runs {_runs(mine)}")
    for model in models.values():
        numbers = sorted(v.number for v in versions if v.model_id == model.id)
        if numbers != list(range(1, model.current_version + 1)):
            counts.add("doubled", f"{model.id} has versions {numbers}, and is at {model.current_version}")


def _runs(attempts: list[Attempt]) -> list[tuple[int, str | None]]:
    return [(a.fence, a.outcome) for a in attempts]


def _files(counts: Counts, checkpoints: list[Checkpoint], files: list[CheckpointFile]) -> None:
    """Every byte that was certified is there, and the signature is the signer's."""
    settings = get_settings()
    store, seen = get_store(settings), set()
    for file in files:
        if file.sha256 in seen:
            continue
        seen.add(file.sha256)
        with store.open(file.sha256) as stream:
            data = stream.read()
        if hashlib.sha256(data).hexdigest() != file.sha256 or len(data) != file.size:
            counts.add("lost", f"{file.checkpoint_id}: {file.path} is not what was published")
    if not checkpoints:
        return
    key = load_pem_public_key(settings.public_key_file.read_bytes())
    for checkpoint in checkpoints:
        if not _is_signed(checkpoint.certificate["dsseEnvelope"], key):
            counts.add("lost", f"{checkpoint.id}: its certificate is not the signer's")
        named = {s["digest"]["sha256"] for s in json.loads(payload_of(checkpoint.certificate))["subject"]}
        kept = {f.sha256 for f in files if f.checkpoint_id == checkpoint.id}
        if not kept or kept - named:
            counts.add("lost", f"{checkpoint.id}: its certificate names other files")


def _is_signed(envelope: dict[str, Any], key: Any) -> bool:
    """DSSE v1, PAE(type, body) under ECDSA P-256."""
    kind, body = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
    try:
        key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _ledger(
    counts: Counts,
    rows: dict[str, UnlearnRequest],
    checkpoints: list[Checkpoint],
    attempts: list[Attempt],
    entries: list[LedgerEntry],
    root: bytes,
) -> None:
    said = Counter((e.request_id, e.action) for e in entries)
    for row in rows.values():
        mine = [a for a in attempts if a.request_id == row.id]
        expected: Counter[str] = Counter({"run.started": len(mine), "unlearning.request.closed": int(row.status in TERMINAL)})
        for attempt in mine:
            if attempt.outcome in OUTCOME_ACTIONS:
                expected[OUTCOME_ACTIONS[attempt.outcome]] += 1
            elif attempt.outcome == "failed":
                expected["run.failed"] += 1
            elif attempt.outcome is None and row.status in TERMINAL:
                counts.add("unaudited_changes", f"{row.id}: the run under fence {attempt.fence} has no end")
        published = sum(c.request_id == row.id for c in checkpoints)
        expected.update({"certificate.issued": published, "model.published": published})
        names = {*expected, *OUTCOME_ACTIONS.values(), "run.failed"}
        wrong = {name: (expected[name], said[row.id, name]) for name in names if expected[name] != said[row.id, name]}
        if wrong:
            counts.add("unaudited_changes", f"{row.id} {row.status}: expected and found {wrong}")
    if [e.seq for e in entries] != list(range(len(entries))):
        counts.add("unaudited_changes", "the ledger's sequence has a gap")
    tree = Frontier()
    for entry in entries:
        tree.append(leaf_hash(entry.leaf))
    if tree.root() != root:
        counts.add("unaudited_changes", "the ledger's root is not its entries'")


def _processes(counts: Counts, stack: Stack) -> None:
    try:
        h.until(lambda: not stack.engines(), AFTER_SECONDS)
    except AssertionError:
        counts.add("stuck", f"{len(stack.engines())} processes work for requests that have ended, as seen by {os.getpid()}")


def require(stack: Stack, seconds: float | None = None) -> Counts:
    """Drain, count, and fail on anything but zeros."""
    stack.drain(*(() if seconds is None else (seconds,)))
    counts = check(stack)
    assert counts.clean, counts.why
    return counts
