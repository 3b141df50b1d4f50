"""Arrays of an .npz file without numpy: what each says it is, and the values of a short column.

Source: NumPy format specification, NEP 1 and `numpy.lib.format`: a magic, a version, the length of a Python literal with
`descr` and `shape`, then the items one after the other.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import zipfile
from typing import IO, NoReturn

from service.errors import BadLocation

Header = tuple[str, tuple[int, ...]]
"""dtype as numpy writes it (`<U12`, `|u1`) and shape."""

LONGEST_HEADER = 65_536
WIDEST_TEXT = 512
"""Characters of one id, as in the API."""
LONGEST_COLUMN = 10_000_000
INTEGERS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
ORDERS = {"<": "<", ">": ">", "|": "<", "=": "="}


def _refuse(detail: str) -> NoReturn:
    raise BadLocation(detail, pointer="/location")


def header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """dtype and shape of a member. Raises: BadLocation for anything but a plain array of the size it says."""
    with archive.open(info) as member:
        text, header_bytes = _header_text(member)
    try:
        header = ast.literal_eval(text)
        descr, shape = header["descr"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        _refuse("an array of the .npz file has no valid header")
    if not isinstance(descr, str) or not isinstance(shape, tuple) or not all(type(d) is int and d >= 0 for d in shape):
        _refuse("expected plain arrays in the .npz file")
    kind = re.fullmatch(r"[<>|=]([a-zA-Z])(\d{1,6})", descr)
    if kind is None or kind[1] == "O":
        _refuse("expected arrays of numbers or text in the .npz file: object arrays are pickles")
    itemsize = int(kind[2]) * (4 if kind[1] == "U" else 1)
    if info.file_size != header_bytes + itemsize * math.prod(shape):
        _refuse("an array of the .npz file is not as long as its header says")
    return descr, shape


def _header_text(member: IO[bytes]) -> tuple[str, int]:
    start = member.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        _refuse("expected .npy arrays in the .npz file")
    wide = start[6] > 1
    field = member.read(4 if wide else 2)
    length = int.from_bytes(field, "little")
    if length > LONGEST_HEADER:
        _refuse("an array of the .npz file has no valid header")
    return member.read(length).decode("latin-1"), 8 + len(field) + length


def column(archive: zipfile.ZipFile, name: str) -> list[str] | list[int] | None:
    """The values of a one-dimensional array of text or integers; None when the file has no such array.

    Reads item by item: an archive of a few bytes may unpack to more than there is memory.

    Raises:
        BadLocation: another kind of array, text wider than 512 characters, or more than 10^7 items.
    """
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        return None
    descr, shape = header(archive, info)
    if len(shape) != 1 or shape[0] > LONGEST_COLUMN:
        _refuse(f"expected {name} as one column of at most {LONGEST_COLUMN} items")
    with archive.open(info) as member:
        _header_text(member)
        if descr[1] == "U":
            return _texts(member, descr, shape[0], name)
        if descr[1:] not in INTEGERS:
            _refuse(f"expected {name} as text or integers")
        item = struct.Struct(ORDERS[descr[0]] + INTEGERS[descr[1:]])
        return [item.unpack(member.read(item.size))[0] for _ in range(shape[0])]


def _texts(member: IO[bytes], descr: str, count: int, name: str) -> list[str]:
    """UCS-4 of a fixed width, filled up with NUL."""
    width = int(descr[2:])
    if not 0 < width <= WIDEST_TEXT:
        _refuse(f"expected {name} of 1 to {WIDEST_TEXT} characters")
    encoding = "utf-32-be" if descr[0] == ">" else "utf-32-le"
    try:
        return [member.read(4 * width).decode(encoding).rstrip("\0") for _ in range(count)]
    except UnicodeDecodeError as error:
        raise BadLocation(f"{name} holds text that is not Unicode", pointer="/location") from error
