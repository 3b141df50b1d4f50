"""Charts as strokes of a pen: bars with intervals, and curves. Each is drawn once, for the screen and for the picture alike.

No reading depends on colour: who is drawn is told by the shape of the marks, by dashes, and by a word in the legend.
Lengths are pixels, x to the right, y downwards; values are in the units of what is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.reports.figures import figure, span, tick_label, ticks

Ink = Literal["ink", "faint", "rule", "bad", "s0", "s1", "s2", "s3", "s4", "s5"]
"""Text, remarks, grid lines, what is forgotten, and six series."""
Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
Scale = Callable[[float], float]
"""From a value to a place."""

SERIES: tuple[Ink, ...] = ("s0", "s1", "s2", "s3", "s4", "s5")
SHAPES = ("disc", "square", "triangle", "diamond", "cross", "ring")
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3), (4, 4), (1, 2))
MOST_LINES = len(SERIES)

SMALL, TEXT = 12, 13
NAMES, VALUES, BAR, BAR_GAP, ROW_GAP = 150, 190, 9, 3, 8
"""Of a bar chart: the columns of names and of figures, and the heights of bars and gaps."""
TOP, PLOT_HEIGHT, AXIS, LEFT, RIGHT = 28, 190, 40, 52, 16
LEGEND_LINE = 20
LONGEST_NAME = 20
MOST_MEASURED, TICK_ROOM = 11, 24


class Pen(Protocol):
    """What a chart is drawn with."""

    def line(self, begin: Point, end: Point, ink: Ink, *, width: float = 1, dash: Sequence[int] = ()) -> None: ...

    def path(self, points: Sequence[Point], ink: Ink, *, width: float = 2, dash: Sequence[int] = ()) -> None: ...

    def area(self, points: Sequence[Point], ink: Ink) -> None:
        """A pale surface."""
        ...

    def box(self, corner: Point, size: Point, ink: Ink, *, filled: bool) -> None: ...

    def mark(self, at: Point, shape: str, ink: Ink) -> None: ...

    def text(self, at: Point, words: str, ink: Ink = "ink", *, anchor: Anchor = "start", size: int = TEXT) -> None:
        """`at` is on the middle line of the letters."""
        ...


@dataclass(frozen=True)
class Bar:
    """One measured number of a row."""

    series: int
    value: float
    low: float | None = None
    high: float | None = None
    """Of the interval that is shown."""
    threshold: float | None = None


@dataclass(frozen=True)
class BarRow:
    """A class, and what was measured on it."""

    name: str
    forgotten: bool
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class BarChart:
    """One metric class by class; each series is a model."""

    title: str
    series: tuple[str, ...]
    rows: tuple[BarRow, ...]
    needs: str
    """What the threshold asks for, in words; empty where there is none."""
    left_out: int = 0
    """Classes that are not drawn, for there are too many."""
    interval: str = ""
    """What the whiskers are."""

    @property
    def height(self) -> float:
        bars = sum(_row_height(row) for row in self.rows)
        return bars + AXIS + LEGEND_LINE * bool(self.needs or self.interval) + 4


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class LineChart:
    """Curves along one axis."""

    title: str
    x_name: str
    y_name: str
    lines: tuple[Line, ...]
    thresholds: tuple[float, ...] = ()

    @property
    def height(self) -> float:
        return TOP + PLOT_HEIGHT + AXIS + LEGEND_LINE * len(self.lines)

    def in_words(self) -> str:
        """For who cannot see it."""
        return "; ".join(_course(line, self.x_name) for line in self.lines)


def shortened(words: str, most: int = LONGEST_NAME) -> str:
    """As much of a name as fits."""
    return words if len(words) <= most else words[: most - 1] + "…"


def outlined(at: Point, shape: str, radius: float = 4.0) -> tuple[list[Point], bool]:
    """The corners of a mark, and whether they enclose it; if not, each two are ends of a stroke."""
    x, y = at
    r = radius
    match shape:
        case "square":
            return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], True
        case "triangle":
            return [(x, y - r * 1.2), (x + r * 1.2, y + r), (x - r * 1.2, y + r)], True
        case "diamond":
            return [(x, y - r * 1.3), (x + r * 1.3, y), (x, y + r * 1.3), (x - r * 1.3, y)], True
        case "forgotten":
            return [(x - r, y - r), (x + r * 1.2, y), (x - r, y + r)], True
        case "cross" | "bad":
            return [(x - r, y - r), (x + r, y + r), (x - r, y + r), (x + r, y - r)], False
        case "good":
            return [(x - r, y), (x - r / 3, y + r * 0.8), (x - r / 3, y + r * 0.8), (x + r, y - r)], False
        case "ring":
            return [(x - r, y), (x + r, y), (x, y - r), (x, y + r)], False
        case _:
            return [(x + r * math.cos(k * math.pi / 8), y + r * math.sin(k * math.pi / 8)) for k in range(16)], True


def draw_bars(pen: Pen, chart: BarChart, width: float) -> None:
    """A row a class: its name, a bar for each series, and the first one's figure with its interval."""
    values = [v for row in chart.rows for b in row.bars for v in (b.value, b.low, b.high, b.threshold) if v is not None]
    low, high = span(values)
    begin, end = float(NAMES), width - VALUES

    def place(value: float) -> float:
        return begin + (min(max(value, low), high) - low) / (high - low) * (end - begin)

    bottom = sum(_row_height(row) for row in chart.rows)
    for tick in ticks(low, high):
        pen.line((place(tick), 0), (place(tick), bottom), "rule")
        pen.text((place(tick), bottom + 12), tick_label(tick, low, high), "faint", anchor="middle", size=SMALL)
    y = 0.0
    for row in chart.rows:
        _draw_row(pen, row, y, place, begin, end)
        y += _row_height(row)
    pen.line((place(max(low, 0.0)), 0), (place(max(low, 0.0)), bottom), "faint")
    _bar_legend(pen, chart, bottom + AXIS - 8)


