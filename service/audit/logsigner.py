"""The log's signer: an Ed25519 key, and what it has signed so far, in the signer's process and nowhere else.

It signs a checkpoint only if a proof shows that the tree extends the last one it signed, whatever the database says by then.
Its folder holds one PEM for each key that signs (two while they overlap), the verifier key of each that is retired, and
`state.json` with origin, size and root, which is on the disk before a signature leaves the process.

Where a key is there and the state is not, nothing is signed: an empty state would sign any history. `adopt` writes it again
from a checkpoint that bears a signature of one of these keys, and a person says which checkpoint that is. Over a state that is
there it goes forward alone, with a proof: a folder from a backup learns so what was signed since. Where the state says that
something was signed and no key is there, nothing is signed either: a new key in silence would be another log's.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service import durable
from service.audit import keys, notes
from service.audit.merkle import is_extension
from service.sockets import Desk, SignerUnavailable, SigningRefused, ask
from service.verifier.merkle import EMPTY
from service.verifier.note import ED25519, Checkpoint, Key, Note, Refused

log = logging.getLogger("expunge.signer.log")

STATE, LOCK = "state.json", "lock"
RETIRED = "# retired "
ANSWER_SECONDS = 30.0
_NAME = re.compile(r"^(\d{4})-([0-9a-f]{8})\.(pem|retired)$")
_ORIGIN = re.compile(r"^[^\s+]{1,200}$")
LOST = (
    "the signer has a key and no record of what it signed; take the newest checkpoint that you trust (a witness, an auditor, a "
    "backup or the service's own /audit/checkpoint has one) and run `expunge ledger adopt FILE` beside the signer"
)


KEY_LOST = (
    "a record of what was signed, and no key: put the PEM back from its backup; where there is none, move the folder aside, "
    "keep it, and start another log with a new EXPUNGE_LEDGER_ORIGIN, which everybody needs a new policy for"
)


class KeyMissing(ValueError):
    """The folder says that the log has signed, and holds no key to go on with."""

    def __init__(self) -> None:
        super().__init__(KEY_LOST)


class Stale(Exception):
    """The proof does not begin where the signer is: somebody else asked meanwhile."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the signer's last checkpoint has {size} entries")
        self.size = size


@dataclass(frozen=True)
class State:
    """The newest tree that was signed."""

    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, text: str) -> State:
        """Raises: ValueError, KeyError."""
        told = json.loads(text)
        return cls(str(told["origin"]), int(told["size"]), base64.b64decode(told["root"], validate=True))

    def dump(self) -> bytes:
        return json.dumps(
            {"origin": self.origin, "size": self.size, "root": base64.b64encode(self.root).decode()}
        ).encode()  # fmt: skip


