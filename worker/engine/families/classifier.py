"""Image classifiers: any transformers folder that `AutoModelForImageClassification` can build, and the CIFAR ResNets.

Nothing but the configuration and the tensors of a folder is used: no code of its own, no hub, no pickle.

Shape suffixes: N items, B images, C channels, H, W pixels, K classes.
Source: Hinton et al. 2015 (arXiv:1503.02531) for the distance at a temperature, and the factor T² that goes with it.
"""

from __future__ import annotations

import reprlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.engine import resnet, tensor_names, weights
from worker.engine.errors import BadInput, BadModel, Diverged, is_out_of_memory
from worker.engine.family import Augment, Draw, Kind
from worker.engine.last_layer import last_layer, listening
from worker.engine.pixels import PREPROCESSOR, Normalisation
from worker.engine.precision import channels_last
from worker.engine.tensor_names import COUNTS, Naming

if TYPE_CHECKING:
    from transformers import PretrainedConfig  # loaded where it is used: the CIFAR ResNets need none of it

PAD = 4
"""Pixels by which `crop_flip` shifts an image at most, to either side: the CIFAR recipe's (He et al. 2016, section 4.2)."""

BATCH = 256
"""Images of one forward pass of `logits`: fixed, as a batch of another size may take another kernel and round otherwise."""

ANY_SIZE = (224, 224)
"""Of the one image that finds the last layer of a network which takes any size."""

CONFIG = "config.json"


@dataclass(frozen=True)
class Architecture:
    """What a configuration says of a network, before any weight is read."""

    build: Callable[[], nn.Module]
    """Newly initialised, in float32."""
    ask: Callable[[nn.Module, Tensor], Tensor]
    """(module, x_BCHW) -> logits (B, K)."""
    class_count: int
    channels: int
    size: tuple[int, int] | None
    """(H, W), or None for a network that takes any."""
    normalisation: Normalisation
    id2label: object = None
    """What the configuration calls the classes, unchecked."""

    @classmethod
    def of(cls, directory: Path, class_count: int) -> Architecture:
        """Raises: BadModel for a configuration that names no network we can build, or one of another number of classes."""
        if not (directory / CONFIG).is_file():
            raise BadModel(f"expected {CONFIG} in the model folder, found none")
        document = weights.read_json(directory / CONFIG)
        if document.get("architecture") == resnet.ARCHITECTURE:
            config = resnet.Config.read(document)
            _require_classes(class_count, config.class_count)
            return _of_cifar_resnet(config)
        return _of_transformers(document, directory, class_count)


