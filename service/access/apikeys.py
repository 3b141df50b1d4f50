"""API keys: `expk_`, 16 characters that name the key, 43 that are the secret (256 random bits), 6 of a CRC-32.

The checksum keeps typing errors and guesses of the shape from the database, and lets a scanner of source code tell a key from a
look-alike. A key is stored as its SHA-256: that is enough for a random secret, and quick.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass

PREFIX = "expk_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_CHARS, SECRET_CHARS, CHECK_CHARS = 16, 43, 6
SECRET_BITS = 256
KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{ID_CHARS + SECRET_CHARS + CHECK_CHARS}}}", re.ASCII)
KEY_ID = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{ID_CHARS}}}", re.ASCII)


@dataclass(frozen=True)
class NewKey:
    """A key that nobody has seen yet."""

    id: str
    key: str


def make() -> NewKey:
    """A fresh key."""
    name = "".join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))
    body = PREFIX + name + _base62(secrets.randbits(SECRET_BITS), SECRET_CHARS)
    return NewKey(PREFIX + name, body + checksum(body))


def id_of(key: str) -> str | None:
    """The part that names the key; None: it has not the shape, or its checksum is wrong."""
    if not KEY.fullmatch(key) or checksum(key[:-CHECK_CHARS]) != key[-CHECK_CHARS:]:
        return None
    return key[: len(PREFIX) + ID_CHARS]


def digest(key: str) -> str:
    """What is stored of it: SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def checksum(body: str) -> str:
    """CRC-32 in base 62."""
    return _base62(zlib.crc32(body.encode()), CHECK_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
