"""A ledger of a million entries: proofs out of its stored tree, and its export verified by a process of its own.

Its entries are put together from a few that `leaves.leaf` wrote, and its rows are inserted in bulk: appending them one by one
is what `appends` measures.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from service import db
from service.audit import archive, export, leaves, notes, repository
from service.audit.export import Private, Stored
from service.audit.leaves import LOCAL, Fact
from service.audit.ledger import LOG_ID
from service.tables import LedgerEntry
from service.verifier.merkle import Frontier, leaf_hash, root_of_inclusion
from service.verifier.note import ED25519, Checkpoint

ROOT = Path(__file__).resolve().parents[3]
ORIGIN, TENANT, MODEL = "bench.example/ledger", "default", "mdl_" + "0" * 32
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
APART = timedelta(milliseconds=1)
REQUEST, PREVIOUS, WHEN = "ureq_" + "f" * 32, b"\xee" * 32, datetime(2099, 12, 31, tzinfo=UTC)
"""What the patterns say where an entry says something of its own."""
SHA = "5a" * 32
BATCH = 10_000


@dataclass(slots=True)
class Entry:
    """A row of `ledger_entry`."""

    seq: int
    leaf: bytes
    leaf_hash: bytes
    action: str
    outcome: str
    at: datetime
    tenant: str
    actor: str
    request_id: str
    request_ordinal: int
    model_id: str
    redacted_by: None = None


def facts() -> list[Fact]:
    """What one request that ends well leaves behind."""
    return [
        leaves.RequestReceived(classes=(3,), method="sfron", params_sha256=SHA, seed=1_234_567_890, policy_sha256=SHA),
        leaves.RunStarted(fence=1, base_version_id="mver_" + "0" * 32),
        leaves.PlanCommitted(
            fence=1, spec_sha256=SHA, policy_sha256=SHA, base_digest=SHA, original_digest=SHA, dataset_digest=SHA,
            rung=1, rungs=1, method="sfron", params_sha256=SHA,
        ),
        leaves.RunFinished(fence=1, candidate_digest=SHA, iterations=50),
        leaves.EvaluationFinished(fence=1, verdict="PASS", report_sha256=SHA, findings_sha256=SHA, rung=1, rungs=1),
        leaves.CertificateIssued(checkpoint_id="ckpt_" + "0" * 32, payload_sha256=SHA, key_id=SHA),
        leaves.ModelPublished(
            checkpoint_id="ckpt_" + "0" * 32, version_id="mver_" + "0" * 32, number=2, digest=SHA, forgotten_classes=(3,)
        ),
        leaves.RequestClosed(status="succeeded"),
    ]  # fmt: skip


def entries(size: int) -> Iterator[Entry]:
    """The same ones every time: requests one after the other, a millisecond between entries."""
    steps, patterns = facts(), [_pattern(fact, ordinal) for ordinal, fact in enumerate(facts())]
    previous = b""
    for seq in range(size):
        number, ordinal = divmod(seq, len(steps))
        request, at = f"ureq_{number:032x}", BEGIN + seq * APART
        own = {b"at": leaves.rfc3339(at), b"id": request, b"prev": previous.hex()}
        told = patterns[ordinal] % {place: value.encode() for place, value in own.items()}
        previous, fact = leaf_hash(told), steps[ordinal]
        yield Entry(seq, told, previous, fact.action, fact.outcome, at, TENANT, str(LOCAL), request, ordinal, MODEL)


def _pattern(fact: Fact, ordinal: int) -> bytes:
    """An entry's text with places for its time, its request and the entry before it."""
    previous = PREVIOUS if ordinal else None
    whole = leaves.leaf(
        fact, at=WHEN, tenant=TENANT, actor=LOCAL, request=(REQUEST, ordinal, previous), model_id=MODEL,
        subject_commitment=None if ordinal else SHA,
    ).replace(b"%", b"%%")  # fmt: skip
    for said, place in ((leaves.rfc3339(WHEN), b"at"), (REQUEST, b"id"), (PREVIOUS.hex(), b"prev")):
        whole = re.sub(re.escape(said.encode()), b"%(" + place + b")s", whole)
    return whole


