"""What the page says of a report: the verdict in one line, marks, intervals, what is drawn with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from scipy.stats import binomtest

from service.certificates import limits
from service.reports import contents
from service.reports.charts import MOST_LINES
from service.reports.figures import figure, span, tick_label, ticks, wilson
from service.reports.plots import MOST_ROWS, bar_charts, interval, line_charts
from tests.service.reports.examples import ABOUT, classifier, control, curve, finding, image_to_image, report, retained
from worker.contract import Report, document_digest, document_json


def _dump(*documents: Any) -> list[dict[str, Any]]:
    return [document_json(document) for document in documents]


MISSED = {"passed": False}


@pytest.mark.parametrize(
    ("verdict", "findings", "line"),
    [
        ("PASS", (finding(),), "Verified: every required finding passed"),
        ("FAIL", (finding(), finding(**MISSED), control()), "Not verified: 1 of 2 required findings did not pass"),
        (
            "INCONCLUSIVE",
            (finding(**MISSED, open=True),),
            "Not verified: too few samples to tell about 1 of 1",
        ),
        ("VOID", (control(passed=True),), "No verdict: the tests could not tell a model that forgot from one that did not"),
        ("ERROR", (), "No verdict: something that is required could not be measured"),
    ],
)
def test_the_verdict_is_one_line(verdict: str, findings: tuple[Any, ...], line: str) -> None:
    assert contents.headline(verdict, _dump(*findings)).startswith(line)


@pytest.mark.parametrize(
    ("found", "word", "tone"),
    [
        (finding(), "passed", "good"),
        (finding(passed=False), "did not pass", "bad"),
        (finding(passed=None), "did not pass", "bad"),
        (finding(passed=False, open=True), "too few to tell", "open"),
        (control(), "failed, as it must", "good"),
        (control(passed=True), "did not fail: blind", "bad"),
        (control(passed=None), "did not fail: blind", "bad"),
        (finding(gating=False, underpowered=True), "underpowered", "open"),
        (finding(metric="not_measured", gating=False, passed=None), "not measured", "open"),
        (retained("dog"), "reported", "none"),
    ],
)
def test_a_finding_ends_in_a_word(found: Any, word: str, tone: str) -> None:
    assert contents.mark(document_json(found)) == contents.Mark(word, tone)  # type: ignore[arg-type]


@pytest.mark.parametrize(("hits", "n"), [(0, 200), (3, 200), (100, 200), (200, 200), (1, 1)])
def test_the_interval_that_is_shown_is_wilsons(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_rate_may_count_hits_or_misses_and_other_numbers_keep_their_bounds() -> None:
    forgotten, kept = _dump(finding(value=0.985, count=3), retained("dog", value=0.95, count=76))
    assert interval(forgotten) == pytest.approx(wilson(197, 200))
    assert interval(kept) == pytest.approx(wilson(76, 80))
    ratio = document_json(finding(value=1.2, count=None, lower95=1.1, upper95=1.4))
    assert interval(ratio) == (1.1, 1.4)
    assert interval(document_json(finding(value=1.2, count=None, lower95=None, upper95=1.4))) == (None, None)


def test_bars_show_what_is_forgotten_first_and_every_model_of_a_class() -> None:
    some = [retained(f"class {k}", value=0.95) for k in range(3)]
    before = [retained(f"class {k}", subject="parent") for k in range(3)]
    gone = retained("cat", value=0.0, count=0)
    (chart,) = bar_charts(_dump(*before, *some, gone), {"cat"})
    assert [row.name for row in chart.rows] == ["cat", "class 0", "class 1", "class 2"]
    assert [row.forgotten for row in chart.rows] == [True, False, False, False]
    assert chart.series == ("candidate", "parent")
    assert [bar.series for bar in chart.rows[1].bars] == [0, 1]


def test_of_a_thousand_classes_those_that_did_not_pass_are_drawn() -> None:
    some = [finding(class_name=f"class {k}", passed=k != 900) for k in range(1000)]
    (chart,) = bar_charts(_dump(*some), {"class 950"})
    assert [row.name for row in chart.rows[:3]] == ["class 950", "class 900", "class 0"]
    assert (len(chart.rows), chart.left_out) == (MOST_ROWS, 1000 - MOST_ROWS)


def test_corruptions_have_charts_of_their_own() -> None:
    charts = contents.page(image_to_image(), ABOUT).bars
    assert [chart.title.rpartition("hidden: ")[2] for chart in charts] == ["center 0.25", "outpaint 0.5"]


def test_curves_with_the_same_axes_and_class_are_drawn_together() -> None:
    together = (curve(subject="novel class"), curve(), curve(subject="original"), curve(class_name="dog"), curve("sdedit"))
    charts = line_charts(_dump(*together))
    assert [(c.title, [line.name for line in c.lines]) for c in charts] == [
        ("relearning: cat", ["candidate", "original", "novel class"]),
        ("relearning: dog", ["candidate"]),
        ("sdedit: cat", ["candidate"]),
    ]


def test_curves_of_one_model_are_told_apart_by_name_and_too_many_are_split() -> None:
    many = [curve(name=f"rate {k}") for k in range(MOST_LINES + 1)]
    first, second = line_charts(_dump(*many))
    assert [line.name for line in first.lines][:2] == ["rate 0 (candidate)", "rate 1 (candidate)"]
    assert (len(first.lines), len(second.lines)) == (MOST_LINES, 1)


def test_the_page_names_tier_policy_judges_and_costs() -> None:
    page = contents.page(report(tier="L1", looks=2), ABOUT)
    facts = dict(page.facts)
    assert facts["Tier reached"].startswith("L1: ")
    assert facts["Policy"].startswith("basic-v1 · sha256 2222")
    assert facts["Looks"].startswith("2 of at most 3")
    assert facts["Guarantee"].startswith("empirical. ")
    assert page.judges[0][:3] == ("cnn", "97.5 % (95.5 % to 98.6 %)", "400")
    assert [name for name, _, _ in page.costs] == ["forget rate", "integrity"]
    assert page.groups[0].title == "Forgotten classes are no longer drawn"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"real": 0.0, "classes": [], "proxy_classes": [2], "proxy_dataset_id": "dset_2"},
         "no real images of retained classes; in the place of the rest other classes, set aside: cow and another dataset: "
         "dset_2"),
        ({"real": 0.25, "classes": [1], "proxy_classes": [], "proxy_dataset_id": "dset_2"},
         "25.0 % real images of dog; in the place of the rest another dataset: dset_2"),
        ({"real": 1.0, "classes": [], "proxy_classes": [2], "proxy_dataset_id": None},
         "real images of all classes that are neither forgotten nor set aside; set aside: cow"),
        (None, None),
    ],
)  # fmt: skip
def test_the_page_says_what_stood_in_for_retained_images(chosen: dict[str, Any] | None, said: str | None) -> None:
    """Passed or not: where nothing was certified there is no `retainData` that the limits could speak of."""
    about = dataclasses.replace(ABOUT, retain=chosen, class_names=("cat", "dog", "cow"), guarantee=None)
    assert dict(contents.page(report("FAIL"), about).facts).get("Looked at to keep the rest") == said


def test_without_a_certificate_nothing_is_guaranteed() -> None:
    page = contents.page(report("FAIL"), dataclasses.replace(ABOUT, guarantee=None, checkpoint=""))
    assert dict(page.facts)["Guarantee"].startswith("none")
    assert not any("this certificate" in limit for limit in page.limits)


def test_the_digest_is_the_one_that_the_certificate_names() -> None:
    expected = document_digest(Report.model_validate(report()))
    about = dataclasses.replace(ABOUT, certified_report=expected)
    assert dict(contents.page(report(), about).digests)["This report, as the certificate has it (reportSha256)"] == expected


def test_a_report_that_the_certificate_does_not_name_is_not_called_so() -> None:
    other = contents.page(report(), dataclasses.replace(ABOUT, certified_report="9" * 64))
    assert "this one is not what was certified" in dict(other.facts)["Certificate"]
    assert dict(other.digests)["The report that the certificate names (reportSha256)"] == "9" * 64
    unpublished = contents.page(report(), dataclasses.replace(ABOUT, certified_report="", checkpoint=""))
    assert [name for name, _ in unpublished.digests if "report" in name] == ["This report"]
    assert "Certificate" not in dict(unpublished.facts)


def test_earlier_rejected_requests_are_told() -> None:
    page = contents.page(report(), dataclasses.replace(ABOUT, rejected_before=1))
    assert dict(page.facts)["Rejected before"] == "1 other request to forget the same of the same version"
    assert limits.asked_before(1) in page.limits


def test_counts_that_must_be_zero_take_one_line_unless_one_is_not() -> None:
    zero = {"comparator": "eq", "threshold": 0, "value": 0, "lower95": None, "n": None, "count": None, "class_name": None}
    good = [finding("integrity", metric, **zero) for metric in ("files", "keys", "moments")]
    (group,) = contents.groups(_dump(*good), {}, {})
    assert [row.what for row in group.rows] == ["3 counts that must be 0"]
    bad = finding("integrity", "digests", **{**zero, "value": 2, "passed": False})
    (group,) = contents.groups(_dump(*good, bad), {}, {})
    assert [(row.what, row.mark.tone) for row in group.rows] == [("3 counts that must be 0", "good"), ("digests", "bad")]


def test_a_report_of_nothing_is_a_page() -> None:
    page = contents.page({"verdict": "ERROR"}, contents.About())
    assert (page.bars, page.curves, page.groups, page.tone) == ((), (), (), "open")


def test_samples_are_counted_never_named() -> None:
    about = dataclasses.replace(ABOUT, forget=(), samples=12, kind="classifier")
    page = contents.page(classifier(), about)
    assert dict(page.facts)["To forget"] == "12 single samples"
    assert not any("no new last layer" in limit for limit in page.limits)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.9851, "0.985"), (0, "0"), (0.0, "0.000"), (1e-5, "1.0e-05"), (12.34, "12.3"), (1200.0, "1,200"), (None, "–")],
)
def test_figures_have_the_digits_that_tell(value: Any, said: str) -> None:
    assert figure(value) == said


def test_axes_are_round_and_never_of_no_length() -> None:
    assert span([0.2, 0.9]) == (0.0, 1.0)
    assert span([0.0, 0.31]) == pytest.approx((0.0, 0.35)) or span([0.0, 0.31]) == pytest.approx((0.0, 0.4))
    assert span([0.0, 0.0])[1] > 0
    assert span([-3.0, 17.0]) == (-5.0, 20.0)
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [tick_label(t, 0.0, 0.05) for t in ticks(0.0, 0.05)][:2] == ["0.00", "0.01"]