class ImageClassifier:
    """A network that gives every image one logit a class."""

    name: ClassVar[str] = "classifier"
    title: ClassVar[str] = "Image classifier (transformers, or a CIFAR ResNet)"
    kind: ClassVar[Kind] = "classifier"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset({"label_drop", "forget_label_drop"})

    def __init__(self, module: nn.Module, architecture: Architecture, naming: Naming, *, device: torch.device) -> None:
        self.module = channels_last(module.to(device).eval())
        self.class_count = architecture.class_count
        self.device = device
        self._architecture, self._naming = architecture, naming
        self._scale_C11, self._shift_C11 = architecture.normalisation.constants(device)
        self._head: nn.Linear | None = None

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`.

        Also refused: a negative variance, index tables unlike the architecture's, and an `id2label` with the registered classes
        in another order, as the wrong class would be forgotten.
        """
        architecture = Architecture.of(directory, len(labels))
        weights.require_label_order(architecture.id2label, labels, CONFIG)
        file = directory / weights.only_file(directory, below=Path())
        module = architecture.build()
        naming = tensor_names.naming_of(file, module)
        tensor_names.rename(module, naming)
        tables = _integers(module)
        weights.load_into(module, file)
        _require_sound(module, tables)
        return cls(module, architecture, naming, device=device)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`. BatchNorm's statistics are part of the weights; integers stay integers."""
        file = weights.only_file(base, below=Path())
        shutil.copytree(base, directory, ignore=shutil.ignore_patterns(file.name), symlinks=False)
        weights.save_like(self.module, directory / file, base / file)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._architecture.build()
        tensor_names.rename(module, self._naming)
        return channels_last(module.to(self.device).eval())

    # ------------------------------------------------------------------------------------------------------- training

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: the uint8 images."""
        self._require_shape(images_NCHW)
        return images_NCHW.to(self.device)

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """See `Family.draw`: mirror flags `flip`, and for `crop_flip` the corners `top` and `left` in [0, 2 PAD]."""
        numbers: dict[str, Tensor] = {}
        if augment != "none":
            numbers["flip"] = torch.rand(count, generator=generator) < 0.5
        if augment == "crop_flip":
            numbers["top"], numbers["left"] = torch.randint(2 * PAD + 1, (2, count), generator=generator)
        return Draw(numbers)

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """Normalised, varied, channels last.

        What is shifted in is zero after normalisation: the mean colour, which is also what the convolutions pad with. Black
        before normalisation would show the network an edge that no image has.
        """
        if not draw.tensors:
            return self._normalised(held_B)
        picked_BCHW, inside_B1HW = _varied(held_B, draw)
        return self._normalised(picked_BCHW) * inside_B1HW

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `Family.loss`: the cross-entropy."""
        return _cross_entropy(self._ask(module, x_BCHW), y_B)

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, draw: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Labelled.contrast`: the cross-entropies to `y_B` and to `anchor_B`, from one forward pass."""
        logits_BK = self._ask(module, x_BCHW)
        return _cross_entropy(logits_BK, y_B), _cross_entropy(logits_BK, anchor_B)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Family.distance`: T² KL(softmax(teacher / T) ‖ softmax(module / T))."""
        with torch.no_grad():
            taught_BK = (self._ask(teacher, x_BCHW) / temperature).log_softmax(dim=1)
        answer_BK = (self._ask(module, x_BCHW) / temperature).log_softmax(dim=1)
        kl_B = F.kl_div(answer_BK, taught_BK, log_target=True, reduction="none").sum(dim=1)
        return temperature**2 * kl_B.clamp_min(0)  # rounding may leave -1e-9

    # ------------------------------------------------------------------------------------------------------- answering

    @torch.inference_mode()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """See `Classifier.logits`. Raises also: BadInput for images of another shape."""
        self._require_shape(images_BCHW)
        parts = [self._ask(None, self._normalised(part.to(self.device))).cpu() for part in images_BCHW.split(BATCH)]
        logits_BK = torch.cat(parts) if len(images_BCHW) else torch.empty(0, self.class_count)
        if not bool(torch.isfinite(logits_BK).all()):
            raise Diverged("the model answered an image with NaN or infinity", step=0, loss=float("nan"))
        return logits_BK

    @property
    def head(self) -> nn.Linear:
        """See `Classifier.head`: found by asking about one image of nothing."""
        if self._head is None:
            size = self._architecture.size or ANY_SIZE
            x_1CHW = self._normalised(torch.zeros(1, self._architecture.channels, *size, device=self.device))
            self._head = last_layer(self.module, self._architecture.ask, x_1CHW)
        return self._head

    def features(self, images_BCHW: Tensor) -> Tensor:
        """See `Classifier.features`. Raises also: BadInput for images of another shape."""
        head = self.head
        if not len(images_BCHW):  # attention cannot be asked about nothing
            return torch.empty(0, head.in_features)
        with listening(head) as given:
            self.logits(images_BCHW)
        features_BD = torch.cat([part.float().cpu() for part in given])
        if not bool(torch.isfinite(features_BD).all()):
            raise Diverged("the last layer was given NaN or infinity", step=0, loss=float("nan"))
        return features_BD

    def _ask(self, module: nn.Module | None, x_BCHW: Tensor) -> Tensor:
        # In float32 before any exponential: in bf16 the loss is exactly 0 from a margin of 6 on, and says nothing.
        return self._architecture.ask(module or self.module, x_BCHW).float()

    def _normalised(self, held_BCHW: Tensor) -> Tensor:
        x_BCHW = held_BCHW.float() * self._scale_C11 + self._shift_C11
        return x_BCHW.contiguous(memory_format=torch.channels_last)

    def _require_shape(self, images_NCHW: Tensor) -> None:
        wanted, came = self._architecture, tuple(images_NCHW.shape[1:])
        if came[0] != wanted.channels or wanted.size not in (None, came[1:]):
            size = wanted.size or ("any", "any")
            raise BadInput(f"the model works on images ({wanted.channels}, {size[0]}, {size[1]}), found {came}")


def _varied(held_B: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Images as drawn, and (B, 1, H, W) false where a pixel came from outside; one gather, channels last."""
    height, width = held_B.shape[-2:]
    y_H, x_W = (torch.arange(n, device=held_B.device) for n in (height, width))
    x_BW = torch.where(draw["flip"][:, None], width - 1 - x_W, x_W)
    y_BH = y_H.expand(len(held_B), -1)
    if "top" in draw.tensors:
        y_BH, x_BW = y_BH + (draw["top"] - PAD)[:, None], x_BW + (draw["left"] - PAD)[:, None]
    inside_BHW = _within(y_BH, height)[:, :, None] & _within(x_BW, width)[:, None, :]
    y_BH, x_BW = y_BH.clamp(0, height - 1), x_BW.clamp(0, width - 1)
    items_B11 = torch.arange(len(held_B), device=held_B.device)[:, None, None]
    picked_BHWC = held_B[items_B11, :, y_BH[:, :, None], x_BW[:, None, :]]
    return picked_BHWC.permute(0, 3, 1, 2), inside_BHW[:, None]


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _cross_entropy(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    return F.cross_entropy(logits_BK, y_B, reduction="none")


# ------------------------------------------------------------------------------------------------------------ the weights


def _integers(module: nn.Module) -> dict[str, Tensor]:
    """The architecture's own tables of indices."""
    state = module.state_dict()
    return {n: t.clone() for n, t in state.items() if not t.is_floating_point() and not n.endswith(COUNTS)}


def _require_sound(module: nn.Module, tables: Mapping[str, Tensor]) -> None:
    """Raises: BadModel for what is finite, of the right shape, and still not a network."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise BadModel(f"expected variances of at least 0, found {float(tensor.min()):.3g} in {name}")
        if name in tables and not torch.equal(tensor, tables[name]):
            raise BadModel(f"expected the architecture's own indices in {name}, found others")


# ------------------------------------------------------------------------------------------------------ the architectures


def _of_cifar_resnet(config: resnet.Config) -> Architecture:
    return Architecture(
        build=lambda: resnet.ResNet(config),
        ask=lambda module, x_BCHW: module(x_BCHW),
        class_count=config.class_count,
        channels=config.channels,
        size=(config.image_size, config.image_size),
        normalisation=Normalisation(config.mean, config.std),
    )


def _of_transformers(document: Mapping[str, Any], directory: Path, class_count: int) -> Architecture:
    for key in ("auto_map", "quantization_config"):
        if document.get(key) is not None:
            raise BadModel(f"expected an architecture of transformers with plain weights, found {key} in {CONFIG}")
    config = _config(document, class_count)
    seen = getattr(config, "vision_config", config)
    channels = getattr(seen, "num_channels", 3)
    if not _is_count(channels):
        raise BadModel(f"expected num_channels of at least 1 in {CONFIG}, found {channels!r}")
    return Architecture(
        build=lambda: _built(config),
        ask=lambda module, x_BCHW: module(pixel_values=x_BCHW).logits,
        class_count=class_count,
        channels=channels,
        size=_size(getattr(seen, "image_size", None)),
        normalisation=Normalisation.read(directory / PREPROCESSOR, channels),
        id2label=document.get("id2label"),
    )


def _require_classes(expected: int, found: object) -> None:
    if found != expected:
        raise BadModel(f"expected a model of {expected} classes, found one of {reprlib.repr(found)}")


def _classes(document: Mapping[str, Any]) -> object:
    """How many classes a transformers configuration says that there are: as many as it names; of no names, two by default."""
    names = document.get("id2label")
    return len(names) if isinstance(names, dict) else document.get("num_labels", 2)


def _config(document: Mapping[str, Any], class_count: int) -> PretrainedConfig:
    """Raises: BadModel. See `weights.network_values` for what of the configuration is not handed on."""
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification

    kind = str(document.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise BadModel(f"expected architecture {resnet.ARCHITECTURE!r} or a model_type that transformers knows, found {kind!r}")
    _require_classes(class_count, _classes(document))  # before transformers makes a name for each
    values = {**weights.network_values(document), "num_labels": class_count}
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # a stranger's values, and every configuration class validates in its own way
        raise BadModel(f"transformers cannot read this configuration: {type(error).__name__}: {error}") from error
    if type(config) not in AutoModelForImageClassification._model_mapping:
        raise BadModel(f"expected a model that classifies images, found model_type {kind!r}")
    return config


def _built(config: PretrainedConfig) -> nn.Module:
    from transformers import AutoModelForImageClassification

    try:
        module: nn.Module = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    except Exception as error:  # as above: what a stranger's values break is not foreseeable
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot build this configuration: {type(error).__name__}: {error}") from error
    return module


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(map(_is_count, sides)):
        raise BadModel(f"expected image_size of one or two numbers of at least 1 in {CONFIG}, found {reprlib.repr(value)}")
    return sides


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
