"""Masked autoencoders: a transformers folder of `ViTMAEForPreTraining`, safetensors only.

The encoder (`vit`) sees the visible patches alone, the decoder (`decoder`) draws the hidden ones. A cell of a mask is a patch.
The network is asked without classes; the folder may say nothing of any.

- The noise of a forget target is drawn after normalisation, of mean 0 and standard deviation 1 in every channel; of a half each
  where the folder leaves pixels from 0 to 1 as they are. It stands in for the whole image: in the hole alone, into which the
  encoder does not look, it would change nothing.
- A network that was trained to answer patches less their own mean and contrast (`norm_pix_loss`) cannot complete an image:
  both would have to be known of patches that are hidden. Such a folder is refused.
- The loss of an image is the mean over its own hidden patches; transformers' is one mean over a batch, which is the same where
  every image hides equally many, as here.

Shape suffixes: N items, B images, C channels, H, W pixels, h, w patches, L = h w, K of them visible, P = C * patch^2 numbers
of a patch.
Source: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from worker.contract import MaskSpec, Sampling
from worker.engine import corruption, tensor_names, weights
from worker.engine.errors import BadInput, BadModel, Diverged, is_out_of_memory
from worker.engine.family import EARLY_STOP, Augment, Draw, Kind, Question, Scope
from worker.engine.halves import Halves
from worker.engine.pixels import PREPROCESSOR, Normalisation, mirrored
from worker.engine.tensor_names import Naming

CONFIG = "config.json"


class MaskedAutoencoder:
    """A transformer over visible patches, and one that adds the hidden ones."""

    name: ClassVar[str] = "mae"
    title: ClassVar[str] = "Masked autoencoder (transformers ViTMAEForPreTraining)"
    kind: ClassVar[Kind] = "i2i"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset(
        {*EARLY_STOP, "batch_norm", "label_drop", "forget_label_drop", "noise_scope", "release_compat"}
    )

    def __init__(
        self,
        network: ViTMAEForPreTraining,
        normalisation: Normalisation,
        naming: Naming,
        *,
        class_count: int,
        device: torch.device,
    ) -> None:
        self.module = _in_halves(network, naming, device)
        self.class_count, self.device = class_count, device
        self.companions: Mapping[str, nn.Module] = {}
        self._naming = naming
        self._scale_C11, self._shift_C11 = normalisation.constants(device)
        self._noise_mean, self._noise_std = (0.5, 0.5) if normalisation.plain else (0.0, 1.0)
        config = network.config
        self.cell: int = config.patch_size
        self._shape = (config.num_channels, config.image_size, config.image_size)
        self.grid = corruption.grid_of(self._shape[1:], self.cell)
        self._hidden = hidden_by(config)
        self.native = MaskSpec(kind="random_patch", ratio=self._hidden / math.prod(self.grid))

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`. Also refused: an image that is not square or not whole patches, and `norm_pix_loss`."""
        if not (directory / CONFIG).is_file():
            raise BadModel(f"expected {CONFIG} in the model folder, found none")
        config = _config(weights.read_json(directory / CONFIG))
        file = directory / weights.only_file(directory, below=Path())
        network = _built(config)
        naming = tensor_names.naming_of(file, network)
        normalisation = Normalisation.read(directory / PREPROCESSOR, config.num_channels)
        family = cls(network, normalisation, naming, class_count=len(labels), device=device)
        weights.load_into(family.module, file)
        return family

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`."""
        file = weights.only_file(base, below=Path())
        shutil.copytree(base, directory, ignore=shutil.ignore_patterns(file.name), symlinks=False)
        weights.save_like(self.module, directory / file, base / file)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`. Tables of positions, which nothing trains, are this network's own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _built(self.module.network.config)
        halves = _in_halves(network, self._naming, self.device)
        halves.take_tables(self.module)
        return halves

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
        """See `Family.draw`: what the masks are made of, and mirror flags; a completed image is mirrored at most."""
        numbers = {"mask": corruption.drawn(self.native, self.grid, count, generator)}
        if augment != "none":
            numbers["flip"] = torch.rand(count, generator=generator) < 0.5
        return Draw(numbers)

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """Normalised, mirrored where the draw says so."""
        return self._normalised(mirrored(held_B, draw))

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: Scope) -> Tensor | None:
        """See `ImageToImage.noise`: as wide as what the network is shown."""
        return self._noise_mean + self._noise_std * torch.randn(count, *image_shape, generator=generator)

    def question(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, noise_in: Scope | None = None) -> Question:
        """See `ImageToImage.question`: an image, and int64 (B, K) its visible patches, ascending.

        Noise stands in for the whole image, whichever scope is asked for: the encoder does not look into the hole.
        """
        shown_BCHW = x_BCHW if noise_in is None else draw["noise"]
        return shown_BCHW, corruption.visible(corruption.hidden(self.native, self.grid, draw["mask"]), self._hidden)

    def encode(self, question: Question, *, module: nn.Module | None = None) -> list[Tensor]:
        """See `ImageToImage.encode`: the last hidden state, (B, 1 + K, D)."""
        taps: list[Tensor] = (module or self.module)(*question)
        return taps

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `Family.loss`: mean squared error of the hidden patches, normalised as the input is."""
        return self._loss_to(x_BCHW, self.question(x_BCHW, y_B, draw), module)

    def loss_to_noise(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `ImageToImage.loss_to_noise`."""
        return self._loss_to(draw["noise"], self.question(x_BCHW, y_B, draw), module)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        instead: tuple[Tensor, Tensor] | None = None, module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `ImageToImage.distance`."""
        question = self.question(x_BCHW, y_B, draw)
        with torch.no_grad():
            taught_BLP = self._answer(question if instead is None else self.question(*instead, draw), teacher)
        return self._where_hidden(self._answer(question, module) - taught_BLP, question)

    # ----------------------------------------------------------------------------------------------------- completing

    @torch.no_grad()
    def complete(
        self,
        images_BCHW: Tensor,
        hidden_Bhw: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        y_B: Tensor | None = None,
    ) -> Tensor:
        """See `ImageToImage.complete`; nothing is drawn, so the seeds decide nothing."""
        self._require_shape(images_BCHW)
        corruption.require_one_each(images_BCHW, hidden_Bhw, seeds)
        if not len(images_BCHW):
            return images_BCHW
        hidden = corruption.require_alike(hidden_Bhw, self.grid)
        size = sampling.batch_size
        parts = zip(images_BCHW.split(size), hidden_Bhw.split(size), strict=True)
        return torch.cat([self._completed(images.to(self.device), masks.to(self.device), hidden) for images, masks in parts])

    def _completed(self, images_BCHW: Tensor, hidden_Bhw: Tensor, hidden: int) -> Tensor:
        question = self._normalised(images_BCHW), corruption.visible(hidden_Bhw, hidden)
        drawn_BCHW = self.module.network.unpatchify(self._answer(question, None))
        if not bool(torch.isfinite(drawn_BCHW).all()):
            raise Diverged("the model completed an image with NaN or infinity", step=0, loss=float("nan"))
        bytes_BCHW = ((drawn_BCHW - self._shift_C11) / self._scale_C11).round().clamp(0, 255).to(torch.uint8)
        return torch.where(corruption.pixels(hidden_Bhw, self.cell), bytes_BCHW, images_BCHW).cpu()

    def _answer(self, question: Question, module: nn.Module | None) -> Tensor:
        """(B, L, P) every patch as the decoder draws it, float32."""
        answer_BLP: Tensor = (module or self.module)(*question, whole=True)
        return answer_BLP.float()

    def _loss_to(self, truth_BCHW: Tensor, question: Question, module: nn.Module | None) -> Tensor:
        return self._where_hidden(self._answer(question, module) - self.module.network.patchify(truth_BCHW), question)

    def _where_hidden(self, apart_BLP: Tensor, question: Question) -> Tensor:
        """(B,) mean square over the hidden patches."""
        apart_BL = apart_BLP.square().mean(dim=-1)
        return apart_BL.scatter(1, question[1], 0.0).sum(dim=1) / self._hidden

    def _normalised(self, held_BCHW: Tensor) -> Tensor:
        return held_BCHW.float() * self._scale_C11 + self._shift_C11

    def _require_shape(self, images_NCHW: Tensor) -> None:
        if tuple(images_NCHW.shape[1:]) != self._shape:
            raise BadInput(f"the model works on images {self._shape}, found {tuple(images_NCHW.shape[1:])}")


# ------------------------------------------------------------------------------------------------------------ the network


def encode(network: ViTMAEForPreTraining, x_BCHW: Tensor, visible_BK: Tensor) -> list[Tensor]:
    """See `halves.Encode`: transformers' `vit`, which draws masks by itself, for masks that are given."""
    vit = network.vit
    positions_1LD = vit.embeddings.position_embeddings
    token_BLD = vit.embeddings.patch_embeddings(x_BCHW) + positions_1LD[:, 1:]
    token_BKD = token_BLD.gather(1, visible_BK[..., None].expand(-1, -1, token_BLD.shape[-1]))
    first_11D = vit.embeddings.cls_token + positions_1LD[:, :1]
    token_BKD = torch.cat([first_11D.expand(len(token_BKD), -1, -1), token_BKD], dim=1)
    for layer in vit.layers:
        token_BKD = layer(token_BKD, None)
    return [vit.layernorm(token_BKD)]


