"""The whole ledger as a folder that anybody can check: C2SP's tiles, every checkpoint, and each entry as a line of JSON.

Pure but for the folder it writes: entries come in and are written as they come, a bundle of 256 in memory at a time.
Sources: c2sp.org/tlog-tiles; `service.verifier.ledger` reads it back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from service.audit.leaves import rfc3339
from service.verifier.ledger import HEIGHT, WIDTH, tile
from service.verifier.merkle import EMPTY, HASH_BYTES, Frontier
from service.verifier.note import Checkpoint, Note


class Inconsistent(ValueError):
    """The entries are not those that the newest checkpoint signs; an export of them would not verify."""


class Entry(Protocol):
    """A row of the ledger: `service.tables.LedgerEntry` is one."""

    seq: Any
    leaf: Any
    leaf_hash: Any
    action: Any
    outcome: Any
    at: Any
    tenant: Any
    actor: Any
    request_id: Any
    request_ordinal: Any
    model_id: Any
    redacted_by: Any


@dataclass(frozen=True)
class Private:
    """What may be known of an entry's private part: neither salt nor content."""

    seq: int
    private_sha256: str | None = None
    shredded_at: datetime | None = None
    kek_id: str | None = None


@dataclass(frozen=True)
class Stored:
    """A checkpoint as it is kept."""

    size: int
    note: str
    time_stamp: bytes | None = None


def write(
    folder: Path,
    *,
    entries: Iterable[Entry],
    checkpoints: Sequence[Stored],
    private: Iterable[Private],
    policy: str,
    schemas: Mapping[str, Any],
    created_at: datetime,
) -> dict[str, Any]:
    """Write an export at the size of the newest checkpoint. Returns its manifest.

    Args:
        folder: must not exist yet, or be empty.
        entries: in order from 0; those beyond the newest checkpoint are left out.
        checkpoints: in the order in which they were signed, at least one.
        private: in order of their entries.
        policy: C2SP tlog-policy.
        schemas: JSON schema of every event type.

    Raises:
        Inconsistent: there are fewer entries, or others, than the newest checkpoint signs.
        FileExistsError: the folder holds something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    newest = max(enumerate(checkpoints), key=lambda one: (one[1].size, one[0]))[1]
    signed = Checkpoint.parse(Note.parse(newest.note).text)
    out = _Folder(folder)
    out.put("checkpoint", newest.note.encode())
    counts: dict[int, int] = {}
    for one in checkpoints:
        counts[one.size] = k = counts.get(one.size, -1) + 1
        out.put(f"checkpoints/{one.size}-{k}.note", one.note.encode())
        if one.time_stamp is not None:
            out.put(f"checkpoints/{one.size}-{k}.tsr", one.time_stamp)
    redacted = _entries(out, islice(entries, signed.size), signed)
    with out.stream("private.ndjson") as file:
        for row in private:
            if row.seq < signed.size:
                shredded = None if row.shredded_at is None else rfc3339(row.shredded_at)
                said = {"seq": row.seq, "private_sha256": row.private_sha256, "shredded_at": shredded, "kek_id": row.kek_id}
                file.write(_line(said))
    manifest = {"origin": signed.origin, "size": signed.size, "created_at": rfc3339(created_at), "redacted": redacted}
    out.put("policy.txt", policy.encode())
    out.put("schema.json", _line(dict(schemas)))
    out.put("manifest.json", _line(manifest))
    out.close()
    return manifest


def _entries(out: _Folder, entries: Iterable[Entry], signed: Checkpoint) -> list[dict[str, int]]:
    tree, bundle, hashes, redacted = Frontier(), bytearray(), dict[int, bytearray](), []
    with out.stream("entries.ndjson") as file:
        for entry in entries:
            if entry.seq != tree.size:
                raise Inconsistent(f"entry {tree.size} is missing")
            file.write(_line(as_json(entry)))
            text = entry.leaf or b""
            bundle += len(text).to_bytes(2, "big") + text
            if entry.leaf is None:
                redacted.append({"seq": entry.seq, "by": entry.redacted_by})
            for level, idx, value in tree.append(entry.leaf_hash):
                if level % HEIGHT == 0:
                    kept = hashes.setdefault(level // HEIGHT, bytearray())
                    kept += value
                    if idx % WIDTH == WIDTH - 1:
                        out.put(tile(level // HEIGHT, idx // WIDTH), bytes(kept))
                        kept.clear()
            if tree.size % WIDTH == 0:
                out.put(tile("entries", tree.size // WIDTH - 1), bytes(bundle))
                bundle.clear()
    if (tree.size, tree.root() if tree.size else EMPTY) != (signed.size, signed.root):
        raise Inconsistent(f"the newest checkpoint signs another tree of {signed.size} entries than these {tree.size}")
    if bundle:
        out.put(tile("entries", tree.size // WIDTH, tree.size % WIDTH), bytes(bundle))
    for level, kept in hashes.items():
        if kept:
            out.put(tile(level, tree.size >> HEIGHT * (level + 1), len(kept) // HASH_BYTES), bytes(kept))
    return redacted


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as `entries.ndjson` has it: the canonical text itself, so that its hash can be checked byte for byte."""
    text = {"redacted_by": entry.redacted_by} if entry.leaf is None else {"leaf": entry.leaf.decode()}
    return {
        "seq": entry.seq,
        "leaf_hash": entry.leaf_hash.hex(),
        **text,
        "action": entry.action,
        "outcome": entry.outcome,
        "at": rfc3339(entry.at),
        "tenant": entry.tenant,
        "actor": entry.actor,
        "request_id": entry.request_id,
        "request_ordinal": entry.request_ordinal,
        "model_id": entry.model_id,
    }


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Folder:
    """Files, and their digests as they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    def put(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._digests[name] = hashlib.sha256(data).hexdigest()

    @contextmanager
    def stream(self, name: str) -> Iterator[_Hashed]:
        with (self._folder / name).open("wb") as file:
            hashed = _Hashed(file)
            yield hashed
        self._digests[name] = hashed.digest.hexdigest()

    def close(self) -> None:
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self._digests.items())]
        (self._folder / "SHA256SUMS").write_text("".join(lines))


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
