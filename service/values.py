"""Values that clients send, held to what every part of the house can store: both databases, JSON, RFC 8785.

PostgreSQL has no NUL in text, UTF-8 has no lone surrogates, RFC 8785 has no NaN and no integers of 2^53 or more. What passes
here cannot fail later, half way through a transaction.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints

LARGEST_INT = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly (RFC 8785 §3.2.2.3)."""
DEEPEST = 8
ID = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}")


def plain_text(value: str) -> str:
    """Text that can be stored. Raises: ValueError for NUL or lone surrogates."""
    if "\0" in value:
        raise ValueError("must not contain NUL")
    if not value.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("must be valid Unicode")
    return value


def label(value: str) -> str:
    """A class name in the one form it is kept and compared in: NFC, no outer blanks. Raises: ValueError when empty."""
    name = unicodedata.normalize("NFC", plain_text(value)).strip()
    if not name:
        raise ValueError("must not be blank")
    return name


def plain_json(value: Any, *, depth: int = DEEPEST) -> Any:
    """JSON that can be stored and hashed.

    Raises:
        ValueError: nested deeper than `depth`, a number that is not finite or too large to be exact, or text that cannot
            be stored.
    """
    if depth < 0:
        raise ValueError(f"must not be nested deeper than {DEEPEST} levels")
    match value:
        case bool() | None:
            pass
        case str():
            plain_text(value)
        case int() if abs(value) > LARGEST_INT:
            raise ValueError("integers must be below 2^53")
        case float() if not math.isfinite(value):
            raise ValueError("numbers must be finite")
        case dict():
            for key, item in value.items():
                plain_text(key)
                plain_json(item, depth=depth - 1)
        case list():
            for item in value:
                plain_json(item, depth=depth - 1)
        case _:
            pass
    return value


def small_json(limit: int) -> AfterValidator:
    """A validator: plain JSON of at most `limit` bytes."""

    def check(value: Any) -> Any:
        plain_json(value)
        if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > limit:
            raise ValueError(f"must be at most {limit} bytes of JSON")
        return value

    return AfterValidator(check)


def sorted_json(value: Any) -> bytes:
    """JSON with sorted keys and no blanks: the form that is hashed to compare documents."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_of(document: Any) -> str:
    """SHA-256 of a document's JSON with sorted keys."""
    return hashlib.sha256(sorted_json(document)).hexdigest()


def decimal_string(value: float) -> str:
    """A number as every JSON tool reads it: 0.05 -> "0.05". Raises: ValueError for NaN or infinity."""
    number = Decimal(repr(value))
    if not number.is_finite():
        raise ValueError(f"expected a finite number, got {value}")
    return format(number, "f")


def is_id(value: str) -> bool:
    """True when this could be an id of ours; anything else is not worth a query."""
    return ID.fullmatch(value) is not None


Text = Annotated[str, AfterValidator(plain_text)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(label)]
