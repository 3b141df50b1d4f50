"""The before/after picture of an image-to-image model: what it is shown, and how the original and the candidate complete it.

The images are the first of those that the checks score, not chosen, under the policy's first corruption, below each other: the
input with its hole in grey, the original's completion, the candidate's, and the truth. A family with prompts is shown without.

Shapes: n held-out images of a class, C channels, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw
from torch import Tensor

from worker.contract import Spec
from worker.engine.evidence import (
    CELL,
    FILE,
    FORGOTTEN,
    FORGOTTEN_PAPER,
    GAP,
    HEADER,
    INK,
    MARGIN,
    PAPER,
    TITLE_HEIGHT,
    enlarged,
    fitted,
    font,
    shown_classes,
    title,
)
from worker.engine.files import write_atomically
from worker.engine.region import described
from worker.engine.sampling import SamplingFailed
from worker.engine.verifier import Env, Need, Subject
from worker.engine.ways import Way

SHOWN = 2
LABELS, COLUMN_GAP = 92, 16
GREY = 128
SUBJECTS: Mapping[str, Subject] = {"before": "original", "after": "candidate"}
ROWS = ("input", *SUBJECTS, "truth")


def needs(spec: Spec) -> tuple[Need, ...]:
    """The completions in the picture; they are the first ones of those that the checks score."""
    first = spec.policy.sampling.corruptions[:1]
    return tuple(Need(subject, k, SHOWN, Way(c)) for c in first for subject in SUBJECTS.values() for k in shown_classes(spec))


def draw(env: Env) -> None:
    """Write the picture into the job's evidence folder.

    Raises:
        SamplingFailed: the policy names no corruption, or a subject cannot complete an image.
    """
    corruptions = env.spec.policy.sampling.corruptions
    if not corruptions:
        raise SamplingFailed("the policy names no corruption under which an image could be completed")
    columns = {k: _column(env, k) for k in shown_classes(env.spec) if len(env.shown(k, 1))}
    if not columns:
        raise SamplingFailed("no class that is shown has a held-out image")
    content = io.BytesIO()
    note = f"Held-out images, hidden: {described(corruptions[0])}; completed before and after; unretouched pixels"
    picture(env.spec, columns, note).save(content, format="PNG")
    write_atomically(env.job.evidence / FILE, content.getvalue())


def _column(env: Env, k: int) -> dict[str, Tensor]:
    corruption = env.spec.policy.sampling.corruptions[0]
    truth_nCHW = env.dataset.images_NCHW[env.shown(k, SHOWN)]
    return {
        "input": truth_nCHW.masked_fill(env.covered(corruption, k, SHOWN), GREY),
        **{label: env.completions(subject, corruption, k, SHOWN) for label, subject in SUBJECTS.items()},
        "truth": truth_nCHW,
    }


def picture(spec: Spec, columns: Mapping[int, Mapping[str, Tensor]], note: str) -> Image.Image:
    """Four rows; a few columns of each class, those of forgotten ones in red.

    Args:
        columns: class index -> row label -> (n, C, H, W) uint8, n from 1 to `SHOWN`.
        note: below the title, how to read it.
    """
    height, width = next(iter(columns.values()))["truth"].shape[-2:]
    scale = max(1, round(CELL / max(height, width)))
    cell_w, cell_h = width * scale, height * scale
    group = SHOWN * (cell_w + GAP) - GAP
    top, left = MARGIN + TITLE_HEIGHT + HEADER, MARGIN + LABELS
    size = (left + len(columns) * (group + COLUMN_GAP) - COLUMN_GAP + MARGIN, top + len(ROWS) * (cell_h + GAP) - GAP + MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    title(pen, spec, note)
    for row, label in enumerate(ROWS):
        pen.text((MARGIN, top + row * (cell_h + GAP) + cell_h // 2), label, fill=INK, font=font(20), anchor="lm")
    for column, (k, rows) in enumerate(columns.items()):
        x, gone = left + column * (group + COLUMN_GAP), k in spec.all_forgotten
        if gone:
            edge = COLUMN_GAP // 2 - 1
            box = (x - edge, top - HEADER, x + group + edge, top + len(ROWS) * (cell_h + GAP) - GAP + edge)
            pen.rounded_rectangle(box, radius=6, fill=FORGOTTEN_PAPER, outline=FORGOTTEN, width=2)
        name = fitted(spec.class_names[k], pen, group + COLUMN_GAP, 18)
        pen.text((x + group / 2, top - HEADER / 2), name, fill=FORGOTTEN if gone else INK, font=font(18), anchor="mm")
        for row, label in enumerate(ROWS):
            for i, image_CHW in enumerate(rows[label]):
                canvas.paste(enlarged(image_CHW, scale), (x + i * (cell_w + GAP), top + row * (cell_h + GAP)))
    return canvas
