"""The before/after picture of a classifier: held-out images, and what the parent and the candidate say that they show.

The images are the first held-out ones of their class, not chosen. Forgotten samples are never shown: the picture is kept with
the certificate.

Shapes: N held-out images of a class, n of them shown, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from worker.contract import Spec
from worker.engine.evidence import (
    CELL,
    FAINT,
    FILE,
    FORGOTTEN,
    FORGOTTEN_PAPER,
    INK,
    MARGIN,
    PAPER,
    ROWS,
    TITLE_HEIGHT,
    enlarged,
    fitted,
    font,
    shown_classes,
    title,
)
from worker.engine.files import write_atomically
from worker.engine.verifier import Env, Need

SHOWN = 4
NAMES, SHARES, HEADER, WORDS, GAP, LINE = 120, 150, 30, 124, 14, 18
"""Pixels: the columns of names and of accuracies, the line above all rows, the words beside an image, gaps, a line of words."""
NOTE = "The first held-out images of each class; in each pair of lines the saved model's answer before and after"


@dataclass(frozen=True)
class Row:
    """One class: its first held-out images (n, C, H, W), and all (N, K) logits before and after."""

    images_nCHW: Tensor
    before_NK: Tensor
    after_NK: Tensor


def needs(spec: Spec) -> tuple[Need, ...]:
    """Shows real images; nothing is drawn by a model."""
    return ()


def draw(env: Env) -> None:
    """Write the picture into the job's evidence folder.

    Raises:
        SamplingFailed: a subject cannot be asked.
    """
    rows = {}
    for k in shown_classes(env.spec):
        first_n = env.dataset.held_out_of([k])[:SHOWN]
        before_NK, after_NK = (env.answers(subject, k) for _, subject in ROWS)
        rows[k] = Row(env.dataset.images_NCHW[first_n], before_NK, after_NK)
    content = io.BytesIO()
    picture(env.spec, rows).save(content, format="PNG")
    write_atomically(env.job.evidence / FILE, content.getvalue())


def picture(spec: Spec, rows: Mapping[int, Row]) -> Image.Image:
    """A row a class: its name, images with their answers, and at the right the share of all held-out images named right."""
    height, width = next(iter(rows.values())).images_nCHW.shape[-2:]
    scale = max(1, round(CELL / max(height, width)))
    step = width * scale + WORDS + GAP
    pitch = max(height * scale, 2 * LINE) + GAP
    top = MARGIN + TITLE_HEIGHT + HEADER
    right = MARGIN + NAMES + SHOWN * step
    canvas = Image.new("RGB", (right + SHARES + MARGIN, top + len(rows) * pitch + MARGIN), PAPER)
    pen = ImageDraw.Draw(canvas)
    title(pen, spec, NOTE)
    pen.text((right, top - GAP), "named right", fill=FAINT, font=font(14), anchor="ls")
    for i, (k, row) in enumerate(rows.items()):
        y, gone = top + i * pitch, k in spec.all_forgotten
        if gone:
            box = (MARGIN - GAP, y - GAP // 2 + 1, right + SHARES + GAP // 2, y + pitch - GAP // 2 - 1)
            pen.rounded_rectangle(box, radius=6, fill=FORGOTTEN_PAPER, outline=FORGOTTEN, width=2)
        middle = y + (pitch - GAP) // 2
        name = fitted(spec.class_names[k], pen, NAMES - GAP, 18)
        pen.text((MARGIN, middle), name, fill=FORGOTTEN if gone else INK, font=font(18), anchor="lm")
        for j, image_CHW in enumerate(row.images_nCHW):
            x = MARGIN + NAMES + j * step
            canvas.paste(enlarged(image_CHW, scale), (x, y))
            lines = [_answer(logits_NK[j], spec, pen) for logits_NK in (row.before_NK, row.after_NK)]
            _two_lines(pen, (x + width * scale + 8, middle), lines, changed=lines[0][1] != lines[1][1])
        shares = [(_share(logits_NK, k), k) for logits_NK in (row.before_NK, row.after_NK)]
        _two_lines(pen, (right, middle), shares, changed=False)
    return canvas


def _two_lines(pen: ImageDraw.ImageDraw, at: tuple[int, int], lines: list[tuple[str, int]], *, changed: bool) -> None:
    """Before, and below it after, in red where the answer is another."""
    x, middle = at
    pen.text((x, middle - LINE // 2), lines[0][0], fill=FAINT, font=font(14), anchor="lm")
    pen.text((x, middle + LINE // 2), lines[1][0], fill=FORGOTTEN if changed else INK, font=font(14), anchor="lm")


def _answer(logits_K: Tensor, spec: Spec, pen: ImageDraw.ImageDraw) -> tuple[str, int]:
    """The class of the highest probability, that probability, and the class's index."""
    probabilities_K = logits_K.double().softmax(dim=0)
    k = int(probabilities_K.argmax())
    percent = f" {float(probabilities_K[k]):.0%}"
    room = WORDS - 8 - int(pen.textlength(percent, font=font(14)))
    return fitted(spec.class_names[k], pen, room, 14) + percent, k


def _share(logits_NK: Tensor, k: int) -> str:
    if len(logits_NK) == 0:
        return "no held-out image"
    return f"{float((logits_NK.argmax(dim=1) == k).double().mean()):.1%} of {len(logits_NK):,}"
