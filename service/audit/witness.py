"""A witness: somebody else's process that remembers the largest tree of a log it has seen, and cosigns nothing but extensions.

Run it where the ledger's operator has no say: with it, rewriting history takes two. It has a key and one file of state, asks no
database, and knows a log by its verifier keys alone. Source: C2SP tlog-witness (add-checkpoint and monitor retrieval).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from service import durable
from service.audit import notes
from service.audit.merkle import is_extension
from service.verifier.merkle import EMPTY
from service.verifier.note import COSIGNATURE, Checkpoint, Key, Malformed, Note, Refused

log = logging.getLogger("expunge.witness")

TEXT, SIZE = "text/plain; charset=utf-8", "text/x.tlog.size"
MOST_BYTES = 65_536


class InUse(Exception):
    """Another witness has this state file: two of them could cosign two histories."""


@dataclass(frozen=True)
class Seen:
    """The largest tree of a log that was cosigned; size 0 where none was."""

    size: int = 0
    root: bytes = EMPTY
    note: str = ""
    """With the signatures of the log, and our own."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: str = ""
    media_type: str = TEXT


class Witness:
    """One witness, its logs and what it has seen of them."""

    def __init__(
        self,
        name: str,
        private: Ed25519PrivateKey,
        logs: Sequence[Key],
        state: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises: InUse; ValueError, KeyError: the state file holds something else; OSError."""
        self._name, self._private, self._clock = name, private, clock
        self._logs: dict[str, list[Key]] = {}
        for key in logs:
            self._logs.setdefault(key.name, []).append(key)
        self._state = state
        self._turn = threading.Lock()
        state.parent.mkdir(parents=True, exist_ok=True)
        self._held = state.with_name(state.name + ".lock").open("a")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._held.close()
            raise InUse(f"another witness is at work on {state}") from error
        self._seen = _read(state)

    @property
    def key(self) -> Key:
        """What a policy lists."""
        return notes.verifier_key(self._name, COSIGNATURE, self._private)

    def close(self) -> None:
        """Let go of the state file."""
        self._held.close()

    def add(self, body: bytes) -> Answer:
        """add-checkpoint."""
        try:
            old, proof, note = notes.parse_add_checkpoint(body.decode())
            parsed = Note.parse(note)
            found = Checkpoint.parse(parsed.text)
        except (Malformed, UnicodeDecodeError) as error:
            return Answer(400, f"{error}\n")
        if found.origin not in self._logs:
            return Answer(404, "this witness does not know the log\n")
        try:
            signed = [key for key in self._logs[found.origin] if parsed.by(key)]
        except Refused as refusal:
            return Answer(403, f"{refusal}\n")
        if not signed:
            return Answer(403, "no key of the log that this witness knows has signed this checkpoint\n")
        if old > found.size:
            return Answer(400, "the old size is larger than the checkpoint's\n")
        with self._turn:
            return self._extend(found, parsed, signed, old, proof)

    def _extend(self, found: Checkpoint, parsed: Note, signed: Sequence[Key], old: int, proof: Sequence[bytes]) -> Answer:
        """The part that must happen as one: compare, remember, cosign."""
        seen = self._seen.get(found.origin, Seen())
        if old != seen.size:
            return Answer(409, f"{seen.size}\n", SIZE)
        if not is_extension(seen.size, seen.root, found.size, found.root, proof) or (not found.size and found.root != EMPTY):
            log.critical("log.inconsistent", extra={"origin": found.origin, "seen": seen.size, "shown": found.size})
            return Answer(422, "this is no extension of what this witness has seen\n")
        line = notes.cosignature(self._name, self._private, parsed.text, int(self._clock()))
        known = {(key.name, key.id) for key in signed}
        kept = [
            f"— {name} {base64.b64encode(told + signature).decode()}\n"
            for name, told, signature in parsed.signatures
            if (name, told) in known
        ]
        self._seen[found.origin] = Seen(found.size, found.root, notes.note(parsed.text, [*kept, line]))
        durable.replace(self._state, _dump(self._seen))  # before the cosignature can be seen
        log.info("checkpoint.cosigned", extra={"origin": found.origin, "size": found.size})
        return Answer(200, line)

    def newest(self, origin_hash: str) -> Answer:
        """Monitor retrieval: by the lower-case SHA-256 of a log's origin, the checkpoint that was cosigned last."""
        for origin, seen in list(self._seen.items()):
            if origin in self._logs and hashlib.sha256(origin.encode()).hexdigest() == origin_hash:
                return Answer(200, seen.note)
        return Answer(404, "this witness has cosigned no checkpoint of such a log\n")


def _read(path: Path) -> dict[str, Seen]:
    try:
        told: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {
        origin: Seen(int(one["size"]), base64.b64decode(one["root"], validate=True), str(one["note"]))
        for origin, one in told.items()
    }


def _dump(seen: dict[str, Seen]) -> bytes:
    told = {o: {"size": s.size, "root": base64.b64encode(s.root).decode(), "note": s.note} for o, s in seen.items()}
    return json.dumps(told, ensure_ascii=False, indent=1).encode()


def make_app(witness: Witness) -> FastAPI:
    """The witness as an HTTP service; one prefix for submission and monitoring."""
    app = FastAPI(title="Expunge witness", openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return _response(Answer(400, "a body of more than 64 KiB holds no checkpoint\n"))
        return _response(await run_in_threadpool(witness.add, bytes(body)))

    @app.get("/{origin_hash}/checkpoint")
    def checkpoint(origin_hash: str) -> Response:
        return _response(witness.newest(origin_hash))

    return app


def _response(answer: Answer) -> Response:
    # not media_type=, which adds a charset to every text/…: a client may compare text/x.tlog.size as it stands
    return Response(answer.body, answer.status, headers={"Content-Type": answer.media_type})


@contextmanager
def opened(name: str, private: Ed25519PrivateKey, logs: Sequence[Key], state: Path) -> Iterator[Witness]:
    """A witness that lets go of its state file at the end. Raises: as Witness."""
    witness = Witness(name, private, logs, state)
    try:
        yield witness
    finally:
        witness.close()
