"""What people are shown of a request: how far it has come, and what was found before and after."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.client import Client
from service.client.bodies import UnlearnRequestRead

Json = dict[str, Any]


def follow(client: Client, request_id: str, console: Console) -> UnlearnRequestRead:
    """A progress bar with phase and time left until the request ends; returns its last reading."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=34),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("[cyan]{task.fields[eta]}"),
    )
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("queued", total=1, unit="", eta="")

        def show(request: UnlearnRequestRead) -> None:
            progress = request.get("progress") or {}
            rung = request.get("rung") or {"of": 1}
            walk = f" {rung['number']}/{rung['of']}" if rung["of"] > 1 else ""
            left = progress.get("estimated_remaining_seconds")
            bars.update(
                bar,
                description=(request["phase"] or request["status"]) + walk,
                completed=progress.get("completed") or 0,
                total=progress.get("total") or 1,
                unit=f"{progress['unit']}s" if progress.get("unit") else "",
                eta="" if left is None else f"{left:.0f} s left",
            )

        final = client.requests.watch(request_id, show)
        if final["status"] == "succeeded":
            bars.update(bar, description="succeeded", completed=1, total=1, unit="", eta="")
    return final


def pick(report: Mapping[str, Any], check: str, metric: str, subject: str, *, overall: bool = False) -> list[Json]:
    """The findings of one metric about one subject; `overall` leaves out the per-class ones."""
    return [
        f
        for f in report["findings"]
        if f["check"] == check
        and f["metric"] == metric
        and f["subject"] == subject
        and not (overall and f["class_index"] is not None)
    ]


def scores(report: Mapping[str, Any]) -> Json:
    """The demo's figures out of a report; null where the report has none."""
    forgot = pick(report, "forget_rate", "unlearning_accuracy", "candidate")
    controls = [f for f in report["findings"] if f["control"]]
    before = pick(report, "retain_accuracy", "retain_accuracy", "parent", overall=True)
    after = pick(report, "retain_accuracy", "retain_accuracy", "candidate", overall=True)
    return {
        "unlearning_accuracy": min((f["value"] for f in forgot), default=None),
        "unlearning_accuracy_lower95": min((f["lower95"] for f in forgot), default=None),
        "retain_accuracy_before": before[0]["value"] if before else None,
        "retain_accuracy_after": after[0]["value"] if after else None,
        "original_fails_gate": bool(controls) and all(f["passed"] is False for f in controls),
        "seconds_verify": round(report["seconds_verify"], 2),
    }


def before_after_table(report: Mapping[str, Any]) -> Table:
    """Every gating finding, with what the original or parent scored beside it."""
    table = Table(title=f"Verdict: {report['verdict']}", title_justify="left")
    table.add_column("finding")
    for heading in ("before", "after", "bound", "needs"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for check, group in groupby((f for f in report["findings"] if f["gating"]), key=lambda f: f["check"]):
        findings = list(group)
        if all(f["comparator"] == "eq" for f in findings):  # counts that must be zero: one line says it for all of them
            wrong = [f["metric"].replace("_", " ") for f in findings if f["passed"] is not True]
            table.add_row(f"{check} ({len(findings)} checks)", "", ", ".join(wrong), "", "", _mark(not wrong))
            continue
        for finding in findings:
            table.add_row(*_row(report, finding))
    return table


def _mark(passed: bool) -> str:
    return "[green]pass[/]" if passed else "[red]FAIL[/]"


def _row(report: Mapping[str, Any], finding: Mapping[str, Any]) -> tuple[str, ...]:
    sign = {"ge": "≥", "le": "≤", "eq": "="}.get(finding["comparator"] or "", "")
    bound = finding["lower95"] if finding["comparator"] == "ge" else finding["upper95"]
    label = finding["metric"].replace("_", " ") + (f" ({finding['class_name']})" if finding["class_name"] else "")
    if hidden := finding.get("corruption"):
        label += f", {hidden['kind'].replace('_', ' ')} {hidden['ratio']}"
    numbers = ("" if v is None else f"{v:.3f}" for v in (finding["value"], bound))
    needs = "" if finding["threshold"] is None else f"{sign} {finding['threshold']:.3g}"
    return (escape(label), _before(report, finding), *numbers, needs, _mark(finding["passed"] is True))


def _before(report: Mapping[str, Any], finding: Mapping[str, Any]) -> str:
    for other in report["findings"]:
        same = all(other.get(k) == finding.get(k) for k in ("check", "metric", "class_index", "corruption"))
        if same and other["subject"] != finding["subject"] and other["value"] is not None:
            return f"{other['value']:.3f}"
    return ""
