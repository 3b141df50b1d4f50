"""Which charts a report deserves: findings class by class become bars, curves that share their axes are drawn together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from service.reports.charts import MOST_LINES, Bar, BarChart, BarRow, Line, LineChart
from service.reports.figures import figure, wilson

Json = Mapping[str, Any]

MOST_ROWS = 30
"""Classes of one chart. The table has all of them."""
SUBJECTS = ("candidate", "original", "parent", "reference")
SIGNS = {"ge": "at least", "le": "at most", "eq": "exactly"}


def words(name: object) -> str:
    """A machine's name as people write it."""
    return str(name or "").replace("_", " ")


# ---------------------------------------------------------------------------------------------------------------- bars


def bar_charts(findings: Iterable[Json], forgotten: Collection[str]) -> tuple[BarChart, ...]:
    """A chart for each metric that was measured class by class; those that decide come first."""
    by_metric: dict[tuple[str, str, str], list[Json]] = {}
    for f in findings:
        if f.get("class_name") is not None and f.get("value") is not None and f.get("comparator") != "eq":
            about = (str(f["check"]), str(f.get("metric")), _corruption(f))
            by_metric.setdefault(about, []).append(f)
    charts = [(any(f.get("gating") for f in some), _bar_chart(about, some, forgotten)) for about, some in by_metric.items()]
    return tuple(chart for gating, chart in sorted(charts, key=lambda c: not c[0]))


def _corruption(f: Json) -> str:
    hidden = f.get("corruption")
    return f"{words(hidden.get('kind'))} {hidden.get('ratio')}" if hidden else ""


def _bar_chart(about: tuple[str, str, str], findings: Sequence[Json], forgotten: Collection[str]) -> BarChart:
    check, metric, corruption = about
    series = sorted({str(f.get("subject")) for f in findings}, key=_rank)
    by_class: dict[str, dict[str, Json]] = {}
    for f in findings:
        by_class.setdefault(str(f["class_name"]), {})[str(f.get("subject"))] = f
    rows = [
        BarRow(name, name in forgotten, tuple(_bar(some[s], i) for i, s in enumerate(series) if s in some))
        for name, some in by_class.items()
    ]
    # what is to be forgotten first, then what did not pass: of a thousand classes these are the ones to look at
    missed = {str(f["class_name"]) for f in findings if f.get("gating") and f.get("passed") is not True}
    rows.sort(key=lambda r: (not r.forgotten, r.name not in missed))
    exact = any(f.get("count") is not None for f in findings)
    bounded = any(f.get("lower95") is not None and f.get("upper95") is not None for f in findings)
    return BarChart(
        title=f"{words(check)}: {words(metric)}" + (f", hidden: {corruption}" if corruption else ""),
        series=tuple(series),
        rows=tuple(rows[:MOST_ROWS]),
        needs=_needs(findings),
        left_out=max(0, len(rows) - MOST_ROWS),
        interval="Wilson 95 % interval" if exact else "95 % bounds" if bounded else "",
    )


def _bar(f: Json, series: int) -> Bar:
    low, high = interval(f)
    threshold = f.get("threshold") if f.get("gating") else None
    return Bar(series, float(f["value"]), low, high, threshold)


def interval(f: Json) -> tuple[float | None, float | None]:
    """What to show around a value: Wilson's interval of a rate, else the bounds where there are two.

    A rate may be told as the share of hits or of misses.
    """
    value, n, count = f.get("value"), f.get("n"), f.get("count")
    if value is not None and n and count is not None and 0 <= count <= n:
        for hits in (count, n - count):
            if abs(hits / n - value) < 1e-6:
                return wilson(hits, n)
    low, high = f.get("lower95"), f.get("upper95")
    return (low, high) if low is not None and high is not None else (None, None)


def _needs(findings: Iterable[Json]) -> str:
    asked = {(f.get("comparator"), f.get("threshold")) for f in findings if f.get("gating") and f.get("threshold") is not None}
    if len(asked) != 1:
        return "what the table says" if asked else ""
    ((comparator, threshold),) = asked
    return f"{SIGNS.get(comparator or '', '')} {figure(threshold)} at its bound"


def _rank(subject: str) -> tuple[int, str]:
    return (SUBJECTS.index(subject) if subject in SUBJECTS else len(SUBJECTS)), subject


# -------------------------------------------------------------------------------------------------------------- curves


def line_charts(curves: Iterable[Json]) -> tuple[LineChart, ...]:
    """Curves of one check along the same axes, about the same class, in one chart; six at most, more are drawn below."""
    together: dict[tuple[str, str, str, str], list[Json]] = {}
    for c in curves:
        key = (str(c.get("check")), str(c.get("x_name")), str(c.get("y_name")), str(c.get("class_name") or ""))
        together.setdefault(key, []).append(c)
    return tuple(
        _line_chart(key, some[k : k + MOST_LINES])
        for key, some in ((key, sorted(some, key=lambda c: _rank(str(c.get("subject"))))) for key, some in together.items())
        for k in range(0, len(some), MOST_LINES)
    )


def _line_chart(key: tuple[str, str, str, str], curves: Sequence[Json]) -> LineChart:
    check, x_name, y_name, class_name = key
    subjects = [str(c.get("subject")) for c in curves]
    several = len(set(subjects)) < len(subjects)
    return LineChart(
        title=words(check) + (f": {class_name}" if class_name else ""),
        x_name=words(x_name),
        y_name=words(y_name),
        lines=tuple(
            Line(
                name=f"{words(c.get('name'))} ({c.get('subject')})" if several else str(c.get("subject")),
                x=tuple(map(float, c["x"])),
                y=tuple(map(float, c["y"])),
                low=tuple(map(float, c.get("lower95") or ())),
                high=tuple(map(float, c.get("upper95") or ())),
            )
            for c in curves
        ),
        thresholds=tuple(float(c["threshold"]) for c in curves if c.get("threshold") is not None),
    )
