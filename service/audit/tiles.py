"""C2SP tlog-tiles: what lies where, and what is in it. Pure.

A tile of level L is 256 neighbouring perfect subtrees of 256**L entries each: the stored nodes of level 8·L. A bundle is the
entries under a tile of level 0.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator

WIDTH = 256
HEIGHT = 8
HIGHEST = 63
_LEVEL = re.compile(r"0|[1-9]\d?")
_INDEX = re.compile(r"((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d{0,2}))?", re.ASCII)


class NoTile(ValueError):
    """The path names no tile."""


def index_path(index: int) -> str:
    """1234067 as x001/x234/067."""
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    parts = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    return "/".join([*(f"x{part}" for part in parts[:-1]), parts[-1]])


def tile_path(level: int | str, index: int, width: int = WIDTH) -> str:
    """Below the log's prefix; `level` is "entries" for a bundle."""
    return f"tile/{level}/{index_path(index)}" + (f".p/{width}" if width < WIDTH else "")


def parse_level(text: str) -> int:
    """Raises: NoTile."""
    if not _LEVEL.fullmatch(text) or int(text) > HIGHEST:
        raise NoTile("expected a level from 0 to 63")
    return int(text)


def parse_index(path: str) -> tuple[int, int]:
    """Index and width of the tile that `<N>[.p/<W>]` names, in its one right spelling. Raises: NoTile."""
    found = _INDEX.fullmatch(path)
    if found is None or len(found[1]) > 32:
        raise NoTile("expected an index in groups of three digits, and a width from 1 to 255 where the tile is partial")
    index, width = int(found[1].replace("x", "").replace("/", "")), int(found[2] or WIDTH)
    if index_path(index) != found[1] or (found[2] and width >= WIDTH):
        raise NoTile("expected the shortest spelling of the index, and a width from 1 to 255")
    return index, width


def tiles(size: int) -> Iterator[tuple[int, int, int]]:
    """Level, index and width of every tile of a tree, level by level."""
    level, count = 0, size
    while count:
        for index in range(-(-count // WIDTH)):
            yield level, index, min(WIDTH, count - index * WIDTH)
        level, count = level + 1, count >> HEIGHT


def bundle(entries: Iterable[bytes | None]) -> bytes:
    """Length-prefixed entries. One that was redacted has no bytes; clients of the format cannot hash that, and must not."""
    return b"".join(struct.pack(">H", len(leaf or b"")) + (leaf or b"") for leaf in entries)
