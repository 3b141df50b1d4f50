"""The protocols of a model family: how weights are loaded, trained on, drawn from or asked, and saved.

Three kinds share the training half. A generator draws images of a class; a classifier names the class of an image; an
image-to-image model completes an image of which a part is hidden.

Shape suffixes: N items of the dataset, B images of a batch (this rank's part of it), C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from worker.contract import Kind as Kind
from worker.contract import MaskSpec, Sampling
from worker.engine.halves import Halves

Augment = Literal["none", "flip", "crop_flip"]
"""How a training image may be varied. Digits are not flipped; natural images are (and, for classifiers, shifted)."""

EARLY_STOP = frozenset({"early_stop_every", "early_stop_samples", "early_stop_rate", "early_stop_drop"})
"""Parameters of looks during the loop, which ask for images of a class or for the class of an image: not of i2i families."""

Scope = Literal["hole", "image"]
"""Where noise stands in for what is to be forgotten: in the hidden part alone, or in the whole image."""

Question = tuple[Tensor, ...]
"""What an encoder is given, row by row: its `Halves` is called with these."""


@dataclass(frozen=True)
class Start:
    """Images that sampling begins with, and how far towards noise they are taken first."""

    images_BCHW: Tensor
    """uint8, on the CPU."""
    depth: float
    """t / T in (0, 1]; 1: nothing of an image is left."""


@dataclass(frozen=True)
class Draw:
    """The random numbers that one loss evaluation consumes, one row an image.

    Drawn on the CPU for the whole global batch and then cut, so that any number of ranks sees the same numbers.
    """

    tensors: dict[str, Tensor]
    host: dict[str, Tensor] = field(default_factory=dict)
    """The numbers before they were sent to an accelerator; empty if they were not."""

    def part(self, rows: slice) -> Draw:
        """The numbers of some rows."""
        return Draw({n: t[rows] for n, t in self.tensors.items()}, {n: t[rows] for n, t in self.host.items()})

    def to(self, device: torch.device) -> Draw:
        """The same numbers on `device`."""
        return Draw({name: sent(t, device) for name, t in self.tensors.items()}, self.tensors if device.type == "cuda" else {})

    def on_host(self, name: str) -> Tensor:
        """One of the numbers on the CPU, where the host can decide on it without waiting for the device."""
        return self.host[name] if name in self.host else self.tensors[name].cpu()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. To a GPU through pinned memory: from any other the host would wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Family(Protocol):
    """A kind of image model: what a method that only trains may ask of it."""

    name: ClassVar[str]
    """API name; the file is called the same."""
    title: ClassVar[str]
    kind: ClassVar[Kind]
    prompts: ClassVar[bool]
    """Does a class have a prompt, which registration may give?"""
    ignores: ClassVar[frozenset[str]]
    """Parameters of methods that have no effect on any model of this family; a request that gives one is refused."""
    module: nn.Module
    """The trainable network, in float32 and eval mode: dropout would make the result depend on the number of ranks.

    Its trainable parameters are those with `requires_grad`; frozen parts (a VAE, a text encoder) are no part of it.
    """
    class_count: int

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """Read safetensors weights from a local folder; nothing is ever fetched.

        Args:
            labels: one a class, in index order: its prompt where the family has prompts, else its name.

        Raises:
            BadModel: a pickle, a missing or surplus tensor, a wrong shape, a number that is not finite, or a class
                table of another size; the message says what was expected and what came.
        """
        ...

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """What the loop keeps of every item, on the device, made once: the uint8 images, or what a frozen encoder says.

        Args:
            images_NCHW: uint8 [0, 255], on the CPU.

        Returns:
            (N, …) one row an item, as compact as training allows.

        Raises:
            BadInput: images of another shape than the network's.
        """
        ...

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """Random numbers for `count` images of shape (C, H, W), on the CPU.

        Args:
            label_drop: probability that an image is shown without its label; ignored by families without a null label.
            augment: how images may be varied; a family that cannot vary what it holds says so in `BadInput`.
        """
        ...

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """Rows of `hold` as the network's float32 input x_BCHW, varied as `draw` says."""
        ...

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) the native training loss of each image, float32 even under autocast, ≥ 0, differentiable.

        Args:
            module: run this instead of `self.module`, for instance its distributed wrapper.
        """
        ...

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """(B,) how far the answer is from a frozen teacher's to the same question; no gradient flows into the teacher.

        Generators: mean squared difference of the predictions. Classifiers: T² KL(teacher ‖ module) of the softmaxes at
        temperature T. Image-to-image models: mean squared difference of the answers where the image is hidden.
        """
        ...

    def fresh(self, seed: int) -> nn.Module:
        """A network of the same architecture on the same device with newly drawn weights, in eval mode."""
        ...

    def save(self, directory: Path, base: Path) -> None:
        """Write the folder layout of `base` with the current weights in the base's dtype; other files are copied.

        Raises:
            BadModel: a weight is not finite in that dtype.
        """
        ...


class Labelled(Family, Protocol):
    """A family whose loss depends on the label."""

    def contrast(
        self, x_BCHW: Tensor, y_B: Tensor, anchor_B: Tensor, draw: Draw, *, module: nn.Module | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B,) the loss as `loss` gives it, and (B,) how far the answer under `y_B` is from the one due to `anchor_B`.

        What relabelling descends. A generator compares with its own answer under the anchor's label, through which no
        gradient flows, in the units of the loss; a classifier takes the cross-entropy to the anchor.
        """
        ...


