"""HTML and PNG of the same page: whole, harmless, and with nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from service.reports import contents, html, paper, png
from service.reports.charts import shortened
from service.reports.contents import Picture
from tests.service.reports.examples import (
    ABOUT,
    classifier,
    control,
    curve,
    finding,
    image_to_image,
    picture,
    report,
    retained,
)

HOSTILE = "</title><script>alert(1)</script>\"'<img src=x onerror=y>&"
VOID = {"meta", "img", "br"}
BEFORE_AFTER = Picture("before_after.png", "Before and after", picture())


class Reader(HTMLParser):
    """Collects elements and text, and whether every element is closed in turn."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def _page(shown: dict[str, Any], **about: Any) -> contents.Page:
    return contents.page(shown, dataclasses.replace(ABOUT, **about), [BEFORE_AFTER])


RICH = {
    "findings": (finding(), control(), retained("dog"), retained("dog", subject="parent")),
    "curves": (curve(threshold=0.5), curve(subject="novel class", lower95=(0.0, 0.3, 0.7), upper95=(0.1, 0.5, 0.9))),
}
REPORTS = {
    "passed": report(**RICH),
    "failed": report("FAIL", (finding(passed=False), control())),
    "empty": report("ERROR", ()),
    "bare": {"verdict": "ERROR"},
    "classifier": classifier(),
    "image to image": image_to_image(),
    "unknown": report(
        findings=(finding("brand_new", "of_tomorrow"),), curves=(curve("brand_new", "somebody", x=(1.0,), y=(7e9,)),)
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_a_well_formed_page_that_needs_nothing_else(name: str) -> None:
    written = html.render(_page(REPORTS[name]))
    reader = Reader(written)
    assert reader.open == []
    assert REPORTS[name]["verdict"] in reader.words
    assert "http:" not in written.decode()
    assert "https:" not in written.decode()
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "form", "base"} == set()
    for tag, attributes in reader.tags:
        assert not any(key.startswith("on") or key in ("style", "href") for key in attributes), tag
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    identities = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize("name", REPORTS)
def test_every_report_is_a_picture(name: str) -> None:
    image = Image.open(io.BytesIO(png.render(_page(REPORTS[name]))))
    assert image.format == "PNG"
    assert image.width == round(png.WIDTH * paper.SCALE)
    assert 400 < image.height <= png.TALLEST


def test_curves_of_checks_that_nobody_knows_are_drawn() -> None:
    written = html.render(_page(REPORTS["unknown"])).decode()
    assert "brand new: cat" in written
    assert "somebody: 7.0e+09" in written


def test_a_figure_says_under_which_protocol_it_may_be_compared() -> None:
    named = finding(check="published_distances", metric="retain_fid", protocol_id="fid/float64/inception=ab")
    reader = Reader(html.render(_page(report("PASS", (named, control())))))
    assert "fid/float64/inception=ab" in reader.words
    assert reader.words.count("protocol ") == 1  # the other finding has none


def test_a_strangers_text_stays_text() -> None:
    shown = report(
        "FAIL",
        (finding(class_name=HOSTILE, detail=HOSTILE, protocol_id=HOSTILE, metric="m<b>"), control(class_name=HOSTILE)),
        curves=(curve(name=HOSTILE, subject=HOSTILE, class_name=HOSTILE, x_name=HOSTILE, y_name=HOSTILE),),
        summary=HOSTILE,
    )
    pictured = [Picture(HOSTILE, HOSTILE, picture()), Picture(HOSTILE, HOSTILE)]
    about = dataclasses.replace(
        ABOUT, forget=(HOSTILE,), model=HOSTILE, policy={"name": HOSTILE}, titles={"forget_rate": HOSTILE}
    )
    reader = Reader(html.render(contents.page(shown, about, pictured)))
    assert reader.open == []
    assert {"script", "b"} & {tag for tag, _ in reader.tags} == set()
    assert [a for tag, a in reader.tags if tag == "img" and a.get("src") == "x"] == []
    assert "<script>alert(1)</script>" in reader.words


def test_a_name_cannot_turn_the_direction_of_a_sentence() -> None:
    written = html.render(_page(report(summary="no longer draws \u202ecat\u2066"))).decode()
    assert "\u202e" not in written
    assert "no longer draws \\u202ecat\\u2066" in written


def test_the_policy_of_the_page_allows_its_own_style_and_no_script() -> None:
    written = html.render(_page(REPORTS["passed"])).decode()
    (meta,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', written)
    assert meta.startswith("default-src &#x27;none&#x27;; img-src data:; style-src &#x27;sha256-")
    assert html.STYLE_HASH in meta
    assert "unsafe" not in html.POLICY
    assert "script-src" not in html.POLICY


def test_verdict_marks_and_series_are_told_without_colour() -> None:
    written = html.render(_page(REPORTS["passed"])).decode()
    assert "✓" in written
    assert "failed, as it must" in written
    assert "stroke-dasharray" in written
    assert "candidate: 0.000 to 0.800" in written


def test_light_dark_and_paper_have_their_inks() -> None:
    assert "prefers-color-scheme: dark" in html.STYLE
    assert "@media print" in html.STYLE


def test_a_picture_that_could_not_be_had_is_named_with_the_reason() -> None:
    page = contents.page(report(), ABOUT, [Picture("before_after.png", "the store no longer has it")])
    assert "before_after.png: the store no longer has it" in html.render(page).decode()
    assert png.render(page).startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [b"", b"not a picture", picture()[:40]])
def test_a_picture_that_is_none_spoils_no_png(content: bytes) -> None:
    page = contents.page(report(), ABOUT, [Picture("before_after.png", "w", content)])
    assert png.render(page).startswith(b"\x89PNG")


def test_a_picture_that_would_fill_the_memory_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "LARGEST_PICTURE", 199)
    assert png._opened(picture(20, 10)) is None
    monkeypatch.setattr(png, "LARGEST_PICTURE", 200)
    assert png._opened(picture(20, 10)) is not None


