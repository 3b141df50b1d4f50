"""The page as one HTML file that needs nothing else: no script, no network, pictures inside, light and dark, fit to print.

Names of classes, summaries and details are strangers' text. All of it passes `escape`, here or in the SVG pen, and the
policy of the page lets a browser load nothing at all, should something ever slip through.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from service.reports import svg
from service.reports.charts import BarChart, LineChart
from service.reports.contents import Group, Mark, Page, Picture, Row
from service.reports.escaping import escape
from service.reports.figures import figure

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content-Security-Policy: the one style sheet by its digest, pictures that are in the page, and nothing else."""
SIGNS = {"good": "✓", "bad": "✕", "open": "?", "none": "·"}
HEADINGS = ("finding", "class", "model", "value", "bound", "needs", "n", "result")


def render(page: Page) -> bytes:
    """The whole document, UTF-8."""
    title = f"{page.verdict} · verification report"
    in_page = POLICY.rpartition(";")[0]  # frame-ancestors is not allowed in a meta element
    body = "\n".join(part for part in _sections(page) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(in_page)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    ).encode()


def _sections(page: Page) -> Iterable[str]:
    yield _verdict(page)
    yield _facts(page)
    yield _section("Before and after", "".join(map(_picture, page.pictures)))
    yield _section("Does the test see?", _controls(page))
    yield _section("Class by class", "".join(_bar_chart(chart, k) for k, chart in enumerate(page.bars)))
    curves = "".join(_line_chart(chart, k) for k, chart in enumerate(page.curves))
    yield _section("Attacks and sweeps", curves and f'<div class="two">{curves}</div>')
    yield _section("Every finding", _findings(page))
    yield _section("Known limits", _list(page.limits))
    yield _section("Judges", _judges(page))
    yield _section("What it cost", _costs(page))
    yield _section("Digests", _pairs(page.digests, code=True))


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def _verdict(page: Page) -> str:
    sign = f'<span class="sign" aria-hidden="true">{SIGNS[page.tone]}</span>'
    return (
        f'<header class="verdict {page.tone}">{sign}<div><p class="word">{escape(page.verdict)}</p>'
        f"<h1>{escape(page.headline)}</h1><p>{escape(page.sentence)}</p></div></header>"
    )


def _facts(page: Page) -> str:
    return f'<section class="facts">{_pairs(page.facts)}</section>'


def _pairs(pairs: Iterable[tuple[str, str]], *, code: bool = False) -> str:
    tag = "code" if code else "span"
    rows = "".join(f"<dt>{escape(name)}</dt><dd><{tag}>{escape(said)}</{tag}></dd>" for name, said in pairs)
    return f"<dl>{rows}</dl>" if rows else ""


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>"


def _picture(picture: Picture) -> str:
    if picture.content is None:
        return f"<p>{escape(picture.name)}: {escape(picture.words)}</p>"
    data = base64.b64encode(picture.content).decode()
    words = escape(picture.words)
    return (
        f'<figure class="paper"><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
    )


# --------------------------------------------------------------------------------------------------------------- charts


def _bar_chart(chart: BarChart, number: int) -> str:
    more = f'<p class="remark">{chart.left_out:,} more classes are in the table of findings.</p>' if chart.left_out else ""
    drawn = svg.bars(chart, f"b{number}")
    return f'<figure><figcaption>{escape(chart.title)}</figcaption><div class="panel">{drawn}</div>{more}</figure>'


def _line_chart(chart: LineChart, number: int) -> str:
    drawn = svg.lines(chart, f"c{number}")
    numbers = _numbers(chart)
    return f'<figure><figcaption>{escape(chart.title)}</figcaption><div class="panel">{drawn}</div>{numbers}</figure>'


def _numbers(chart: LineChart) -> str:
    """The curves as a table, folded away: for who cannot see them, and for who wants to copy them."""
    rows = "".join(
        f"<tr><td>{escape(line.name)}</td><td class='n'>{figure(x)}</td><td class='n'>{figure(y)}</td></tr>"
        for line in chart.lines
        for x, y in zip(line.x, line.y, strict=True)
    )
    head = _head(("curve", chart.x_name, chart.y_name))
    return f"<details><summary>the numbers</summary><table>{head}<tbody>{rows}</tbody></table></details>"


# --------------------------------------------------------------------------------------------------------------- tables


def _head(names: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _mark(mark: Mark) -> str:
    return f'<td class="mark {mark.tone}"><span aria-hidden="true">{SIGNS[mark.tone]}</span> {escape(mark.word)}</td>'


def _row(row: Row) -> str:
    detail = f"<small>{escape(row.detail)}</small>" if row.detail else ""
    detail += f"<small>protocol <code>{escape(row.protocol)}</code></small>" if row.protocol else ""
    cells = [f"<td>{escape(row.what)}{detail}</td>", f"<td>{escape(row.on)}</td>", f"<td>{escape(row.of)}</td>"]
    cells += [f'<td class="n">{escape(said)}</td>' for said in (row.value, row.bound, row.needs, row.n)]
    return f"<tr>{''.join(cells)}{_mark(row.mark)}</tr>"


def _table(rows: Iterable[Row]) -> str:
    body = "".join(map(_row, rows))
    return f'<div class="wide"><table class="findings">{_head(HEADINGS)}<tbody>{body}</tbody></table></div>'


def _controls(page: Page) -> str:
    if not page.controls:
        return ""
    said = "A test that the original model passes is blind: it could not tell a model that forgot. So the original must fail."
    return f"<p>{said}</p>{_table(page.controls)}"


def _findings(page: Page) -> str:
    return "".join(map(_group, page.groups)) or "<p>The report holds no finding.</p>"


def _group(group: Group) -> str:
    cost = f" · {group.seconds}" if group.seconds else ""
    name = f'<span class="remark"><code>{escape(group.check)}</code>{escape(cost)}</span>'
    return f'<div class="group"><h3>{escape(group.title)} {name}</h3>{_table(group.rows)}</div>'


def _judges(page: Page) -> str:
    if not page.judges:
        return ""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(accuracy)}</td><td class="n">{escape(n)}</td>'
        f"<td><code>{escape(digest[:16])}…</code></td></tr>"
        for name, accuracy, n, digest in page.judges
    )
    head = _head(("judge", "accuracy (Wilson 95 % interval)", "held-out images", "weights"))
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'


def _costs(page: Page) -> str:
    most = max((cost for _, cost, _ in page.costs), default=0.0) or 1.0
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{escape(said)}</td>'
        f'<td><svg class="cost" viewBox="0 0 200 10" aria-hidden="true">'
        f'<rect class="f-s0" width="{max(1.0, 200 * cost / most):.1f}" height="10"/></svg></td></tr>'
        for name, cost, said in page.costs
    )
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    total = f"<p>{escape(page.total)}</p>" if page.total else ""
    return table + total