def answer(network: ViTMAEForPreTraining, x_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
    """See `halves.Answer`: (B, L, P) all patches as the decoder draws them, in their places."""
    (token_BKD,) = encode(network, x_BCHW, visible_BK)
    cells = network.vit.embeddings.patch_embeddings.num_patches
    is_hidden_BL = torch.ones(len(visible_BK), cells, dtype=torch.uint8, device=visible_BK.device).scatter(1, visible_BK, 0)
    hidden_BL = is_hidden_BL.argsort(dim=1, stable=True)[:, visible_BK.shape[1] :]
    place_BL = torch.cat([visible_BK, hidden_BL], dim=1).argsort(dim=1)
    patches_BLP: Tensor = network.decoder(token_BKD, place_BL).logits
    return patches_BLP


def hidden_by(config: ViTMAEConfig) -> int:
    """Patches that transformers hides of every image in training, rounded as it does. Raises: BadModel for all or none."""
    cells = (config.image_size // config.patch_size) ** 2
    hidden = cells - int(cells * (1 - config.mask_ratio))
    if not 0 < hidden < cells:
        what = "all" if hidden else "none"
        raise BadModel(f"expected a mask_ratio that hides some of {cells} patches, {config.mask_ratio:g} hides {what}")
    return hidden


def _in_halves(network: ViTMAEForPreTraining, naming: Naming, device: torch.device) -> Halves:
    halves = Halves(network.eval(), encoder=("vit",), encode=encode, answer=answer, device=device).eval()
    tensor_names.rename(halves, naming)
    return halves


def _config(document: Mapping[str, Any]) -> ViTMAEConfig:
    """Raises: BadModel."""
    if document.get("model_type") != "vit_mae":
        raise BadModel(f"expected model_type 'vit_mae' in {CONFIG}, found {document.get('model_type')!r}")
    for key in ("auto_map", "quantization_config"):
        if document.get(key) is not None:
            raise BadModel(f"expected an architecture of transformers with plain weights, found {key} in {CONFIG}")
    try:
        config = ViTMAEConfig.from_dict(weights.network_values(document))
    except Exception as error:  # a stranger's values, and the configuration class validates in its own way
        raise BadModel(f"transformers cannot read this configuration: {type(error).__name__}: {error}") from error
    for key in ("image_size", "patch_size", "num_channels", "num_attention_heads", "decoder_num_attention_heads"):
        if not isinstance(getattr(config, key), int) or getattr(config, key) < 1:
            raise BadModel(f"expected {key} to be one number of at least 1 in {CONFIG}, found {getattr(config, key)!r}")
    if config.image_size < config.patch_size or config.image_size % config.patch_size:
        raise BadModel(
            f"expected images of whole patches, found patches of {config.patch_size} on a side of {config.image_size}"
        )
    if config.norm_pix_loss:
        raise BadModel(
            "expected a network that answers pixels, found norm_pix_loss: it answers each patch without its mean and contrast, "
            "which of a hidden patch nobody knows"
        )
    return config


def _built(config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """Newly initialised, in float32."""
    try:
        return ViTMAEForPreTraining._from_config(config, dtype=torch.float32)
    except Exception as error:  # as above: what a stranger's values break is not foreseeable
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot build this configuration: {type(error).__name__}: {error}") from error
