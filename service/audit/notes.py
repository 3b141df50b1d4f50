"""C2SP's text formats, written: signatures over checkpoints, cosignatures, add-checkpoint bodies, proofs. Pure.

They are read in `service.verifier.note`, which a stranger runs. Sources: C2SP signed-note v1.0.0, tlog-checkpoint v1.0.0,
tlog-cosignature v1.0.1 (Ed25519), tlog-witness, tlog-proof v1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.verifier.merkle import HASH_BYTES
from service.verifier.note import COSIGNATURE, ED25519, PROOF, Key, Malformed, cosigned, number

MOST_PROOF_LINES = 63
"""tlog-witness: a client must not send more."""


def verifier_key(name: str, kind: int, private: Ed25519PrivateKey) -> Key:
    """The public half, under a name: what a policy lists."""
    return Key(name, kind, private.public_key().public_bytes_raw())


def signature(name: str, private: Ed25519PrivateKey, text: str) -> str:
    """A log's signature line under a note's text."""
    return _line(verifier_key(name, ED25519, private), private.sign(text.encode()))


def cosignature(name: str, private: Ed25519PrivateKey, text: str, time: int) -> str:
    """A witness's signature line under a checkpoint's text, `time` in seconds since 1970, which may not be 0."""
    if time <= 0:
        raise ValueError(f"expected a time after 1970, got {time}")
    return _line(verifier_key(name, COSIGNATURE, private), time.to_bytes(8, "big") + private.sign(cosigned(text, time)))


def _line(key: Key, data: bytes) -> str:
    return f"— {key.name} {base64.b64encode(key.id + data).decode()}\n"


def note(text: str, lines: Iterable[str]) -> str:
    """A text and its signature lines."""
    return text + "\n" + "".join(lines)


def hash_lines(hashes: Iterable[bytes]) -> str:
    """One hash a line, base64."""
    return "".join(base64.b64encode(one).decode() + "\n" for one in hashes)


def proof(index: int, hashes: Sequence[bytes], checkpoint: str, extra: bytes | None = None) -> str:
    """A tlog-proof: that an entry is in the tree that the checkpoint signs. `extra` is not authenticated by it."""
    told = f"extra {base64.b64encode(extra).decode()}\n" if extra is not None else ""
    return f"{PROOF}\n{told}index {index}\n{hash_lines(hashes)}\n{checkpoint}"


def add_checkpoint(old: int, hashes: Sequence[bytes], checkpoint: str) -> str:
    """The body that a witness is sent: the size it knows, the way from there, and the checkpoint."""
    return f"old {old}\n{hash_lines(hashes)}\n{checkpoint}"


def parse_add_checkpoint(body: str) -> tuple[int, list[bytes], str]:
    """The same, read. Raises: Malformed."""
    head, blank, checkpoint = body.partition("\n\n")
    first, *lines = head.split("\n")
    if not blank or not first.startswith("old ") or len(lines) > MOST_PROOF_LINES:
        raise Malformed("expected an old size, at most 63 hashes, an empty line and a checkpoint")
    return number(first[4:]), [_hash(line) for line in lines], checkpoint


def _hash(line: str) -> bytes:
    try:
        value = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("expected a hash in base64") from None
    if len(value) != HASH_BYTES:
        raise Malformed(f"expected a hash of {HASH_BYTES} bytes, got {len(value)}")
    return value
