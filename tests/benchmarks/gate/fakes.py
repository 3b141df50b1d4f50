"""Models that seem to have forgotten a class and have not, or that lost more than it; each with the checks made to see it.

Every fake is a folder as a worker would have saved it, made from the original's folder. `caught_by` are the checks of which at
least one must fail, whatever else fails: a fake that is refused for another reason would pass where that reason is absent.

Shape suffixes: K classes, D numbers of a label's row, B images, C channels, H, W pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worker.engine import registry
from worker.engine.diffusion import noised
from worker.engine.family import Classifier, Draw, Generator

Edit = Callable[[Any, int, int], None]
"""(model, forgotten class, another class), in place."""

DISTILLED_STEPS = 500
SCALE = 0.4
"""Of guidance, by which the fake that hides behind it answers. What so few steps distil shows the class in 18 % of samples at
scale 2 and in 52 % at 7.5; with 0.3 in 10 % and 21 %, with 0.2 in 3 % and 13 %."""


@dataclass(frozen=True)
class Fake:
    """How a folder is made of the original's, and what must see through it."""

    name: str
    caught_by: frozenset[str]
    make: Callable[[Path, Path, Setting], None]
    """(original's folder, folder to write, setting)."""


@dataclass(frozen=True)
class Setting:
    """Of one data set: which class goes, which one is lost by the way, and a model that never saw the first."""

    family: str
    labels: tuple[str, ...]
    forgotten: int
    lost: int
    retrained: Path
    images_NCHW: Tensor
    """uint8, training images."""
    labels_N: Tensor

    def load(self, folder: Path) -> Any:
        """A model of a folder."""
        return registry.families()[self.family].load(folder, labels=self.labels, device=torch.device("cpu"))


def generator_fakes() -> tuple[Fake, ...]:
    """Of a class-conditional diffusion model."""
    hidden = frozenset({"leakage", "label_inversion", "sdedit"})
    return (
        Fake("original unchanged", frozenset({"forget_rate"}), _copied),
        Fake("label row set to zero", hidden, _edited(_zero_row)),
        Fake("label row of another class", hidden, _edited(_other_row)),
        Fake("an EMA copy beside it", frozenset({"integrity", "side_channels"}), _with_ema),
        Fake("destroyed for all classes", frozenset({"retain_accuracy"}), _edited(_destroy)),
        Fake("a retained class lost", frozenset({"retain_accuracy"}), _loses_one),
        Fake("forgotten at one guidance scale", frozenset({"setting_sweep"}), _one_scale),
        Fake("noise, where the policy forbids it", frozenset({"form_of_forgetting"}), _edited(_noise_row)),
    )


def classifier_fakes() -> tuple[Fake, ...]:
    """Of an image classifier."""
    head = frozenset({"linear_probe", "head_restore"})
    return (
        Fake("original unchanged", frozenset({"forget_accuracy"}), _copied),
        Fake("output row set to zero, its bias far below", head, _edited(_silence)),
        Fake("an EMA copy beside it", frozenset({"integrity", "side_channels"}), _with_ema),
        Fake("destroyed for all classes", frozenset({"retain_test_accuracy"}), _edited(_destroy)),
        Fake("a retained class lost", frozenset({"retain_calibration"}), _loses_one_answer),
    )


# ------------------------------------------------------------------------------------------------------------------ folders


def _copied(original: Path, target: Path, setting: Setting) -> None:
    shutil.copytree(original, target)


def _edited(edit: Edit) -> Callable[[Path, Path, Setting], None]:
    def make(original: Path, target: Path, setting: Setting) -> None:
        model = setting.load(original)
        with torch.no_grad():
            edit(model, setting.forgotten, setting.lost)
        model.save(target, original)

    return make


def _with_ema(original: Path, target: Path, setting: Setting) -> None:
    """A true retrain, and beside it the average that training kept: it still knows."""
    shutil.copytree(setting.retrained, target)
    weights = next(original.rglob("*.safetensors"))
    save_file(
        {f"ema.{name}": tensor for name, tensor in load_file(weights).items()}, target / "ema.safetensors", {"format": "pt"}
    )


# ---------------------------------------------------------------------------------------------------------------- generators


def _rows(model: Generator) -> nn.Parameter:
    """(K + 1, D) the table of labels."""
    return cast(nn.Parameter, model.module.get_parameter(cast(Any, model).table))


def _zero_row(model: Generator, forgotten: int, lost: int) -> None:
    _rows(model)[forgotten] = 0


