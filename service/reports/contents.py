"""What the report says, in the order in which it says it. Pure: the report's JSON and facts about the request in, a page out.

Reports of every version are read, so nothing is taken for granted but `verdict` and the `check` of a finding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from service.certificates.limits import GUARANTEES, NO_TIER, TIERS, known_limits
from service.reports.charts import BarChart, LineChart
from service.reports.figures import figure, percent, seconds, wilson
from service.reports.plots import bar_charts, line_charts, words
from service.reports.retain_data import in_words, listed
from service.values import sorted_json

Json = Mapping[str, Any]
Tone = Literal["good", "bad", "open", "none"]

HEADLINES = {
    "PASS": "Verified: every required finding passed",
    "FAIL": "Not verified: {missed} of {gating} required findings did not pass",
    "INCONCLUSIVE": "Not verified: too few samples to tell about {missed} of {gating} required findings",
    "VOID": "No verdict: the tests could not tell a model that forgot from one that did not",
    "ERROR": "No verdict: something that is required could not be measured",
}
TONES: dict[str, Tone] = {"PASS": "good", "FAIL": "bad", "INCONCLUSIVE": "open", "VOID": "open", "ERROR": "open"}
OTHER_REPORT = ". It names another report: this one is not what was certified"
SIGNS = {"ge": "≥", "le": "≤", "eq": "="}


@dataclass(frozen=True)
class About:
    """What the service knows of the request beside the report. What is not known is left out of the page."""

    request_id: str = ""
    model: str = ""
    forget: tuple[str, ...] = ()
    """Names of the classes that this request asks for."""
    earlier: tuple[str, ...] = ()
    """Of those that were forgotten before on the lineage: they are verified again."""
    samples: int = 0
    """Single items, of this request and before; never their ids, which may be personal data."""
    method: str = ""
    kind: str | None = None
    policy: Json = field(default_factory=dict)
    retain: Json | None = None
    """What training could look at to keep the rest, as the row has it, where the request chose it: classes by index."""
    class_names: tuple[str, ...] = ()
    """Of the model, in index order."""
    attempt: str = ""
    rejected_before: int = 0
    """Other requests to forget the same of the same version that had been rejected by then."""
    parent: Json | None = None
    """What the certificate says of the version that was replaced."""
    approval: Json | None = None
    """What it says of who looked at the request before it ran."""
    guarantee: str | None = None
    """What the certificate claims; None: nothing was published."""
    certified_report: str = ""
    """The certificate's `reportSha256`."""
    checkpoint: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    """What each check is called."""


@dataclass(frozen=True)
class Picture:
    """A picture of the evidence; `content` is None where it could not be had, and `words` say why."""

    name: str
    words: str
    content: bytes | None = None


@dataclass(frozen=True)
class Mark:
    """How a finding ended, in a word and a tone."""

    word: str
    tone: Tone


@dataclass(frozen=True)
class Row:
    """One finding as a line of a table."""

    what: str
    on: str
    of: str
    value: str
    bound: str
    needs: str
    n: str
    mark: Mark
    detail: str = ""
    protocol: str = ""
    """Under which alone the figure may be compared with others."""


