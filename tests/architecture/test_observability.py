"""Alerts and dashboard: every expression is PromQL, asks for metrics that are documented, and by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from service.telemetry.catalogue import METRICS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "observability"
RULES: list[dict[str, Any]] = [r for g in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for r in g["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
SERIES = {series: set(m.labels) | ({"le"} if series.endswith("_bucket") else set()) for m in METRICS for series in m.series}
COUNTERS = {m.name for m in METRICS if m.kind == "counter"} | {s for m in METRICS if m.kind == "histogram" for s in m.series}
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{p['title']}/{t['refId']}": t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]},
}


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of an expression, however deep."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "vs", "vector_selector", "param", "args"):
        below = getattr(node, name, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None:
                yield from selectors(one)


@pytest.mark.parametrize("where", sorted(EXPRESSIONS))
def test_the_expression_asks_for_what_there_is(where: str) -> None:
    expression = EXPRESSIONS[where]
    found = list(selectors(promql_parser.parse(expression)))
    named = re.findall(r"\bexpunge_\w+", expression)
    assert [s.name for s in found] == named, "a selector was not found in the tree"
    assert found
    for selector in found:
        assert selector.name in SERIES
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= SERIES[str(selector.name)]
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    for selector in found:
        assert grouped <= SERIES[str(selector.name)], selector.name


@pytest.mark.parametrize("where", sorted(EXPRESSIONS))
def test_counters_are_asked_for_their_growth(where: str) -> None:
    """The number itself begins with the process, or with the first row ever: an alert on it never ends."""
    for name in re.findall(r"\bexpunge_\w+", EXPRESSIONS[where]):
        if name in COUNTERS:
            assert re.search(rf"(rate|increase)\((max\()?{name}\b", EXPRESSIONS[where]), name


def test_an_expression_that_asks_for_something_else_would_be_seen() -> None:
    [wrong] = selectors(promql_parser.parse('sum(rate(expunge_nothing{status="5"}[5m]))'))
    assert wrong.name not in SERIES
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(expunge_queue_depth[5m])")


def test_a_busy_ledger_raises_no_alarm_between_two_checkpoints() -> None:
    """An entry a second, a checkpoint a minute: something is unsigned at every scrape, and nothing is wrong."""
    [rule] = [rule for rule in RULES if rule["alert"] == "ExpungeLedgerUnsigned"]
    assert rule["expr"].partition(" unless ")[2] == "max(expunge_ledger_checkpoint_age_seconds) < 600"


def test_every_alert_says_what_and_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.M)
    runbooks = {heading.lower() for heading in headings}
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == rule["alert"].lower()
        assert rule["annotations"]["runbook"] in runbooks, rule["alert"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_dashboards_panels_do_not_overlap_and_name_their_data_source() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({p["id"] for p in DASHBOARD["panels"]})
    assert {p["datasource"]["uid"] for p in DASHBOARD["panels"]} == {"${datasource}"}