class Folder:
    """The signer's folder, as it lies on the disk. The commands of an operator work on it while the signer runs."""

    def __init__(self, path: Path, public: Path) -> None:
        """Args: public: where the verifier keys are left for the service."""
        self.path, self.public = path, public

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time, across processes."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.path / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def state(self) -> State | None:
        """Raises: ValueError: the file holds something else."""
        try:
            return State.parse((self.path / STATE).read_text())
        except FileNotFoundError:
            return None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{STATE} does not say what was signed") from error

    def origin(self) -> str | None:
        """The log's name; None: what was signed is not known any more. Raises: ValueError."""
        state = self.state()
        return state.origin if state else None

    def remember(self, state: State) -> None:
        durable.replace(self.path / STATE, state.dump())

    def _files(self, suffix: str) -> list[Path]:
        found = self.path.iterdir() if self.path.is_dir() else ()
        return sorted(p for p in found if (m := _NAME.match(p.name)) and m[3] == suffix)

    def signing(self) -> list[Ed25519PrivateKey]:
        """The keys that sign, oldest first."""
        return [keys.load(path) for path in self._files("pem")]

    def retired(self) -> list[str]:
        """The verifier keys of those that no longer do."""
        return [path.read_text().strip() for path in self._files("retired")]

    def add_key(self, origin: str) -> Key:
        """A new key, which signs beside those that are there."""
        private = Ed25519PrivateKey.generate()
        made = notes.verifier_key(origin, ED25519, private)
        number = 1 + max((int(p.name[:4]) for s in ("pem", "retired") for p in self._files(s)), default=0)
        if not durable.create(self.path / f"{number:04}-{made.id.hex()}.pem", keys.pem(private)):
            raise FileExistsError("another key has this number")
        return made

    def retire_key(self, origin: str, told: str) -> Key:
        """Take a key out of use and erase its private half. Raises: LookupError: no such key, or it is the only one."""
        found = self._files("pem")
        chosen = next((path for path in found if path.name[5:13] == told), None)
        if chosen is None:
            raise LookupError(f"no key with the id {told} signs; those that do: {', '.join(p.name[5:13] for p in found)}")
        if len(found) == 1:
            raise LookupError("the only key cannot be retired: add another first, and let it sign for a while")
        key = notes.verifier_key(origin, ED25519, keys.load(chosen))
        durable.replace(chosen.with_suffix(".retired"), f"{key}\n".encode())
        chosen.unlink()
        return key

    def publish(self, origin: str) -> list[Key]:
        """Leave the verifier keys where the service reads them; those that sign, oldest first."""
        active = [notes.verifier_key(origin, ED25519, private) for private in self.signing()]
        text = "".join(f"{key}\n" for key in active) + "".join(f"{RETIRED}{vkey}\n" for vkey in self.retired())
        if not self.public.exists() or self.public.read_text() != text:
            durable.replace(self.public, text.encode(), mode=0o644)
        return active


def open_folder(path: Path, public: Path, origin: str = "") -> Folder:
    """The signer's folder, with a first key in it.

    The state comes before the key: a key without a state is one that has signed.

    Args:
        origin: the log's name for ever; empty: a name of this installation's own, `expunge.local/ledger/<16 hex digits>`.

    Raises:
        KeyMissing: something was signed, and the key is gone.
        ValueError: the log has another origin, or files hold something else than they should.
    """
    if origin and not _ORIGIN.match(origin):
        raise ValueError("expected an origin without spaces and without +, such as log.example/ledger")
    folder = Folder(path, public)
    with folder.locked():
        state, signing = folder.state(), folder.signing()
        if state is None and not signing:
            state = State(origin or f"expunge.local/ledger/{secrets.token_hex(8)}", 0, EMPTY)
            folder.remember(state)
        if state is None:
            log.critical("log.state.missing", extra={"why": LOST})
            return folder
        if origin and state.origin != origin:
            raise ValueError(f"this log's origin is {state.origin}: it cannot be changed, for every proof names it")
        if not signing and (state.size or folder.retired()):
            log.critical("log.key.missing", extra={"why": KEY_LOST})
            raise KeyMissing
        if not signing:
            folder.add_key(state.origin)
        folder.publish(state.origin)
    return folder


@dataclass(frozen=True)
class About:
    """What a signer says of itself."""

    origin: str
    size: int
    keys: tuple[Key, ...]