@dataclass(frozen=True)
class Group:
    """The findings of one check."""

    check: str
    title: str
    rows: tuple[Row, ...]
    seconds: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that is shown."""

    verdict: str
    tone: Tone
    headline: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]
    bars: tuple[BarChart, ...]
    curves: tuple[LineChart, ...]
    controls: tuple[Row, ...]
    groups: tuple[Group, ...]
    judges: tuple[tuple[str, str, str, str], ...]
    """Name, accuracy with its interval, number of held-out images, digest."""
    costs: tuple[tuple[str, float, str], ...]
    """Check, seconds, and the same in words; the dearest first."""
    total: str
    limits: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]


def page(report: Json, about: About, pictures: Sequence[Picture] = ()) -> Page:
    """The report as a page."""
    findings: Sequence[Json] = report.get("findings") or ()
    forgotten = {*about.forget, *about.earlier}
    verdict = str(report["verdict"])
    return Page(
        verdict=verdict,
        tone=TONES.get(verdict, "none"),
        headline=headline(verdict, findings),
        sentence=str(report.get("summary") or ""),
        facts=tuple((name, said) for name, said in _facts(report, about) if said),
        pictures=tuple(pictures),
        bars=bar_charts(findings, forgotten),
        curves=line_charts(report.get("curves") or ()),
        controls=tuple(row(f) for f in findings if f.get("control")),
        groups=groups(findings, about.titles, report.get("seconds_by_check") or {}),
        judges=tuple(_judge(j) for j in report.get("judges") or ()),
        costs=_costs(report.get("seconds_by_check") or {}),
        total=_total(report),
        limits=tuple(_limits(report, about)),
        digests=tuple((name, said) for name, said in _digests(report, about) if said),
    )


def headline(verdict: str, findings: Iterable[Json]) -> str:
    """The verdict in one line."""
    gating = [f for f in findings if f.get("gating")]
    missed = sum(f.get("passed") is not True for f in gating)
    return HEADLINES.get(verdict, "{missed} of {gating} required findings did not pass").format(
        missed=missed, gating=len(gating)
    )


def _facts(report: Json, about: About) -> Iterable[tuple[str, str]]:
    yield "To forget", listed(about.forget) or (_counted(about.samples) if about.samples else "")
    yield "Forgotten earlier, verified again", listed(about.earlier)
    yield "Model", about.model
    yield "Method", about.method
    yield "Looked at to keep the rest", in_words(about.retain, about.class_names)
    tier = report.get("tier")
    yield "Tier reached", f"{tier}: {TIERS[tier]}" if tier in TIERS else f"none: {NO_TIER}"
    if about.guarantee is not None:
        yield "Guarantee", f"{about.guarantee}. {GUARANTEES.get(about.guarantee, '')}"
    else:
        yield "Guarantee", "none: nothing was certified and nothing was published" if about.request_id else ""
    name, digest = about.policy.get("name"), report.get("policy_digest")
    yield "Policy", " · ".join(part for part in (name, digest and f"sha256 {digest[:16]}…") if part)
    yield "Looks", _looks(report, about.policy)
    yield "Attempt", about.attempt
    yield "Rejected before", _rejected(about.rejected_before)
    yield "Request", about.request_id
    other = about.certified_report not in ("", _digest(report))
    yield "Certificate", f"{about.checkpoint}{OTHER_REPORT if other else ''}"


def _rejected(requests: int) -> str:
    if not requests:
        return ""
    return f"{requests:,} other request{'' if requests == 1 else 's'} to forget the same of the same version"


def _counted(n: int) -> str:
    return f"{n:,} single sample{'' if n == 1 else 's'}"


def _looks(report: Json, policy: Json) -> str:
    looks, most = int(report.get("looks") or 1), int(policy.get("looks") or 1)
    if most == 1:
        return ""
    return f"{looks} of at most {most}, each of twice the samples; they share the chance of a false pass"


# ---------------------------------------------------------------------------------------------------------- the findings


def groups(findings: Iterable[Json], titles: Mapping[str, str], cost: Mapping[str, float]) -> tuple[Group, ...]:
    """Findings by check, in the order of the policy. Counts that must be zero and are become one line."""
    by_check: dict[str, list[Json]] = {}
    for finding in findings:
        by_check.setdefault(str(finding["check"]), []).append(finding)
    return tuple(
        Group(
            check=check,
            title=titles.get(check) or words(check),
            rows=tuple(_rows(some)),
            seconds=seconds(cost[check]) if check in cost else "",
        )
        for check, some in by_check.items()
    )


def _rows(findings: Sequence[Json]) -> Iterable[Row]:
    quiet = [f for f in findings if _is_quiet(f)]
    if len(quiet) > 2:
        names = ", ".join(dict.fromkeys(words(f.get("metric")) for f in quiet))
        yield Row(f"{len(quiet)} counts that must be 0", "", "candidate", "0", "", "= 0", "", Mark("passed", "good"), names)
    else:
        quiet = []
    yield from (row(f) for f in findings if not any(f is other for other in quiet))


def _is_quiet(f: Json) -> bool:
    """A required count that is zero, as it must be: it has nothing more to say."""
    return bool(
        f.get("gating") and f.get("passed") is True and f.get("comparator") == "eq" and not f.get("value") and not f.get("n")
    )


def row(f: Json) -> Row:
    """One finding in words and figures."""
    comparator, threshold = f.get("comparator"), f.get("threshold")
    return Row(
        what=words(f.get("metric")),
        on=" · ".join(part for part in (f.get("class_name"), hidden(f.get("corruption"))) if part),
        of=str(f.get("subject") or ""),
        value=figure(f.get("value")),
        bound=_bound(f),
        needs="" if threshold is None else f"{SIGNS.get(comparator or '', '')} {figure(threshold)}",
        n="" if f.get("n") is None else f"{f['n']:,}" if f.get("count") is None else f"{f['count']:,} / {f['n']:,}",
        mark=mark(f),
        detail=str(f.get("detail") or ""),
        protocol=str(f.get("protocol_id") or ""),
    )


def _bound(f: Json) -> str:
    low, high = f.get("lower95"), f.get("upper95")
    if f.get("comparator") == "le" and f.get("control") and high is None:
        return "" if low is None else f"at least {figure(low)}"
    if f.get("comparator") == "ge" and low is not None:
        return f"at least {figure(low)}"
    if f.get("comparator") == "le" and high is not None:
        return f"at most {figure(high)}"
    return f"{figure(low)} to {figure(high)}" if low is not None and high is not None else ""


def hidden(corruption: Json | None) -> str:
    """What was hidden of an image, in words."""
    return f"{words(corruption.get('kind'))}, {percent(corruption['ratio'])} hidden" if corruption else ""


def mark(f: Json) -> Mark:
    """How a finding ended. A control must fail: one that passes says that the tests are blind."""
    passed = f.get("passed")
    if f.get("metric") == "not_measured":
        return Mark("not measured", "open")
    if f.get("underpowered"):
        return Mark("underpowered", "open")
    if f.get("control"):
        return Mark("failed, as it must", "good") if passed is False else Mark("did not fail: blind", "bad")
    if f.get("gating"):
        if passed is True:
            return Mark("passed", "good")
        return Mark("too few to tell", "open") if f.get("open") else Mark("did not pass", "bad")
    return Mark("reported", "none")


# -------------------------------------------------------------------------------------------------- judges, costs, limits


def _judge(judge: Json) -> tuple[str, str, str, str]:
    accuracy, n = float(judge["held_out_accuracy"]), int(judge["held_out_n"])
    low, high = wilson(round(accuracy * n), n)
    return str(judge["name"]), f"{percent(accuracy)} ({percent(low)} to {percent(high)})", f"{n:,}", str(judge["sha256"])


def _costs(by_check: Mapping[str, float]) -> tuple[tuple[str, float, str], ...]:
    dearest_first = sorted(by_check.items(), key=lambda item: (-item[1], item[0]))
    return tuple((words(check), cost, seconds(cost)) for check, cost in dearest_first)


def _total(report: Json) -> str:
    environment = report.get("environment") or {}
    parts = [
        f"{seconds(report['seconds_verify'])} in all" if report.get("seconds_verify") is not None else "",
        f"{environment.get('ranks')} rank(s) on {environment.get('device')}" if environment else "",
        f"{report['peak_memory_mb']:,.0f} MB at most" if report.get("peak_memory_mb") else "",
        f"torch {environment['torch']}, code {environment['code_version']}" if environment else "",
    ]
    return " · ".join(part for part in parts if part)


def _limits(report: Json, about: About) -> list[str]:
    units = [unit for unit, any_ in (("classes", about.forget or about.earlier), ("samples", about.samples)) if any_]
    return known_limits(
        kind=about.kind or about.policy.get("kind"),
        findings=report.get("findings") or (),
        judged=bool(report.get("judges")),
        units=units or ["classes"],
        chosen=about.retain,
        guarantee=about.guarantee,
        rejected_before=about.rejected_before,
        parent=about.parent,
        approval=about.approval,
    )


def _digest(report: Json) -> str:
    return hashlib.sha256(sorted_json(report)).hexdigest()


def _digests(report: Json, about: About) -> Iterable[tuple[str, str]]:
    if about.certified_report == _digest(report):
        yield "This report, as the certificate has it (reportSha256)", _digest(report)
    else:
        yield "This report", _digest(report)
        yield "The report that the certificate names (reportSha256)", about.certified_report
    yield "Saved result (the files that were tested)", str(report.get("candidate_digest") or "")
    yield "Plan of the run", str(report.get("spec_digest") or "")
    yield "Policy", str(report.get("policy_digest") or "")
    for picture in report.get("evidence") or ():
        yield f"Picture {picture.get('path')}", str(picture.get("sha256") or "")
