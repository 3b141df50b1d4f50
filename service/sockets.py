"""The signer's Unix socket: one question, one answer, length-prefixed JSON, among processes of one user.

A message is a JSON object with one key, which names the desk that it is for: `statement` the one that signs certificates,
`log` the one that signs the ledger's checkpoints. Desks share a process and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("expunge.signer")

Desk = Callable[[Any], dict[str, Any]]
"""Answers what a message holds under the desk's name. Raises: SigningRefused."""
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CHUNK = 1 << 20
ASKING_SECONDS = 30.0
ANSWERING_SECONDS = 3600.0
"""The signer re-hashes a whole checkpoint before it answers: about a minute for 100 GB."""


class SignerUnavailable(Exception):
    """Nobody answers at the signer's socket, or the answer was cut off. Worth another try."""


class SigningRefused(Exception):
    """The signer looked at what it was to sign and declined. Another try would end the same way."""


def ask(path: str, message: Mapping[str, Any], *, timeout: float = ANSWERING_SECONDS) -> dict[str, Any]:
    """One message, one answer, one connection. Raises: SignerUnavailable, SigningRefused."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(path)
            _send(connection, message)
            answer = _receive(connection)
    except (OSError, ValueError) as error:
        raise SignerUnavailable(f"the signer does not answer: {type(error).__name__}") from error
    if "refused" in answer:
        raise SigningRefused(str(answer["refused"]))
    if "failed" in answer:
        raise SignerUnavailable("the signer failed; its log says why")
    return answer


def serve(
    path: str,
    desks: Mapping[str, Desk],
    *,
    ready: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> None:
    """Answer on a Unix socket until `stop` is set. Only processes of our own user are answered."""
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
            threading.Thread(target=_answer, args=(connection, desks), daemon=True).start()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _answer(connection: socket.socket, desks: Mapping[str, Desk]) -> None:
    with connection:
        connection.settimeout(ASKING_SECONDS)
        try:
            if not _same_user(connection):
                _send(connection, {"refused": "only the service's own user may ask"})
                return
            if not connection.recv(1, socket.MSG_PEEK):
                return  # a probe: it wanted to know that somebody listens
            ((name, question),) = _receive(connection).items()
            connection.settimeout(ANSWERING_SECONDS)
            if name not in desks:
                raise SigningRefused("there is no such desk at this signer")
            _send(connection, desks[name](question))
        except SigningRefused as refusal:
            log.warning("signing.refused", extra={"why": str(refusal)})
            with contextlib.suppress(OSError):
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