class LogSigner:
    """Signs checkpoints of one log."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._turn = threading.Lock()  # a file lock is held by the process, and not by the thread

    def about(self) -> About:
        """Raises: SigningRefused: the state or the key is missing."""
        with self._turn, self._folder.locked():
            state = self._state()
            return About(state.origin, state.size, tuple(self._folder.publish(state.origin)))

    def sign(self, old: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """A note over the tree of `size` entries with this root, by every key that signs.

        Args:
            old: the size that the proof begins at.
            proof: RFC 6962 §2.1.2, from `old` to `size`.

        Raises:
            Stale: the last tree that was signed has another size than `old`.
            SigningRefused: this tree does not extend it, or the state or the key is missing.
        """
        with self._turn, self._folder.locked():
            state = self._state()
            if old != state.size:
                raise Stale(state.size)
            if not is_extension(state.size, state.root, size, root, proof):
                told = {"origin": state.origin, "signed": state.size, "asked": size, "root": root.hex()}
                log.critical("checkpoint.refused", extra=told)
                kept = f"{state.size} entries were signed, and the ledger"
                why = "has another history now" if size >= state.size else f"has {size}: its end is missing"
                raise SigningRefused(f"{kept} {why}")
            text = Checkpoint(state.origin, size, root).text
            lines = [notes.signature(state.origin, private, text) for private in self._folder.signing()]
            self._folder.remember(State(state.origin, size, root))  # before the signature can be seen
            self._folder.publish(state.origin)
        log.info("checkpoint.signed", extra={"origin": state.origin, "size": size, "keys": len(lines)})
        return notes.note(text, lines)

    def _state(self) -> State:
        state = self._folder.state()
        if state is None:
            log.critical("log.state.missing", extra={"why": LOST})
            raise SigningRefused(LOST)
        if not self._folder.signing():
            log.critical("log.key.missing", extra={"why": KEY_LOST})
            raise SigningRefused(KEY_LOST)
        return state


def adopt(folder: Folder, note: str, proof: Sequence[bytes] = ()) -> Checkpoint:
    """Take a checkpoint for the newest that was signed: on a person's word, where the signer has lost its record, and with a
    proof, where it has one that is older.

    Args:
        proof: RFC 6962 §2.1.2, from the size of the record to that of the checkpoint.

    Raises:
        Malformed: it is no checkpoint.
        Refused: none of the folder's keys has signed it, or nothing shows that it extends what the record says.
    """
    parsed = Note.parse(note)
    found = Checkpoint.parse(parsed.text)
    with folder.locked():
        if not any(parsed.by(notes.verifier_key(found.origin, ED25519, private)) for private in folder.signing()):
            raise Refused("none of this signer's keys has signed this checkpoint")
        if (state := folder.state()) is not None:
            _require_forward(state, found, proof)
        folder.remember(State(found.origin, found.size, found.root))
        folder.publish(found.origin)
    log.warning("log.state.adopted", extra={"origin": found.origin, "size": found.size})
    return found


def _require_forward(state: State, found: Checkpoint, proof: Sequence[bytes]) -> None:
    known = f"the signer knows what it signed: {state.size} entries of {state.origin}"
    if found.origin != state.origin or found.size < state.size:
        raise Refused(f"{known}, and a record never goes back")
    if not is_extension(state.size, state.root, found.size, found.root, proof):
        asked = f"GET /audit/proof/consistency?from={state.size}&to={found.size}"
        raise Refused(f"{known}, and nothing shows that this checkpoint extends them; {asked} gives the proof, if there is one")


# --------------------------------------------------------------------------------------------------------------- socket


def desk(signer: LogSigner) -> Desk:
    """The signer's side of the socket."""

    def answer(question: Mapping[str, Any]) -> dict[str, Any]:
        if "sign" not in question:
            about = signer.about()
            return {"origin": about.origin, "size": about.size, "vkeys": [str(key) for key in about.keys]}
        asked = question["sign"]
        proof = [base64.b64decode(one, validate=True) for one in asked["proof"]]
        try:
            root = base64.b64decode(asked["root"], validate=True)
            return {"note": signer.sign(int(asked["old"]), int(asked["size"]), root, proof)}
        except Stale as stale:
            return {"stale": stale.size}

    return answer


class SocketLog:
    """The service's side: asks a signer that is another process."""

    def __init__(self, path: str) -> None:
        self._path = path

    def about(self) -> About:
        """Raises: SignerUnavailable, SigningRefused."""
        told = ask(self._path, {"log": {}}, timeout=ANSWER_SECONDS)
        return About(told["origin"], told["size"], tuple(Key.parse(vkey) for vkey in told["vkeys"]))

    def sign(self, old: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Raises: SignerUnavailable, SigningRefused, Stale."""
        encoded = [base64.b64encode(one).decode() for one in proof]
        question = {"old": old, "size": size, "root": base64.b64encode(root).decode(), "proof": encoded}
        told = ask(self._path, {"log": {"sign": question}}, timeout=ANSWER_SECONDS)
        if "stale" in told:
            raise Stale(int(told["stale"]))
        if "note" not in told:
            raise SignerUnavailable("the signer's answer holds no note")
        return str(told["note"])