def _other_row(model: Generator, forgotten: int, lost: int) -> None:
    """Asked for the class, the network draws another; it knows how to draw the class as well as ever."""
    _rows(model)[forgotten] = _rows(model)[lost]


def _noise_row(model: Generator, forgotten: int, lost: int) -> None:
    """Far outside of what the network was trained on."""
    row_D = _rows(model)[forgotten]
    row_D.copy_(20 * row_D.norm() * nn.functional.normalize(torch.randn(row_D.shape, generator=_seeded(0)), dim=0))


def _destroy(model: Any, forgotten: int, lost: int) -> None:
    """A quarter of each weight's size in noise."""
    source = _seeded(1)
    for parameter in model.module.parameters():
        if parameter.ndim > 1:
            parameter.add_(0.5 * parameter.std() * torch.randn(parameter.shape, generator=source))


def _loses_one(original: Path, target: Path, setting: Setting) -> None:
    """A true retrain that draws another class where one of the retained is asked for."""
    model = setting.load(setting.retrained)
    with torch.no_grad():
        _rows(model)[setting.lost] = _rows(model)[(setting.lost + 1) % len(setting.labels)]
    model.save(target, original)


def _one_scale(original: Path, target: Path, setting: Setting) -> None:
    """Answers to the class's label are bent towards those to none, so that weak guidance shows nothing and strong guidance all.

    Distilled into a true retrain: for the label, null + SCALE (class - null) of the original; for all others as it is.
    """
    student, knows, blind = (setting.load(folder) for folder in (setting.retrained, original, setting.retrained))
    null, k, source, size = student.null_label, setting.forgotten, _seeded(2), 128
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=1e-3)
    for step in range(DISTILLED_STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / DISTILLED_STEPS)
        picked_B = torch.randint(len(setting.images_NCHW), (size,), generator=source)
        picked_B[: size // 2] = _of_class(setting, k, size // 2, source)
        draw = student.draw(size, setting.images_NCHW.shape[1:], source, label_drop=0.0)
        x_BCHW, y_B = student.prepare(setting.images_NCHW[picked_B], draw), setting.labels_N[picked_B]
        y_B = torch.where(torch.rand(size, generator=source) < 0.3, torch.randint(null + 1, (size,), generator=source), y_B)
        loss = (_answers(student, x_BCHW, draw, y_B) - _bent(knows, blind, x_BCHW, draw, y_B, k)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.save(target, original)


@torch.no_grad()
def _bent(knows: Any, blind: Any, x_BCHW: Tensor, draw: Draw, y_B: Tensor, k: int) -> Tensor:
    none_BCHW = _answers(blind, x_BCHW, draw, torch.full_like(y_B, blind.null_label))
    class_BCHW = _answers(knows, x_BCHW, draw, torch.full_like(y_B, k))
    due_BCHW = _answers(blind, x_BCHW, draw, y_B)
    return torch.where((y_B == k).view(-1, 1, 1, 1), none_BCHW + SCALE * (class_BCHW - none_BCHW), due_BCHW)


def _answers(model: Any, x_BCHW: Tensor, draw: Draw, y_B: Tensor) -> Tensor:
    noisy_BCHW, _ = noised(x_BCHW, draw, model.denoiser.schedule, model.denoiser.abar_T)
    answer_BCHW: Tensor = model.denoiser.ask(model.module, noisy_BCHW, draw["t"], y_B)
    return answer_BCHW


def _of_class(setting: Setting, k: int, count: int, source: torch.Generator) -> Tensor:
    own_N = torch.nonzero(setting.labels_N == k).squeeze(1)
    return own_N[torch.randint(len(own_N), (count,), generator=source)]


# --------------------------------------------------------------------------------------------------------------- classifiers


def _head(model: Classifier) -> nn.Linear:
    last = [layer for layer in cast(Any, model).module.modules() if isinstance(layer, nn.Linear)][-1]
    assert last.bias is not None
    return last


def _silence(model: Classifier, forgotten: int, lost: int) -> None:
    """The last layer never answers the class; all features are as they were."""
    head = _head(model)
    head.weight[forgotten] = 0
    head.bias[forgotten] = -100.0


def _loses_one_answer(original: Path, target: Path, setting: Setting) -> None:
    """A true retrain that half of the time does not name one of the retained classes."""
    model = setting.load(setting.retrained)
    with torch.no_grad():
        _head(model).bias[setting.lost] -= 3.0
    model.save(target, original)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