def _draw_row(pen: Pen, row: BarRow, y: float, place: Scale, begin: float, end: float) -> None:
    inner = _row_height(row) - ROW_GAP
    name = shortened(row.name, LONGEST_NAME - 4 if row.forgotten else LONGEST_NAME)
    pen.text(
        (begin - (24 if row.forgotten else 10), y + ROW_GAP / 2 + inner / 2),
        name,
        "bad" if row.forgotten else "ink",
        anchor="end",
    )
    if row.forgotten:
        pen.mark((begin - 13, y + ROW_GAP / 2 + inner / 2), "forgotten", "bad")
    zero = place(0.0)
    for i, bar in enumerate(row.bars):
        top = y + ROW_GAP / 2 + i * (BAR + BAR_GAP)
        middle, tip = top + BAR / 2, place(bar.value)
        ink = SERIES[bar.series % MOST_LINES]
        pen.box((min(zero, tip), top), (max(abs(tip - zero), 1.0), BAR), ink, filled=bar.series == 0)
        if bar.low is not None and bar.high is not None:
            pen.line((place(bar.low), middle), (place(bar.high), middle), "ink", width=1.5)
            for edge in (place(bar.low), place(bar.high)):
                pen.line((edge, middle - 3.5), (edge, middle + 3.5), "ink", width=1.5)
        if bar.threshold is not None:
            pen.line((place(bar.threshold), top - 2), (place(bar.threshold), top + BAR + 2), "ink", width=2, dash=(3, 2))
    if row.bars:
        pen.text((end + 14, y + ROW_GAP / 2 + BAR / 2), _with_interval(row.bars[0]), size=SMALL)


def _with_interval(bar: Bar) -> str:
    if bar.low is None or bar.high is None:
        return figure(bar.value)
    return f"{figure(bar.value)}   [{figure(bar.low)}, {figure(bar.high)}]"


def _bar_legend(pen: Pen, chart: BarChart, y: float) -> None:
    x = float(NAMES)
    for i, name in enumerate(chart.series):
        pen.box((x, y - BAR / 2), (18, BAR), SERIES[i % MOST_LINES], filled=i == 0)
        pen.text((x + 24, y), name, size=SMALL)
        x += 24 + 7.2 * len(name) + 22
    if any(row.forgotten for row in chart.rows):
        pen.mark((x + 6, y), "forgotten", "bad")
        pen.text((x + 18, y), "to be forgotten", "bad", size=SMALL)
    remarks = [chart.needs and f"dashed: needs {chart.needs}", chart.interval and f"whiskers: {chart.interval}"]
    if said := "; ".join(remark for remark in remarks if remark):
        pen.text((NAMES, y + LEGEND_LINE), said, "faint", size=SMALL)


def _row_height(row: BarRow) -> float:
    return max(len(row.bars), 1) * (BAR + BAR_GAP) - BAR_GAP + ROW_GAP


