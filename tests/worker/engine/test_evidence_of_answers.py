from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tests.worker.engine import naming_job as nj
from tests.worker.engine import verification_job as vj
from worker.contract import Spec
from worker.engine import evidence, registry, verify
from worker.engine import evidence_of_answers as pictured


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return nj.make_job(tmp_path, nj.without_class()).read_spec()


def rows(after: dict[int, int]) -> dict[int, pictured.Row]:
    """Two black images of each class, named right before; class k is named `after[k]` now."""

    def naming(k: int) -> torch.Tensor:
        return 10.0 * torch.nn.functional.one_hot(torch.tensor([k, k]), vj.K)

    images = torch.zeros(2, 1, vj.SIDE, vj.SIDE, dtype=torch.uint8)
    return {k: pictured.Row(images, naming(k), naming(after.get(k, k))) for k in range(vj.K)}


def words(picture: Image.Image, i: int, j: int) -> Image.Image:
    """The words beside image j of row i, by the layout's own figures: an image is 8 pixels times round(56 / 8) = 7."""
    side = vj.SIDE * 7
    left = evidence.MARGIN + pictured.NAMES + j * (side + pictured.WORDS + pictured.GAP) + side
    top = evidence.MARGIN + evidence.TITLE_HEIGHT + pictured.HEADER + i * (side + pictured.GAP)
    return picture.crop((left, top, left + pictured.WORDS, top + side))


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    found = picture.getcolors(100_000)
    assert found is not None
    return {colour for _, colour in found}


def test_an_answer_that_changed_is_red_and_one_that_did_not_is_not(spec: Spec) -> None:
    picture = pictured.picture(spec, rows({vj.FORGET: 0, 3: 2}))
    red = [evidence.FORGOTTEN in colours(words(picture, i, 0)) for i in range(vj.K)]
    assert red == [False, True, False, True]


def test_the_forgotten_class_alone_has_a_coloured_ground(spec: Spec) -> None:
    picture = pictured.picture(spec, rows({}))
    ground = [evidence.FORGOTTEN_PAPER in colours(words(picture, i, 1)) for i in range(vj.K)]
    assert ground == [k == vj.FORGET for k in range(vj.K)]


def test_an_answer_is_the_most_probable_class_and_its_probability(spec: Spec) -> None:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    logits = torch.tensor([0.0, 0.0, 2.0, 0.0])  # e^2 / (e^2 + 3) = .711
    assert pictured._answer(logits, spec, pen) == ("diagonal 71%", 2)
    long = spec.model_copy(update={"class_names": ("a", "b", "a very long name of a class indeed", "d")})
    text, _ = pictured._answer(logits, long, pen)
    assert text.endswith("… 71%")
    assert pen.textlength(text, font=evidence.font(14)) <= pictured.WORDS - 8


def test_shares_are_over_all_held_out_images_and_a_class_may_have_none() -> None:
    logits = torch.eye(4)[[0, 0, 1, 2]]
    assert pictured._share(logits, 0) == "50.0% of 4"
    assert pictured._share(logits[:0], 0) == "no held-out image"


def test_the_picture_shows_the_first_held_out_images_and_no_forgotten_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"namer": nj.Namer})
    shown: dict[int, pictured.Row] = {}
    draw = pictured.picture
    monkeypatch.setattr(pictured, "picture", lambda spec, rows: (shown.update(rows), draw(spec, rows))[1])
    job = nj.make_job(tmp_path, nj.knowing(), samples=True)
    first = verify.run(job).evidence
    from worker.engine.data import load_dataset

    dataset = load_dataset(job, job.read_spec())
    for k, row in shown.items():
        assert torch.equal(row.images_nCHW, dataset.images_NCHW[dataset.held_out_of([k])[: pictured.SHOWN]])
        assert len(row.before_NK) == vj.HELD_OUT
    assert first == verify.run(job).evidence  # the same bytes each time


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Forgetting class columns"),
        ({"forget_classes": (1, 2)}, "Forgetting classes columns, diagonal"),
        ({"forget_classes": (), "forget_samples": ("7",)}, "Forgetting 1 sample"),
        ({"forget_classes": (), "forget_samples": tuple(map(str, range(1234)))}, "Forgetting 1,234 samples"),
    ],
)
def test_the_title_says_what_was_asked_for(spec: Spec, changes: dict[str, object], expected: str) -> None:
    said: list[str] = []

    class Pen:
        def text(self, at: object, text: str, **_: object) -> None:
            said.append(text)

    evidence.title(Pen(), spec.model_copy(update={**changes, "forgotten_samples": ("1", "2")}), "A note")  # type: ignore[arg-type]
    assert said[0] == expected
    assert said[1].startswith("A note; forgotten earlier: ")
    assert said[1].endswith("2 samples")
