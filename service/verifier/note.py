"""C2SP's text formats, read and checked: signed-note, tlog-checkpoint, tlog-cosignature (Ed25519), tlog-policy, tlog-proof."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.verifier.merkle import HASH_BYTES, root_of_inclusion
from service.verifier.reading import Tampered, unbase64

ED25519, COSIGNATURE = 1, 4
"""Signature types: of a log over a note, of a witness over a checkpoint and a time."""
PROOF = "c2sp.org/tlog-proof@v1"
SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+=*)\n")
MAX_SIGNATURES = 64


class Malformed(Tampered):
    """The text does not have the format that it should have."""


class Refused(Tampered):
    """The text is well formed, and a signature, a quorum or a proof in it does not hold."""


class Unsigned(Refused):
    """No key of its log that the policy knows has signed it."""


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """SHA-256(name || LF || kind || key)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def cosigned(text: str, time: int) -> bytes:
    """What a witness signs: a checkpoint's text, and when, in seconds since 1970."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


@dataclass(frozen=True)
class Key:
    """A verifier key: whose, for what, and how to check it."""

    name: str
    kind: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Key:
        """`name+hex id+base64(kind || key)`. Raises: Malformed."""
        name, _, rest = text.strip().partition("+")
        told, _, packed = rest.partition("+")
        data = _base64(packed)
        if not name or any(c.isspace() for c in name) or len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
            raise Malformed("expected a verifier key of a log (type 1) or of a witness (type 4)")
        if key_id(name, data[0], data[1:]).hex() != told:
            raise Malformed(f"the key id of {name} is not that of its key")
        return cls(name, data[0], data[1:])

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @property
    def id(self) -> bytes:
        return key_id(self.name, self.kind, self.public)

    def signed(self, text: str, signature: bytes) -> int:
        """Check a signature of this key; the time in it where it is a witness's, else 0. Raises: Refused."""
        time, message = 0, text.encode()
        if self.kind == COSIGNATURE:
            time, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            message = cosigned(text, time)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            raise Refused(f"the signature of {self.name} does not hold") from None
        return time


@dataclass(frozen=True)
class Note:
    """A text, and signatures (name, key id, bytes) that nobody has checked yet."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    @classmethod
    def parse(cls, note: str) -> Note:
        """Raises: Malformed."""
        text, _, lines = note.rpartition("\n\n")
        found = [(name, _base64(packed)) for name, packed in SIGNATURE.findall(lines)]
        plain = text and not any(c < " " and c != "\n" for c in note)
        if not plain or not 1 <= len(found) <= MAX_SIGNATURES or SIGNATURE.sub("", lines) or min(len(d) for _, d in found) < 5:
            raise Malformed("expected a text, an empty line, and lines of a dash, a name and a signature")
        return cls(text + "\n", tuple((name, data[:4], data[4:]) for name, data in found))

    def by(self, key: Key) -> list[int]:
        """The times at which this key signed, 0 for a log's; none if it did not. Raises: Refused: a signature does not hold."""
        return [key.signed(self.text, data) for name, told, data in self.signatures if (name, told) == (key.name, key.id)]


