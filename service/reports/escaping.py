"""A stranger's text, made harmless: the one way by which words come into the page."""

from __future__ import annotations

import html

TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that are not seen and turn the direction of what follows: a name could make a sentence read otherwise."""


def escape(words: str) -> str:
    """Text for HTML, in an element or between quotes. Signs that would not be seen are spelled out."""
    return html.escape("".join(c if _is_plain(c) else f"\\u{ord(c):04x}" for c in words))


def _is_plain(c: str) -> bool:
    return c not in TURNS and (c >= " " or c in "\n\t") and c != "\x7f"
