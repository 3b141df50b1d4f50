"""The page as one PNG: the verdict, the pictures, the charts and what decided, for a slide or a ticket.

It leaves out what only reports and decides nothing; the HTML page and the JSON have all of it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from service.reports.charts import BarChart, LineChart, draw_bars, draw_lines
from service.reports.contents import Page, Picture, Row
from service.reports.paper import COLOURS, SCALE, PaperPen, fitted, wrapped
from service.reports.svg import BARS_WIDTH, LINES_WIDTH

WIDTH, MARGIN, LINE = 1020, 32, 20
INNER = WIDTH - 2 * MARGIN
LABELS = 210
MOST_ROWS, MOST_BARS, MOST_CURVES = 60, 8, 12
LARGEST_PICTURE = 24_000_000
"""Pixels of a picture of the evidence; a small file may unpack into more than the memory holds."""
COLUMNS = (0, 226, 352, 432, 496, 602, 706, 796)
"""Where the columns of the table begin."""
TALLEST = 30_000
"""Pixels of the whole; more than this would open in no viewer."""
TALLEST_PICTURE = TALLEST // 4
"""Of one picture of the evidence: a taller one is shrunk, so that there is room for what decided."""
CONTINUED = "… continued in the HTML report."
LONGEST_SENTENCE = 1_200


@dataclass(frozen=True)
class Block:
    """Something of the page: how high it is, and how it is drawn from its upper left corner."""

    height: float
    draw: Callable[[PaperPen], None]


def render(page: Page) -> bytes:
    """The picture, as bytes of a PNG."""
    blocks = _fitting(list(_blocks(page)), TALLEST / SCALE - 2 * MARGIN)
    height = sum(block.height for block in blocks) + 2 * MARGIN
    canvas = Image.new("RGB", (round(WIDTH * SCALE), round(height * SCALE)), COLOURS["paper"])
    pen, y = PaperPen(canvas), float(MARGIN)
    for block in blocks:
        block.draw(pen.at((MARGIN, y)))
        y += block.height
    content = io.BytesIO()
    canvas.save(content, format="PNG", optimize=False)
    return content.getvalue()


def _fitting(blocks: Sequence[Block], room: float) -> list[Block]:
    """As many blocks from the top as there is room for, in pixels of the layout; where some are left out, a line says so."""
    if sum(block.height for block in blocks) <= room:
        return list(blocks)
    last = _paragraph(CONTINUED)
    ends = itertools.accumulate((block.height for block in blocks), initial=last.height)
    shown = sum(end <= room for end in ends) - 1
    return [*blocks[:shown], last]


def _blocks(page: Page) -> Iterator[Block]:
    yield _verdict(page)
    yield _pairs(page.facts)
    if page.pictures:
        yield _heading("Before and after")
        yield from map(_picture, page.pictures)
    if page.bars:
        yield _heading("Class by class")
        yield from map(_bars, page.bars[:MOST_BARS])
        yield from _more(len(page.bars) - MOST_BARS, "chart")
    if page.curves:
        yield _heading("Attacks and sweeps")
        shown = page.curves[:MOST_CURVES]
        yield from (_curves(shown[k : k + 2]) for k in range(0, len(shown), 2))
        yield from _more(len(page.curves) - MOST_CURVES, "chart")
    yield _heading("What decided")
    yield from _findings(page)
    yield _heading("Known limits")
    yield from (_paragraph(sentence, bullet=True) for sentence in page.limits)
    if page.judges:
        yield _heading("Judges")
        yield from (_paragraph(f"{name}: {accuracy} of {n} held-out images") for name, accuracy, n, _ in page.judges)
    if page.costs or page.total:
        yield _heading("What it cost")
        yield _paragraph(" · ".join(f"{name} {said}" for name, _, said in page.costs))
        yield _paragraph(page.total)
    yield _heading("Digests")
    yield _pairs(page.digests)


def _verdict(page: Page) -> Block:
    lines = wrapped(page.sentence[:LONGEST_SENTENCE], INNER - 100)
    height = 84 + LINE * len(lines)

    def draw(pen: PaperPen) -> None:
        pen.panel((0, 0), (INNER, height - 16), f"{page.tone}-paper", page.tone)
        pen.text((40, 34), {"good": "OK", "bad": "X"}.get(page.tone, "?"), page.tone, size=24, anchor="middle", bold=True)
        pen.text((78, 18), page.verdict, page.tone, size=13, bold=True)
        pen.text((78, 42), fitted(page.headline, INNER - 100, 21), size=21, bold=True)
        for k, line in enumerate(lines):
            pen.text((78, 70 + k * LINE), line)

    return Block(height, draw)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Block:
    rows = [(wrapped(name, LABELS - 16), wrapped(said, INNER - LABELS)) for name, said in pairs]

    def draw(pen: PaperPen) -> None:
        y = LINE / 2
        for names, said in rows:
            for k, line in enumerate(names):
                pen.text((0, y + k * LINE), line, "faint")
            for k, line in enumerate(said):
                pen.text((LABELS, y + k * LINE), line)
            y += LINE * max(len(names), len(said)) + 4

    return Block(sum(LINE * max(len(names), len(said)) + 4 for names, said in rows) + 8, draw)


def _heading(words: str) -> Block:
    def draw(pen: PaperPen) -> None:
        pen.text((0, 26), words, size=18, bold=True)
        pen.line((0, 42), (INNER, 42), "rule")

    return Block(56, draw)


def _paragraph(words: str, *, bullet: bool = False) -> Block:
    indent = 16 if bullet else 0
    lines = wrapped(words, INNER - indent)

    def draw(pen: PaperPen) -> None:
        if bullet:
            pen.mark((5, LINE / 2), "square", "faint")
        for k, line in enumerate(lines):
            pen.text((indent, LINE / 2 + k * LINE), line)

    return Block(LINE * len(lines) + (5 if bullet else 4), draw)


def _more(left_out: int, noun: str) -> Iterator[Block]:
    if left_out > 0:
        yield _paragraph(f"… and {left_out:,} more {noun}{'' if left_out == 1 else 's'} in the HTML page.")


def _picture(picture: Picture) -> Block:
    image = _opened(picture.content)
    if image is None:
        return _paragraph(f"{picture.name}: {picture.words if picture.content is None else 'it cannot be shown'}")
    share = min(INNER * SCALE / image.width, TALLEST_PICTURE / image.height)
    if share < 1:
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    shown = image

    def draw(pen: PaperPen) -> None:
        pen.canvas.paste(shown, (round(MARGIN * SCALE), round(pen.origin[1] * SCALE)))

    return Block(image.height / SCALE + 8, draw)


def _opened(content: bytes | None) -> Image.Image | None:
    """A PNG of a bearable size, else None."""
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > LARGEST_PICTURE:
                return None
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _bars(chart: BarChart) -> Block:
    def draw(pen: PaperPen) -> None:
        _captioned(pen, chart.title, (INNER, chart.height))
        draw_bars(pen.at((pen.origin[0] + 14, pen.origin[1] + 36)), chart, BARS_WIDTH)

    return Block(chart.height + 58, draw)


def _curves(charts: Sequence[LineChart]) -> Block:
    height = max(chart.height for chart in charts)

    def draw(pen: PaperPen) -> None:
        for k, chart in enumerate(charts):
            left = pen.at((pen.origin[0] + k * (INNER + 20) / 2, pen.origin[1]))
            _captioned(left, chart.title, ((INNER - 20) / 2, height))
            draw_lines(left.at((left.origin[0] + 14, left.origin[1] + 36)), chart, LINES_WIDTH - 20)

    return Block(height + 58, draw)


def _captioned(pen: PaperPen, title: str, size: tuple[float, float]) -> None:
    pen.text((0, 8), fitted(title, size[0], 14), size=14, bold=True)
    pen.panel((0, 22), (size[0], size[1] + 22), "panel")


def _findings(page: Page) -> Iterator[Block]:
    deciding = [row for group in page.groups for row in group.rows if row.mark.tone != "none"]
    yield _line(("finding", "class", "model", "value", "bound", "needs", "n", "result"), "faint")
    yield from map(_row, deciding[:MOST_ROWS])
    yield from _more(len(deciding) - MOST_ROWS, "finding")
    reported = sum(len(group.rows) for group in page.groups) - len(deciding)
    if reported:
        yield _paragraph(f"{reported:,} further finding{'' if reported == 1 else 's'} decided nothing; see the HTML page.")


def _row(row: Row) -> Block:
    cells = (row.what, row.on, row.of, row.value, row.bound, _said(row.needs), row.n, row.mark.word)
    return _line(cells, row.mark.tone)


def _said(needs: str) -> str:
    """A threshold in words: the typeface has no signs for it."""
    return needs.replace("≥", "at least").replace("≤", "at most")


def _line(cells: Sequence[str], tone: str) -> Block:
    ends = (*COLUMNS[1:], INNER)
    shape = {"good": "good", "bad": "bad", "open": "ring"}.get(tone)

    def draw(pen: PaperPen) -> None:
        for k, (begin, end, words) in enumerate(zip(COLUMNS, ends, cells, strict=True)):
            last = k == len(cells) - 1
            if last and shape:
                pen.mark((begin + 6, 12), shape, tone)
            shift = 18 if last and shape else 0
            ink = tone if last or tone == "faint" else "ink"
            pen.text((begin + shift, 12), fitted(words, end - begin - 8 - shift, 12), ink, size=12)
        pen.line((0, 24), (INNER, 24), "rule")

    return Block(25, draw)