class Generator(Labelled, Protocol):
    """A family that draws images."""

    def negated(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, eta: float, module: nn.Module | None = None
    ) -> Tensor:
        """(B,) mean squared difference of the answer under `y_B` from the teacher's, guided away from `y_B`:

            eps_0(null) − eta (eps_0(y) − eps_0(null))

        Raises:
            BadInput: the model has no null label.

        Source: Gandikota et al. 2023 (ESD), arXiv:2303.07345, eq. 7, its target.
        """
        ...

    def denoised(self, y_B: Tensor, draw: Draw, *, guidance_scale: float, steps: int) -> tuple[Tensor, Draw]:
        """What `negated` and `distance` take to look at x_t as this network draws it, rather than at an image made noisy.

        From the noise `draw["eps"]` the present network denoises under `y_B`, guided, until the sampler's first timestep
        that is not above `draw["t"]`. No gradient flows, no image is needed.

        Raises:
            BadInput: guidance asked of a model without a null label, or more steps than the schedule has.

        Source: Gandikota et al. 2023 (ESD), arXiv:2303.07345, section 4, where training inputs come from.
        """
        ...

    def unname(self, labels: Sequence[int]) -> None:
        """Make labels that no image bears mean what no label does, in place: asked for one, the network draws as if asked for
        none. Without a null label nothing is done.
        """
        ...

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(count, …) network inputs without content, on the CPU: uniform over the range of clean inputs (or like latents)."""
        ...

    def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling, start: Start | None = None) -> Tensor:
        """uint8 (B, C, H, W) images of the classes `y_B`, on the CPU.

        Image i depends on `seeds[i]`, `y_B[i]` and the policy, not on which other images share its batch or rank.

        Args:
            start: begin with given images made noisy up to a part of the way, in place of noise alone (SDEdit).

        Raises:
            BadInput: guidance asked of a model without a null label, or a class out of range.
            Diverged: a sample is not finite.
        """
        ...

    def begins_at(self, depth: float, sampling: Sampling) -> float:
        """t / T from which `sample` really denoises images that are begun up to `depth`: the sampler's next step below it.

        Of few steps that may be far below.

        Raises:
            BadInput: the sampler has no step below it.
        """
        ...

    @property
    def timesteps(self) -> int:
        """T of its noise schedule: `draw` gives `t` in [0, T)."""
        ...

    @property
    def null_label(self) -> int | None:
        """What is asked for where no class is; None: the model has none."""
        ...

    @property
    def label_count(self) -> int:
        """Labels that the network knows, the null label among them; those of `with_labels` come after them."""
        ...

    def conditioning(self, y_B: Tensor) -> Tensor:
        """(B, …) what the network is told of labels: rows of its table, or its prompts' embeddings. A copy, on the device."""
        ...

    def with_labels(self, rows_MX: Tensor) -> Self:
        """The same network with M more labels, `label_count` and on, whose conditioning is given.

        Weights are shared with this model, and gradients reach the rows.
        """
        ...


