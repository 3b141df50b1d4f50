"""Signing certificates: DSSE envelopes with one ECDSA P-256 signature, made by a process that is not the worker.

The signer holds the only copy of the key. It signs nothing it has not checked: the statement must be one that may be signed
(`statement.objections`), and every file it names must be in the store under that digest, re-hashed here.

P-256 because model-signing, Rekor, cosign and the cloud key services all take it; Ed25519 is refused by the first two.
Source: DSSE v1.0.2 (secure-systems-lab/dsse).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import rfc8785
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates.statement import PAYLOAD_TYPE, objections

log = logging.getLogger("expunge.signer")

Statement = Mapping[str, Any]
Envelope = dict[str, Any]
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHUNK = 1 << 20
HASHING_TIMEOUT_SECONDS = 3600.0
"""The signer re-hashes the whole checkpoint before it answers: about a minute for 100 GB."""


class SignerUnavailable(Exception):
    """Nobody answers at the signer's socket, or the answer was cut off. Worth another try."""


class SigningRefused(Exception):
    """The signer looked at the statement and declined. Another try would end the same way."""


class Opens(Protocol):
    """What the signer needs of the store."""

    def open(self, digest: str) -> IO[bytes]:
        """The bytes stored under a SHA-256 digest. Raises when there are none."""
        ...


class Signer(Protocol):
    """Whoever can turn a statement into a signed envelope."""

    def sign(self, statement: Statement) -> Envelope:
        """Raises: SignerUnavailable, SigningRefused."""
        ...


# ------------------------------------------------------------------------------------------------------------------ DSSE


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """PAE of DSSE v1: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def key_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, in hex."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def seal(statement: Statement, key: ec.EllipticCurvePrivateKey) -> Envelope:
    """The statement's RFC 8785 bytes in a DSSE envelope with one signature."""
    payload = rfc8785.dumps(dict(statement))
    signature = key.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256()))
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }


def payload_of(envelope: Envelope) -> bytes:
    """The bytes that were signed."""
    return base64.b64decode(envelope["payload"], validate=True)


# ------------------------------------------------------------------------------------------------------------------ keys


def load_or_create_key(path: Path, public: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key at `path`, made on first use with mode 0600; its public half is written to `public`.

    Raises:
        ValueError: the file holds something else than an unencrypted P-256 key.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _create_key(path)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"expected a P-256 private key in {path.name}, got {type(key).__name__}")
    _write_public(public, key.public_key())
    return key


def _create_key(path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # fails when another signer was first: its key counts
    except FileExistsError:
        log.info("signer.key.exists")
    finally:
        temporary.unlink()


def _write_public(path: Path, public_key: ec.EllipticCurvePublicKey) -> None:
    pem = public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if path.exists() and path.read_bytes() == pem:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(pem)
    os.replace(temporary, path)


# --------------------------------------------------------------------------------------------------------------- signers


class FileKeySigner:
    """Signs with a key in memory. Lives in the signer's process, and in tests."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, store: Opens) -> None:
        self._key = key
        self._store = store

    def sign(self, statement: Statement) -> Envelope:
        """Raises: SigningRefused."""
        found = objections(statement)
        if found:
            raise SigningRefused("; ".join(found))
        for subject in statement["subject"]:
            self._rehash(subject["name"], subject["digest"]["sha256"])
        return seal(statement, self._key)

    def _rehash(self, name: str, digest: str) -> None:
        sha = hashlib.sha256()
        try:
            with self._store.open(digest) as file:
                while chunk := file.read(CHUNK):
                    sha.update(chunk)
        except Exception as error:  # whatever the store raises, the file cannot be vouched for
            log.exception("signer.unreadable", extra={"digest": digest})
            raise SigningRefused(f"a named file cannot be read from the store ({type(error).__name__})") from error
        if sha.hexdigest() != digest:
            raise SigningRefused(f"the stored bytes of {name} are not what the statement says")


class SocketSigner:
    """The worker's side of the signer's socket: one connection a statement."""

    def __init__(self, path: str, *, timeout: float = HASHING_TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout = timeout

    def sign(self, statement: Statement) -> Envelope:
        """Raises: SignerUnavailable, SigningRefused."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._timeout)
                connection.connect(self._path)
                _send(connection, {"statement": statement})
                answer = _receive(connection)
        except (OSError, ValueError) as error:
            raise SignerUnavailable(f"the signer does not answer: {type(error).__name__}") from error
        if "envelope" in answer:
            envelope: Envelope = answer["envelope"]
            return envelope
        if "refused" in answer:
            raise SigningRefused(str(answer["refused"]))
        raise SignerUnavailable("the signer failed; its log says why")


def serve(path: str, signer: Signer, *, ready: Callable[[], None] = lambda: None, stop: threading.Event | None = None) -> None:
    """Answer statements on a Unix socket until `stop` is set. Only processes of our own user are answered."""
    stop = stop or threading.Event()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(16)
        listener.settimeout(0.2)
        ready()
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=_answer, args=(connection, signer), daemon=True).start()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _answer(connection: socket.socket, signer: Signer) -> None:
    with connection:
        connection.settimeout(30)
        try:
            if not _same_user(connection):
                _send(connection, {"refused": "only the service's own user may ask"})
                return
            statement = _receive(connection)["statement"]
            connection.settimeout(HASHING_TIMEOUT_SECONDS)
            _send(connection, {"envelope": signer.sign(statement)})
            log.info("statement.signed", extra={"checkpoint": statement["predicate"]["certificate"]["id"]})
        except SigningRefused as refusal:
            log.warning("statement.refused", extra={"why": str(refusal)})
            _send(connection, {"refused": str(refusal)})
        except OSError as error:
            log.warning("connection.lost", extra={"kind": type(error).__name__})
        except Exception:
            log.exception("signer.crashed")
            with contextlib.suppress(OSError):
                _send(connection, {"failed": True})


def _same_user(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):  # macOS: the socket's mode 0600 is the guard
        return True
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(data)) + data)


def _receive(connection: socket.socket) -> dict[str, Any]:
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    if length > MAX_MESSAGE_BYTES:
        raise ConnectionError(f"expected at most {MAX_MESSAGE_BYTES} bytes, got {length}")
    message = json.loads(_exactly(connection, length))
    if not isinstance(message, dict):
        raise ConnectionError("expected a JSON object")
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(min(CHUNK, count - len(data)))
        if not chunk:
            raise ConnectionError("the peer hung up")
        data += chunk
    return data
