from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.worker.engine import verification_job as vj
from worker.contract import Spec
from worker.engine import evidence, registry, verify


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return vj.make_job(tmp_path, vj.patterns()).read_spec()


def grid(spec: Spec, images: Any) -> dict[tuple[str, int], torch.Tensor]:
    return {(label, k): images(label, k) for label, _ in evidence.ROWS for k in evidence.shown_classes(spec)}


def cell(picture: Image.Image, column: int, row: int, *, block: int, scale: int = 7, side: int = 8) -> Image.Image:
    """The enlarged sample, cut out by the layout's own figures: 8 pixels times round(56 / 8) = 7."""
    size = side * scale
    left = evidence.MARGIN + evidence.LABELS + column * (size + evidence.COLUMN_GAP)
    height = evidence.SAMPLES * (size + evidence.GAP) - evidence.GAP
    top = evidence.MARGIN + evidence.TITLE_HEIGHT + evidence.HEADER
    top += block * (height + evidence.BLOCK_GAP) + row * (size + evidence.GAP)
    return picture.crop((left, top, left + size, top + size))


def test_pixels_are_shown_as_they_are_without_a_contrast_of_their_own(spec: Spec) -> None:
    # Almost black samples: stretched, 0 and 3 would become black and white.
    dim = torch.zeros(evidence.SAMPLES, 1, 8, 8, dtype=torch.uint8)
    dim[:, :, 2, 5] = 3
    picture = evidence.picture(spec, grid(spec, lambda label, k: dim))
    shown = cell(picture, 0, 0, block=0)
    assert sorted(shown.getcolors()) == [(49, (3, 3, 3)), (64 * 49 - 49, (0, 0, 0))]  # one pixel is 7 x 7
    assert shown.getpixel((5 * 7, 2 * 7)) == shown.getpixel((5 * 7 + 6, 2 * 7 + 6)) == (3, 3, 3)


def test_every_sample_stands_under_its_class_and_beside_its_row(spec: Spec) -> None:
    def coded(label: str, k: int) -> torch.Tensor:
        values = torch.arange(evidence.SAMPLES) + 10 * k + (100 if label == "after" else 0)
        return values.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)

    picture = evidence.picture(spec, grid(spec, coded))
    for block in range(2):
        for k in range(vj.K):
            for row in range(evidence.SAMPLES):
                expected = 100 * block + 10 * k + row
                assert cell(picture, k, row, block=block).getcolors() == [(56 * 56, (expected,) * 3)]


def test_forgotten_class_alone_is_highlighted(spec: Spec) -> None:
    blank = torch.zeros(evidence.SAMPLES, 1, 8, 8, dtype=torch.uint8)
    picture = evidence.picture(spec, grid(spec, lambda label, k: blank))
    middle = evidence.MARGIN + evidence.TITLE_HEIGHT + evidence.HEADER // 2
    left = [evidence.MARGIN + evidence.LABELS + k * (56 + evidence.COLUMN_GAP) - 3 for k in range(vj.K)]
    marked = [picture.getpixel((x, middle)) == evidence.FORGOTTEN_PAPER for x in left]
    assert marked == [k == vj.FORGET for k in range(vj.K)]


def test_colour_images_keep_their_colours(spec: Spec) -> None:
    colour = torch.tensor([10, 200, 30], dtype=torch.uint8)[None, :, None, None].expand(evidence.SAMPLES, 3, 8, 8)
    picture = evidence.picture(spec, grid(spec, lambda label, k: colour))
    assert cell(picture, 2, 3, block=1).getcolors() == [(56 * 56, (10, 200, 30))]


def test_many_classes_show_the_forgotten_ones_among_ten(spec: Spec) -> None:
    many = spec.model_copy(update={"class_names": tuple(f"class {i}" for i in range(100)), "forget_classes": (70, 3)})
    assert evidence.shown_classes(many) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 70)


def test_of_many_forgotten_classes_this_request_s_are_shown_beside_as_many_retained_ones(spec: Spec) -> None:
    names = tuple(f"class {i}" for i in range(100))
    many = spec.model_copy(
        update={"class_names": names, "forget_classes": (80, 70), "forgotten_classes": tuple(range(20)), "forget_samples": ()}
    )
    assert evidence.shown_classes(many) == (0, 1, 2, 20, 21, 22, 23, 24, 70, 80)


def test_picture_in_the_report_is_the_file_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})
    job = vj.make_job(tmp_path, vj.forgotten_patterns())
    first, second = verify.run(job).evidence, verify.run(job).evidence
    assert first == second
    assert [e.path for e in first] == ["before_after.png"]
    with Image.open(job.evidence / "before_after.png") as picture:
        picture.load()
        # "Before" is rows of 25 and 225 with noise; "after" differs in the forgotten column alone.
        same = [cell(picture, k, 0, block=0).tobytes() == cell(picture, k, 0, block=1).tobytes() for k in range(vj.K)]
    assert same == [k != vj.FORGET for k in range(vj.K)]
