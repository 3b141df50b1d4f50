"""A pen that draws on paper: a Pillow image, for the report as one PNG.

Pillow's own typeface has few letters. Text that it cannot show is set in DejaVu Sans where the machine has it, else spelled in
letters that it can show: a class name never becomes a row of empty boxes that could be any name.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from service.reports.charts import TEXT, Anchor, Ink, Point, outlined

SCALE = 1.4
"""Pixels of the picture for one of the layout."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "ink": (28, 32, 38), "faint": (90, 98, 109), "rule": (217, 221, 227), "bad": (163, 24, 43), "good": (11, 107, 70),
    "open": (122, 75, 0), "none": (90, 98, 109), "paper": (255, 255, 255), "panel": (245, 246, 248),
    "s0": (0, 103, 168), "s1": (192, 80, 0), "s2": (0, 128, 95), "s3": (163, 72, 127), "s4": (138, 109, 0),
    "s5": (63, 118, 160),
    "good-paper": (231, 244, 238), "bad-paper": (253, 236, 238), "open-paper": (253, 243, 224), "none-paper": (245, 246, 248),
}  # fmt: skip
SPELLED = {"≥": ">=", "≤": "<=", "–": "-", "—": "-", "×": "x", "‘": "'", "’": "'", "µ": "u", "·": "·"}
OTHER_FACE = "DejaVuSans.ttf"
Font = ImageFont.FreeTypeFont


class PaperPen:
    """Draws at an offset, so that a chart need not know where on the sheet it is."""

    def __init__(self, canvas: Image.Image, origin: Point = (0.0, 0.0)) -> None:
        self.canvas, self.origin = canvas, origin
        self._pen = ImageDraw.Draw(canvas, "RGBA")

    def at(self, origin: Point) -> PaperPen:
        """The same paper, from another corner."""
        return PaperPen(self.canvas, origin)

    def line(self, begin: Point, end: Point, ink: Ink, *, width: float = 1, dash: Sequence[int] = ()) -> None:
        self.path((begin, end), ink, width=width, dash=dash)

    def path(self, points: Sequence[Point], ink: Ink, *, width: float = 2, dash: Sequence[int] = ()) -> None:
        for piece in dashed(points, dash) if dash else (points,):
            self._pen.line(
                [self._place(p) for p in piece], fill=COLOURS[ink], width=max(1, round(width * SCALE)), joint="curve"
            )

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        if len(points) > 2:
            self._pen.polygon([self._place(p) for p in points], fill=(*COLOURS[ink], 36))

    def box(self, corner: Point, size: Point, ink: Ink, *, filled: bool) -> None:
        paint = {"fill": _paler(COLOURS[ink])} if filled else {"outline": COLOURS[ink], "width": 2}
        self._pen.rectangle([self._place(corner), self._place((corner[0] + size[0], corner[1] + size[1]))], **paint)

    def mark(self, at: Point, shape: str, ink: str) -> None:
        outline, closed = outlined(at, shape)
        places = [self._place(p) for p in outline]
        if closed:
            self._pen.polygon(places, fill=COLOURS[ink])
            return
        for k in range(0, len(places), 2):
            self._pen.line(places[k : k + 2], fill=COLOURS[ink], width=round(2 * SCALE))

    def text(
        self, at: Point, words: str, ink: str = "ink", *, anchor: Anchor = "start", size: int = TEXT, bold: bool = False
    ) -> None:
        face, words = legible(words, size)
        side = {"start": "l", "middle": "m", "end": "r"}[anchor]
        stroke = 0.35 * SCALE * size / TEXT if bold else 0
        self._pen.text(self._place(at), words, fill=COLOURS[ink], font=face, anchor=f"{side}m", stroke_width=stroke)

    def panel(self, corner: Point, size: Point, fill: str, outline: str | None = None) -> None:
        """A surface with round corners."""
        ends = [self._place(corner), self._place((corner[0] + size[0], corner[1] + size[1]))]
        edge = None if outline is None else COLOURS[outline]
        self._pen.rounded_rectangle(ends, radius=round(8 * SCALE), fill=COLOURS[fill], outline=edge, width=round(2 * SCALE))

    def _place(self, point: Point) -> Point:
        return (self.origin[0] + point[0]) * SCALE, (self.origin[1] + point[1]) * SCALE


def length(words: str, size: int = TEXT) -> float:
    """How long a line of text is, in pixels of the layout."""
    face, words = legible(words, size)
    return float(face.getlength(words)) / SCALE


def wrapped(words: str, width: float, size: int = TEXT) -> list[str]:
    """Text as lines that fit; a word that is longer than a line is cut."""
    lines: list[str] = []
    for word in words.split():
        rest = word
        if lines and length(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
            continue
        while length(rest, size) > width and len(rest) > 1:
            most = next((k for k in range(len(rest) - 1, 1, -1) if length(rest[:k], size) <= width), 1)
            lines.append(rest[:most])
            rest = rest[most:]
        lines.append(rest)
    return lines


def fitted(words: str, width: float, size: int = TEXT) -> str:
    """As much of a text as fits on one line."""
    if length(words, size) <= width:
        return words
    most = next((k for k in range(len(words) - 1, 0, -1) if length(words[:k] + "…", size) <= width), 0)
    return words[:most] + "…"


@lru_cache(maxsize=4096)
def legible(words: str, size: int) -> tuple[Font, str]:
    """A typeface, and the text in letters that it has."""
    words = "".join(c if c.isprintable() else " " for c in words)
    own = _own(round(size * SCALE))
    if all(map(own_has, words)):
        return own, words
    other = _other(round(size * SCALE))
    if other is not None and all(_has(other, c) for c in words):
        return other, words
    return own, "".join(_spelled(c) for c in words)


def _spelled(letter: str) -> str:
    if own_has(letter):
        return letter
    plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
    return SPELLED.get(letter) or (plain if plain and all(map(own_has, plain)) else f"\\u{ord(letter):04x}")


def own_has(letter: str) -> bool:
    """Does Pillow's own typeface have this letter?"""
    return letter.isascii() or _has(_own(20), letter)


@lru_cache(maxsize=4096)
def _has(face: Font, letter: str) -> bool:
    """A letter that a face lacks looks like one that no face has."""
    return bytes(face.getmask(letter)) != bytes(face.getmask("\ue123")) or letter.isspace()


@lru_cache(maxsize=32)
def _own(size: int) -> Font:
    face = ImageFont.load_default(size=size)
    assert isinstance(face, Font), "Pillow's wheels come with FreeType"
    return face


@lru_cache(maxsize=32)
def _other(size: int) -> Font | None:
    try:
        return ImageFont.truetype(OTHER_FACE, size)
    except OSError:
        return None


def dashed(points: Sequence[Point], dash: Sequence[int]) -> Iterator[list[Point]]:
    """The strokes of a dashed path. Pillow draws none itself."""
    k, left, inked, piece = 0, float(dash[0]), True, [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        whole = math.hypot(x1 - x0, y1 - y0)
        gone = 0.0
        while whole - gone > left:
            gone += left
            corner = (x0 + (x1 - x0) * gone / whole, y0 + (y1 - y0) * gone / whole)
            if inked:
                yield [*piece, corner]
            k, inked, piece = k + 1, not inked, [corner]
            left = float(dash[k % len(dash)])
        left -= whole - gone
        piece.append((x1, y1))
    if inked and len(piece) > 1:
        yield piece


def _paler(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(255 - 0.75 * (255 - c)) for c in colour)
    return red, green, blue