class Classifier(Labelled, Protocol):
    """A family that names the class of an image."""

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """(B, K) float32 logits of uint8 images, on the CPU; no gradient, no augmentation, any B.

        Raises:
            Diverged: a logit is not finite.
        """
        ...

    @property
    def head(self) -> nn.Linear:
        """The network's own last layer: `logits` is what it says of `features`.

        Raises:
            BadModel: the answer is not what one linear layer says.
        """
        ...

    def features(self, images_BCHW: Tensor) -> Tensor:
        """(B, D) float32 what the last layer is given of uint8 images, on the CPU; no gradient, no augmentation, any B.

        Raises:
            BadModel: see `head`.
            Diverged: a number is not finite.
        """
        ...


class ImageToImage(Family, Protocol):
    """A family that completes images of which a part is hidden, by an encoder that is trained and a decoder that is not.

    What the masks of a draw are made of is called `mask` in it; what `noise` gives is added to it as `noise`. A family whose
    questions depend on more of a draw than that, such as timesteps, has `target_masks` among what it `ignores`.

    A class has no part in it but for families with prompts: labels are only what tells forgotten images from the rest.
    `loss` is the family's own training loss over the whole network, under masks as `native` describes them.
    """

    module: Halves
    """The encoder is trained; see `Halves.choose` for methods that train more."""
    cell: int
    """Pixels of a side of a cell, the smallest part that can be hidden."""
    native: MaskSpec
    """How images are hidden in training."""
    companions: Mapping[str, nn.Module]
    """Frozen networks beside the module, by name: an autoencoder, a tokenizer, a text encoder. Mostly none."""

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: Scope) -> Tensor | None:
        """(count, …) network inputs that are noise, on the CPU; a method adds them to a draw as `noise`.

        Returns:
            None where `question` takes noise that the draw has anyhow.
        """
        ...

    def question(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, noise_in: Scope | None = None) -> Question:
        """What the encoder is asked about images that are hidden as `draw` says, and noisy as it says.

        Two questions with one draw differ in their images alone: same mask, same timestep, same noise of a diffusion.

        Args:
            x_BCHW: rows of `prepare`.
            y_B: labels, for families with prompts; -1, a proxy image without a label here, is shown without a prompt.
            noise_in: show noise in place of the image: where it is hidden, or everywhere; and no prompt beside it.

        Raises:
            BadInput: noise in a hole that this encoder does not look into.
        """
        ...

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        instead: tuple[Tensor, Tensor] | None = None, module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `Family.distance`.

        Args:
            instead: (x_BCHW, y_B) of other images that the teacher is asked about in place of these, under the same draw.
        """
        ...

    def loss_to_noise(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """(B,) as `loss`, with noise for the truth of what is hidden: the draw's `noise`, where `noise` gave some for a hole.

        A network that denoises is shown its draw's own noise in the hole, and is to answer it.
        """
        ...

    def encode(self, question: Question, *, module: nn.Module | None = None) -> list[Tensor]:
        """Taps: what the encoder hands to the decoder, each (B, T, D) tokens or (B, C, H, W) maps, with gradient.

        Args:
            module: run this instead of `self.module`: its distributed wrapper, or a teacher.
        """
        ...

    def complete(
        self,
        images_BCHW: Tensor,
        hidden_Bhw: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        y_B: Tensor | None = None,
    ) -> Tensor:
        """uint8 (B, C, H, W) images, on the CPU: the model's where cells are hidden, exactly the given ones elsewhere.

        Image i depends on row i of the arguments alone, not on which others share its batch. What lies under a hidden cell is
        not looked at.

        Args:
            images_BCHW: uint8, on the CPU.
            hidden_Bhw: bool over cells, equally many in every row; `corruption.masks` makes them.
            y_B: classes whose prompts are shown; None: none is.

        Raises:
            BadInput: images of another size, masks of another grid, or that hide all, nothing, or unequally much.
            Diverged: a completed pixel is not finite.
        """
        ...
