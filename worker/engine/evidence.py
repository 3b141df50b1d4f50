"""The before/after picture: what the parent drew and what the candidate draws, from the same noise, class by class.

Pixels are shown as they are, enlarged by a whole factor: no image gets a contrast of its own, which could make noise look
like a digit, or hide one.

Shapes: n samples of a class, C channels, H height, W width.
"""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from worker.contract import Spec
from worker.engine.files import write_atomically
from worker.engine.verifier import Env, Need, Subject

FILE = "before_after.png"
SAMPLES = 4
MAX_CLASSES = 10
CELL = 56
"""Pixels that a sample's longer side aims at; the factor is whole, so a sample may be a little smaller or larger."""
GAP, COLUMN_GAP, MARGIN, LABELS = 4, 12, 28, 76
TITLE_HEIGHT, HEADER, BLOCK_GAP = 64, 34, 22

PAPER, INK, FAINT = (255, 255, 255), (28, 32, 38), (120, 128, 138)
FORGOTTEN, FORGOTTEN_PAPER = (178, 38, 52), (252, 232, 232)

ROWS: tuple[tuple[str, Subject], ...] = (("before", "parent"), ("after", "candidate"))


def shown_classes(spec: Spec) -> tuple[int, ...]:
    """All classes if there are few; else forgotten ones, those that this request asks for first, and retained ones.

    In index order. Of either kind half the picture at least, if there are so many: a model that draws nothing any more forgot,
    too.
    """
    if len(spec.class_names) <= MAX_CLASSES:
        return tuple(range(len(spec.class_names)))
    earlier = [k for k in spec.all_forgotten if k not in spec.forget_classes]
    forgotten, retained = [*sorted(spec.forget_classes), *earlier], spec.retain_classes
    room = MAX_CLASSES - min(len(retained), MAX_CLASSES // 2)
    shown = forgotten[:room]
    return tuple(sorted([*shown, *retained[: MAX_CLASSES - len(shown)]]))


def needs(spec: Spec) -> tuple[Need, ...]:
    """The samples in the picture; they are the first ones of those that the checks score."""
    return tuple(Need(subject, k, SAMPLES) for _, subject in ROWS for k in shown_classes(spec))


def draw(env: Env) -> None:
    """Write the picture into the job's evidence folder.

    Raises:
        SamplingFailed: a subject cannot be drawn from.
    """
    classes = shown_classes(env.spec)
    samples = {(label, k): env.samples(subject, k, SAMPLES) for label, subject in ROWS for k in classes}
    content = io.BytesIO()
    picture(env.spec, samples).save(content, format="PNG")
    write_atomically(env.job.evidence / FILE, content.getvalue())


def picture(spec: Spec, samples: dict[tuple[str, int], Tensor]) -> Image.Image:
    """Columns are classes, the upper block is before, the lower after.

    Args:
        samples: (row label, class index) -> (n, C, H, W) uint8, the same n everywhere.
    """
    classes = shown_classes(spec)
    n, _, height, width = samples[ROWS[0][0], classes[0]].shape
    scale = max(1, round(CELL / max(height, width)))
    cell_w, cell_h = width * scale, height * scale
    block = n * (cell_h + GAP) - GAP
    size = (
        2 * MARGIN + LABELS + len(classes) * (cell_w + COLUMN_GAP) - COLUMN_GAP,
        MARGIN + TITLE_HEIGHT + HEADER + 2 * block + BLOCK_GAP + MARGIN,
    )
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    title(pen, spec, "Samples of the saved models from the same noise; unretouched pixels")
    top = MARGIN + TITLE_HEIGHT + HEADER
    for row, (label, _) in enumerate(ROWS):
        middle = top + row * (block + BLOCK_GAP) + block // 2
        pen.text((MARGIN, middle), label, fill=INK, font=font(20), anchor="lm")
    for column, k in enumerate(classes):
        left = MARGIN + LABELS + column * (cell_w + COLUMN_GAP)
        gone = k in spec.all_forgotten
        if gone:
            edge = COLUMN_GAP // 2
            box = (left - edge, top - HEADER, left + cell_w + edge, top + 2 * block + BLOCK_GAP + edge)
            pen.rounded_rectangle(box, radius=6, fill=FORGOTTEN_PAPER, outline=FORGOTTEN, width=2)
        name = fitted(spec.class_names[k], pen, cell_w + COLUMN_GAP, 18)
        pen.text((left + cell_w / 2, top - HEADER / 2), name, fill=FORGOTTEN if gone else INK, font=font(18), anchor="mm")
        for row, (label, _) in enumerate(ROWS):
            for i, image_CHW in enumerate(samples[label, k]):
                y = top + row * (block + BLOCK_GAP) + i * (cell_h + GAP)
                canvas.paste(enlarged(image_CHW, scale), (left, y))
    return canvas


def enlarged(image_CHW: Tensor, scale: int) -> Image.Image:
    """The very pixel values, each `scale` x `scale` large."""
    image_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
    grey = image_HWC.shape[2] == 1
    image = Image.fromarray(image_HWC[:, :, 0] if grey else image_HWC).convert("RGB")
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def title(pen: ImageDraw.ImageDraw, spec: Spec, note: str) -> None:
    """What was asked for, and below it how to read the picture."""
    noun = "class" if len(spec.forget_classes) == 1 else "classes"
    names = ", ".join(spec.class_names[k] for k in spec.forget_classes)
    asked = f"Forgetting {noun} {names}" if names else f"Forgetting {counted(len(spec.forget_samples))}"
    pen.text((MARGIN, MARGIN), asked if len(asked) < 60 else asked[:57] + "…", fill=INK, font=font(26))
    earlier = [spec.class_names[k] for k in spec.all_forgotten if k not in spec.forget_classes]
    earlier += [counted(len(spec.forgotten_samples))] if spec.forgotten_samples else []
    note += f"; forgotten earlier: {', '.join(earlier)}" if earlier else ""
    pen.text((MARGIN, MARGIN + 36), note, fill=FAINT, font=font(14))


def counted(samples: int) -> str:
    """A number of single samples in words."""
    return f"{samples:,} sample{'' if samples == 1 else 's'}"


def fitted(name: str, pen: ImageDraw.ImageDraw, width: int, size: int) -> str:
    """As much of a name as fits."""
    while len(name) > 2 and pen.textlength(name, font=font(size)) > width:
        name = name.rstrip("…")[:-1] + "…"
    return name


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own: the same on every machine."""
    return ImageFont.load_default(size=size)