def draw_lines(pen: Pen, chart: LineChart, width: float) -> None:
    """Curves with their bands, the thresholds dashed, and a legend that says in figures where each one goes."""
    every_y = [v for line in chart.lines for part in (line.y, line.low, line.high) for v in part]
    x_low, x_high = _x_span([v for line in chart.lines for v in line.x])
    y_low, y_high = span([*every_y, *chart.thresholds])
    top, left, right = float(TOP), float(LEFT), width - RIGHT
    bottom = top + PLOT_HEIGHT

    def at_x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def at_y(value: float) -> float:
        return bottom - (min(max(value, y_low), y_high) - y_low) / (y_high - y_low) * PLOT_HEIGHT

    pen.text((0, 10), shortened(chart.y_name, int(width / 7)), "faint", size=SMALL)
    for tick in ticks(y_low, y_high):
        pen.line((left, at_y(tick)), (right, at_y(tick)), "rule")
        pen.text((left - 8, at_y(tick)), tick_label(tick, y_low, y_high), "faint", anchor="end", size=SMALL)
    for tick, label in _x_ticks(chart, x_low, x_high, (right - left) / (x_high - x_low)):
        pen.line((at_x(tick), bottom), (at_x(tick), bottom + 4), "faint")
        pen.text((at_x(tick), bottom + 14), label, "faint", anchor="middle", size=SMALL)
    pen.line((left, bottom), (right, bottom), "faint")
    pen.text(((left + right) / 2, bottom + 30), shortened(chart.x_name, int(width / 8)), "faint", anchor="middle", size=SMALL)
    for threshold in dict.fromkeys(chart.thresholds):
        pen.line((left, at_y(threshold)), (right, at_y(threshold)), "ink", width=1.5, dash=(3, 3))
        above = -9 if at_y(threshold) - 9 > top else 9
        pen.text((right, at_y(threshold) + above), f"threshold {figure(threshold)}", anchor="end", size=SMALL)
    for i, line in enumerate(chart.lines):
        ink, dash, shape = SERIES[i % MOST_LINES], DASHES[i % MOST_LINES], SHAPES[i % MOST_LINES]
        points = [(at_x(x), at_y(y)) for x, y in zip(line.x, line.y, strict=True)]
        _band(pen, line, ink, at_x, at_y)
        pen.path(points, ink, dash=dash)
        for point in points if len(points) <= 30 else (points[0], points[-1]):
            pen.mark(point, shape, ink)
        y = bottom + AXIS + LEGEND_LINE * (i + 0.5)
        pen.path([(left, y), (left + 30, y)], ink, dash=dash)
        pen.mark((left + 15, y), shape, ink)
        pen.text((left + 38, y), shortened(f"{line.name}: {_ends(line)}", int((width - LEFT - 38) / 6.4)), size=SMALL)


def _band(pen: Pen, line: Line, ink: Ink, at_x: Scale, at_y: Scale) -> None:
    edges = [[(at_x(x), at_y(y)) for x, y in zip(line.x, part, strict=True)] for part in (line.low, line.high) if part]
    if len(edges) == 2:
        pen.area([*edges[0], *reversed(edges[1])], ink)
    elif edges:
        pen.path(edges[0], ink, width=1, dash=(1, 3))


def _x_span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.02 or max(abs(low), 1.0) * 0.5
    return low - room, high + room


def _x_ticks(chart: LineChart, low: float, high: float, scale: float) -> list[tuple[float, str]]:
    """Where something was measured, if that leaves room for the labels; else round numbers."""
    there = sorted({x for line in chart.lines for x in line.x})
    apart = min((b - a for a, b in itertools.pairwise(there)), default=math.inf)
    if len(there) <= MOST_MEASURED and apart * scale >= TICK_ROOM:
        return [(x, f"{x:g}") for x in there]
    return [(tick, tick_label(tick, low, high)) for tick in ticks(low, high)]


def _ends(line: Line) -> str:
    first, last = figure(line.y[0]), figure(line.y[-1])
    return first if len(line.y) == 1 else f"{first} to {last}"


def _course(line: Line, x_name: str) -> str:
    at = f"at {x_name} {figure(line.x[0])}" if len(line.x) == 1 else f"for {x_name} {figure(line.x[0])} to {figure(line.x[-1])}"
    return f"{line.name}: {_ends(line)} {at}"