def private(size: int) -> Iterator[Private]:
    """One row a request."""
    return (Private(seq) for seq in range(0, size, len(facts())))


# ---------------------------------------------------------------------------------------------------------------- proofs


def fill(size: int) -> None:
    """The process's own SQLite database, which is new, with `size` entries and their tree; triggers want them one by one."""
    tree = Frontier()
    with db.transaction() as session:
        raw = session.connection().connection.driver_connection
        asked = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name IN (?, ?, ?)"
        guards = raw.execute(asked, ("ledger_entry_in_order", "ledger_entry_in_time", "ledger_entry_as_said")).fetchall()
        for name, _ in guards:
            raw.execute(f"DROP TRIGGER {name}")
        for batch in batches(entries(size)):
            raw.executemany(
                "INSERT INTO ledger_entry (log_id, seq, leaf, leaf_hash, action, outcome, at, tenant, actor, request_id, "
                "request_ordinal, model_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (LOG_ID, e.seq, e.leaf, e.leaf_hash, e.action, e.outcome, f"{e.at:%Y-%m-%d %H:%M:%S.%f}", e.tenant, e.actor,
                     e.request_id, e.request_ordinal, e.model_id)
                    for e in batch
                ],
            )  # fmt: skip
            made = [(LOG_ID, *node) for e in batch for node in tree.append(e.leaf_hash)]
            raw.executemany("INSERT INTO ledger_node (log_id, level, idx, hash) VALUES (?, ?, ?, ?)", sorted(made))
        for _, guard in guards:
            raw.execute(guard)
        raw.execute("DROP TRIGGER ledger_head_forward")
        last = f"{BEGIN + (size - 1) * APART:%Y-%m-%d %H:%M:%S.%f}"
        raw.execute("UPDATE ledger_head SET size = ?, last_at = ?, frontier = ?", (size, last, b"".join(tree.hashes)))


def batches(rows: Iterable[Entry]) -> Iterator[list[Entry]]:
    """In lists of `BATCH`, the last one shorter."""
    batch: list[Entry] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def inclusion_ms(size: int, count: int = 300) -> float:
    """Milliseconds to build an inclusion proof out of the stored tree, a median over entries all over it; each one holds."""
    places, times = [k * size // count for k in range(count)], []
    with db.reading() as session:
        root = repository.root(session, size)
        for seq in places:
            began = time.perf_counter()
            proof = repository.inclusion(session, seq, size)
            times.append(time.perf_counter() - began)
            leaf = session.scalars(select(LedgerEntry.leaf_hash).where(LedgerEntry.seq == seq)).one()
            if root_of_inclusion(seq, size, leaf, proof) != root:
                raise AssertionError(f"the proof of entry {seq} does not lead to the root")
    return statistics.median(times) * 1000


# ---------------------------------------------------------------------------------------------------------- verification


def exported(folder: Path, size: int) -> Path:
    """An export of `size` entries, written as production does, under `folder/export`; the policy is in `folder/policy`."""
    tree, key = Frontier(), Ed25519PrivateKey.generate()
    for entry in entries(size):
        tree.append(entry.leaf_hash)
    said = Checkpoint(ORIGIN, size, tree.root()).text
    policy = f"log {notes.verifier_key(ORIGIN, ED25519, key)}\nquorum none\n"
    (folder / "policy").write_text(policy)
    export.write(
        folder / "export",
        entries=entries(size),
        checkpoints=[Stored(size, notes.note(said, [notes.signature(ORIGIN, key, said)]))],
        private=private(size),
        policy=policy,
        schemas=archive.schemas(),
        created_at=WHEN,
    )
    return folder / "export"


class Run(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    """Resident memory."""


def verified(folder: Path, size: int) -> Run:
    """A process that verifies the export. Raises: RuntimeError: it refuses."""
    command = [sys.executable, "-m", "service.verifier", "ledger", str(folder / "export"), "--policy", str(folder / "policy")]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    told: dict[str, Any] = json.loads(said or "{}")
    if child.returncode or told.get("entries") != size:
        raise RuntimeError(f"the export of {size} entries was refused: {said[:300]}")
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
