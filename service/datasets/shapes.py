"""How large a dataset's images are, by the first bytes of a file: what a request is judged by, without decoding anything.

The worker looks at every image; what cannot be told here is left to it.

Sources: PNG, W3C recommendation, 11.2.2 (IHDR); JPEG, ITU-T T.81, B.2.2 (frame header); BMP, BITMAPCOREHEADER and
BITMAPINFOHEADER; WebP, RFC 9649, 2.5 to 2.7; NumPy, `service.npz`.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import IO

from service import files, npz, sources
from service.datasets.items import Source
from service.errors import BadLocation

Size = tuple[int, int]
"""Height and width in pixels."""

FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers SOF0 to SOF15: of the same range, the others announce tables."""
MOST_SEGMENTS = 1000


def image_shape(where: Source) -> tuple[int | None, int, int] | None:
    """Channels (None: not to be told), height and width of a dataset's images; None when its first file does not tell.

    Raises:
        BadLocation: an npz is no longer there, or is none.
    """
    if where.format == "npz":
        return _of_npz(where)
    try:
        with files.open_file(where.location, where.paths[0], sources.configured()) as stream:
            size = image_size(stream)
    except OSError:
        return None
    return None if size is None else (None, *size)


def _of_npz(where: Source) -> tuple[int, int, int]:
    try:
        opened = files.open_file(where.location, where.paths[0], sources.configured())
        with opened as stream, zipfile.ZipFile(stream) as archive:
            _, shape = npz.header(archive, archive.getinfo("images.npy"))
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise BadLocation("the dataset's .npz file cannot be read") from error
    if len(shape) not in (3, 4):
        raise BadLocation("the dataset's .npz file holds no images")
    return (shape[3] if len(shape) == 4 else 1), shape[1], shape[2]


def image_size(stream: IO[bytes]) -> Size | None:
    """The size that a PNG, JPEG, BMP or WebP file says it has; None for anything else."""
    start = stream.read(30)
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", start, 16)
        elif start.startswith(b"BM"):
            (header,) = struct.unpack_from("<I", start, 14)
            width, height = struct.unpack_from("<HH" if header == 12 else "<ii", start, 18)
        elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
            width, height = _of_webp(start)
        elif start.startswith(b"\xff\xd8"):
            stream.seek(2)
            return _of_jpeg(stream)
        else:
            return None
    except struct.error:
        return None
    return abs(height), width  # a BMP whose rows run from the top has a negative height


def _of_webp(start: bytes) -> tuple[int, int]:
    """Width and height. Raises: struct.error."""
    match start[12:16]:
        case b"VP8X":
            low, high, rows_low, rows_high = struct.unpack_from("<HBHB", start, 24)
            return 1 + low + (high << 16), 1 + rows_low + (rows_high << 16)
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", start, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case _:
            width, height = struct.unpack_from("<HH", start, 26)
            return width & 0x3FFF, height & 0x3FFF


def _of_jpeg(stream: IO[bytes]) -> Size | None:
    """From segment to segment up to the frame header."""
    for _ in range(MOST_SEGMENTS):
        byte = stream.read(1)
        if byte != b"\xff":
            return None
        while byte == b"\xff":  # any number of fill bytes
            byte = stream.read(1)
        (length,) = struct.unpack(">H", stream.read(2))
        if byte and byte[0] in FRAME_HEADERS:
            _, height, width = struct.unpack(">BHH", stream.read(5))
            return height, width
        stream.seek(length - 2, 1)
    return None