def _written(page: contents.Page, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[float, str]], Image.Image]:
    """Every text of the picture with the height at which it begins, in pixels; and the picture."""
    texts: list[tuple[float, str]] = []
    text = paper.PaperPen.text

    def noted(pen: paper.PaperPen, at: tuple[float, float], words: str, *args: Any, **more: Any) -> None:
        texts.append(((pen.origin[1] + at[1]) * paper.SCALE, words))
        text(pen, at, words, *args, **more)

    monkeypatch.setattr(paper.PaperPen, "text", noted)
    return texts, Image.open(io.BytesIO(png.render(page)))


def test_a_picture_that_would_be_too_tall_ends_with_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    page = _page(REPORTS["passed"])
    whole, _ = _written(page, monkeypatch)
    assert png.CONTINUED not in [words for _, words in whole]
    monkeypatch.setattr(png, "TALLEST", 1_500)
    texts, image = _written(page, monkeypatch)
    assert image.height <= 1_500
    assert texts[-1][1] == png.CONTINUED
    assert all(at < image.height for at, _ in texts)
    assert texts[:-1] == whole[: len(texts) - 1]


def test_pictures_of_the_evidence_leave_room_for_what_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    tall = contents.page(report(), ABOUT, [Picture("before_after.png", "w", picture(10, 60_000))])
    texts, image = _written(tall, monkeypatch)
    assert image.height <= png.TALLEST
    assert {"What decided", "Digests"} <= {words for _, words in texts}


def test_letters_that_the_typeface_lacks_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_other", lambda size: None)
    paper.legible.cache_clear()
    try:
        assert paper.legible("≥ café 猫", 13)[1] == ">= cafe \\u732b"
    finally:
        paper.legible.cache_clear()


def test_lines_of_text_fit_and_lose_nothing() -> None:
    words = "a sentence with " + "x" * 200 + " in it"
    lines = paper.wrapped(words, 120)
    assert all(paper.length(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert shortened("x" * 50, 10) == "x" * 9 + "…"


def test_dashes_cover_the_path_in_turn() -> None:
    strokes = list(paper.dashed([(0.0, 0.0), (10.0, 0.0)], (3, 2)))
    assert [(round(s[0][0], 6), round(s[-1][0], 6)) for s in strokes] == [(0, 3), (5, 8)]
