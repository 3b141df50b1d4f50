"""A pen that writes SVG into the page. Inks are classes of its style sheet, so a chart is as light or dark as the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from service.reports.charts import TEXT, Anchor, BarChart, Ink, LineChart, Point, draw_bars, draw_lines, outlined
from service.reports.escaping import escape

BARS_WIDTH, LINES_WIDTH = 760, 460


class SvgPen:
    """Collects elements. Whatever text comes is escaped here and nowhere else."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def line(self, begin: Point, end: Point, ink: Ink, *, width: float = 1, dash: Sequence[int] = ()) -> None:
        self.path((begin, end), ink, width=width, dash=dash)

    def path(self, points: Sequence[Point], ink: Ink, *, width: float = 2, dash: Sequence[int] = ()) -> None:
        pattern = " ".join(map(str, dash))
        dashes = f' stroke-dasharray="{pattern}"' if dash else ""
        self.elements.append(f'<polyline class="l-{ink}" stroke-width="{width:g}"{dashes} points="{_points(points)}"/>')

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        self.elements.append(f'<polygon class="f-{ink}" fill-opacity="0.14" points="{_points(points)}"/>')

    def box(self, corner: Point, size: Point, ink: Ink, *, filled: bool) -> None:
        where = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
        paint = f'class="f-{ink}" fill-opacity="0.75"' if filled else f'class="l-{ink}" stroke-width="1.5"'
        self.elements.append(f"<rect {paint} {where}/>")

    def mark(self, at: Point, shape: str, ink: Ink) -> None:
        outline, closed = outlined(at, shape)
        if closed:
            self.elements.append(f'<polygon class="f-{ink}" points="{_points(outline)}"/>')
        else:
            for k in range(0, len(outline), 2):
                self.path(outline[k : k + 2], ink)

    def text(self, at: Point, words: str, ink: Ink = "ink", *, anchor: Anchor = "start", size: int = TEXT) -> None:
        where = f'x="{at[0]:.1f}" y="{at[1]:.1f}" dy="0.35em" text-anchor="{anchor}" font-size="{size}"'
        self.elements.append(f'<text class="f-{ink}" {where}>{escape(words)}</text>')


def bars(chart: BarChart, identity: str) -> str:
    """The chart as an `svg` element. `identity` is unique in the page."""
    pen = SvgPen()
    draw_bars(pen, chart, BARS_WIDTH)
    said = f"Bars of {len(chart.rows)} classes; every number is in the table of findings."
    return _element(pen, chart.title, said, (BARS_WIDTH, chart.height), identity)


def lines(chart: LineChart, identity: str) -> str:
    """The same for curves."""
    pen = SvgPen()
    draw_lines(pen, chart, LINES_WIDTH)
    return _element(pen, chart.title, chart.in_words(), (LINES_WIDTH, chart.height), identity)


def _element(pen: SvgPen, title: str, said: str, size: Point, identity: str) -> str:
    head = f'<svg role="img" aria-labelledby="{identity}-t {identity}-d" viewBox="0 0 {size[0]:g} {math.ceil(size[1])}">'
    words = f'<title id="{identity}-t">{escape(title)}</title><desc id="{identity}-d">{escape(said)}</desc>'
    return f"{head}{words}{''.join(pen.elements)}</svg>"


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