@dataclass(frozen=True)
class Checkpoint:
    """A tree's size and root as its log signed them, and when a witness last saw it, in seconds since 1970; 0: none did."""

    origin: str
    size: int
    root: bytes
    seen_at: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, text: str, seen_at: int = 0) -> Checkpoint:
        """The text of a checkpoint's note. Raises: Malformed."""
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 3 or not all(lines) or len(_base64(lines[2])) != HASH_BYTES:
            raise Malformed("expected the origin, the size and the root of a tree")
        return cls(lines[0], number(lines[1]), _base64(lines[2]), seen_at)

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass
class Policy:
    """Whose checkpoints are believed, and how many witnesses must have seen them."""

    logs: list[Key] = field(default_factory=list)
    witnesses: dict[str, Key] = field(default_factory=dict)
    groups: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    quorum: str | None = None
    urls: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Raises: Malformed."""
        policy, used = cls(), set[str]()
        for line in text.split("\n"):
            match line.replace("\t", " ").strip(" ").split():
                case []:
                    continue
                case [word, *_] if word.startswith("#"):
                    continue
                case ["log", key, *url] if len(url) <= 1:
                    policy.logs.append(_new(Key.parse(key), ED25519, policy.logs))
                case ["witness", name, key, *url] if len(url) <= 1 and policy._free(name):
                    policy.witnesses[name] = _new(Key.parse(key), COSIGNATURE, policy.witnesses.values())
                    policy.urls.update(zip([name], url, strict=False))
                case ["group", name, count, *members] if members and policy._free(name):
                    k = {"any": 1, "all": len(members)}.get(count) or number(count)
                    known = all(m in policy.witnesses or m in policy.groups for m in members)
                    if not 1 <= k <= len(members) or not known or len(set(members) - used) < len(members):
                        raise Malformed(f"the group {name} is not one of witnesses or groups named before, each used once")
                    used.update(members)
                    policy.groups[name] = (k, tuple(members))
                case ["quorum", name] if policy.quorum is None and (name == "none" or not policy._free(name)):
                    policy.quorum = name
                case _:
                    raise Malformed(f"the policy has a line that means nothing: {line.strip()[:60]}")
        if policy.quorum is None:
            raise Malformed("the policy has no quorum line")
        return policy

    def _free(self, name: str) -> bool:
        return name != "none" and name not in self.witnesses and name not in self.groups

    def checkpoint(self, note: str, *, quorum: bool = True) -> Checkpoint:
        """A checkpoint that a known log signed and enough witnesses cosigned, if asked for. Raises: Malformed, Refused."""
        parsed = Note.parse(note)
        origin = parsed.text.partition("\n")[0]
        if not [log for log in self.logs if log.name == origin and parsed.by(log)]:
            raise Unsigned(f"no key of the log {origin} that the policy knows has signed this checkpoint")
        seen = {name: max(times) for name, key in self.witnesses.items() if (times := parsed.by(key))}
        if quorum and self.quorum != "none" and not self._reached(str(self.quorum), seen):
            raise Refused(f"too few witnesses have seen this checkpoint: {', '.join(sorted(seen)) or 'none of those known'}")
        return Checkpoint.parse(parsed.text, max(seen.values(), default=0))

    def _reached(self, name: str, seen: Iterable[str]) -> bool:
        if name in self.witnesses:
            return name in seen
        k, members = self.groups[name]
        return sum(self._reached(member, seen) for member in members) >= k


def inclusion(proof: str, leaf: bytes, policy: Policy) -> tuple[int, Checkpoint]:
    """Check a tlog-proof: where a leaf, given by its hash, stands in which signed tree. Raises: Malformed, Refused."""
    head, _, note = proof.partition("\n\n")
    first, *lines = head.split("\n")
    if lines and lines[0].startswith("extra "):
        lines = lines[1:]
    if first != PROOF or not lines or not lines[0].startswith("index "):
        raise Malformed("expected a c2sp.org/tlog-proof@v1")
    index, checkpoint = number(lines[0][6:]), policy.checkpoint(note)
    if root_of_inclusion(index, checkpoint.size, leaf, [_base64(line) for line in lines[1:]]) != checkpoint.root:
        raise Refused("the proof does not lead from this entry to the signed tree")
    return index, checkpoint


def carried(proof: str) -> bytes | None:
    """The entry that a tlog-proof brings along in its `extra` line, as ours do; None: it brings none. Raises: Malformed."""
    first, _, rest = proof.partition("\n")
    if first != PROOF:
        raise Malformed(f"expected a {PROOF}")
    return _base64(rest.partition("\n")[0][6:]) if rest.startswith("extra ") else None


def number(text: str) -> int:
    """A decimal without leading zeroes. Raises: Malformed."""
    if not text.isascii() or not text.isdigit() or (text != "0" and text.startswith("0")) or len(text) > 19:
        raise Malformed(f"expected a whole number, got {text[:20]!r}")
    return int(text)


def _new(key: Key, kind: int, known: Iterable[Key]) -> Key:
    if key.kind != kind or key.public in [one.public for one in known]:
        raise Malformed(f"the key of {key.name} is of another kind, or is named twice")
    return key


def _base64(text: str) -> bytes:
    try:
        return unbase64(text)
    except ValueError:
        raise Malformed("expected base64") from None
