"""VQ-GAN tokens and a masked transformer over them: images are completed by drawing the tokens of their hidden part.

    vqvae/        diffusers `VQModel`, frozen
    transformer/  `worker.engine.token_transformer`'s config.json and weights

or the folder of diffusers' aMUSEd pipeline, which `model_index.json` tells: the same with a `UVit2DModel`, a text encoder and
a tokenizer, asked once with the empty prompt. A cell of a mask is a token.

- What is held of an image is its ids, made once: training never asks the tokenizer. So images are not mirrored: the tokens of a
  mirrored image are no mirrored tokens, and holding both would tokenise every image twice for runs that do not ask for it.
- Noise is tokenised once, too: a target's is one of `tokens.NOISES` noise images. It stands in for the whole image: of a hidden
  token the encoder is told nothing but that it is hidden.
- Where an image is completed its hidden pixels are of the middle colour before it is tokenised, for tokens see beyond their
  own pixels; what is drawn is decoded with all the rest, and visible pixels are put back as they were given. The tokens beside
  a hole are still not those of the image, so the completed image is tokenised and completed anew.
- Training hides another share of every image, as the networks' authors do; `native` names its mean.

Shape suffixes: N items, B images, C channels, H, W pixels, h, w tokens, L = h w, K of them given to the encoder, V codes.
Source: Li et al. 2024, arXiv:2402.00351, whose VQ-GAN is MAGE (arXiv:2211.09117); Patil et al. 2024 (aMUSEd), arXiv:2401.01808.
Where we differ from their code: the loss has no smoothed labels, a hole is not widened by a token around it, what is drawn is
not blended into its surroundings, the steps of completing an image are all spent on the hole, and there are two passes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.contract import MaskSpec, Sampling
from worker.engine import amused, corruption, prompts, token_transformer, tokens, weights
from worker.engine.errors import BadInput, BadModel, is_out_of_memory
from worker.engine.family import EARLY_STOP, Augment, Draw, Kind, Question, Scope
from worker.engine.halves import Halves
from worker.engine.tokens import Predictor, Tokenizer

INDEX, TRANSFORMER = Path("model_index.json"), Path("transformer")

PIPELINES = ("AmusedPipeline", "AmusedInpaintPipeline", "AmusedImg2ImgPipeline")

TEMPERATURE = 6.0
"""Of the published code's choice which tokens stay."""

PASSES = 2
"""Of completing an image. On striped images a small network's squared error in the hole fell by 15 to 60 % with the second, for
every kind of hole that was tried, and by less with a third."""


class MaskedTokens:
    """A transformer over visible tokens, and one that draws the hidden ones."""

    name: ClassVar[str] = "vqgan"
    title: ClassVar[str] = "VQ-GAN tokens and a masked transformer (diffusers VQModel; ours, or aMUSEd's UVit2DModel)"
    kind: ClassVar[Kind] = "i2i"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset(
        {*EARLY_STOP, "batch_norm", "label_drop", "forget_label_drop", "augment", "noise_scope"}
    )

    def __init__(
        self, network: nn.Module, predictor: Predictor, tokenizer: Tokenizer, *, class_count: int, device: torch.device
    ) -> None:
        if predictor.codes != tokenizer.codes:
            raise BadModel(f"expected a transformer over the tokenizer's {tokenizer.codes} codes, found {predictor.codes}")
        self.class_count, self.device = class_count, device
        self.predictor, self.tokenizer = predictor, tokenizer
        self.module = self._halves(network)
        self.companions: Mapping[str, nn.Module] = {"vqvae": tokenizer.vq}
        """The tokenizer; and of aMUSEd what the text encoder left of the empty prompt, which both halves read."""
        if predictor.beside:
            beside = (nn.Parameter(one, requires_grad=False) for one in predictor.beside)
            self.companions = {**self.companions, "prompt": nn.ParameterList(beside)}
        self.cell: int = tokenizer.factor
        self.grid = (predictor.side, predictor.side)
        self._shape = (tokenizer.channels, *(side * self.cell for side in self.grid))
        shares = predictor.hidden((torch.arange(1024) + 0.5) / 1024).double() / predictor.length
        self.native = MaskSpec(kind="random_patch", ratio=float(shares.mean()))
        self._noises: Tensor | None = None

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`. Also refused: a transformer over other codes than the tokenizer's."""
        pipeline = _pipeline(directory)
        files = weights.files_of_parts(directory, _parts(pipeline))
        _require_configurations(directory, _parts(pipeline))
        tokenizer = Tokenizer.load(directory, files[tokens.FOLDER], device, normalised=not pipeline)
        made = _of_pipeline(directory, files, tokenizer, device) if pipeline else _of_ours(directory)
        network = made.build()
        family = cls(network, made, tokenizer, class_count=len(labels), device=device)
        weights.load_into(family.module, directory / files[TRANSFORMER])
        return family

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`: every file of the base as it is, but for the transformer's weights."""
        file = weights.files_of_parts(base, _parts(_pipeline(base)))[TRANSFORMER]
        at = str(base / TRANSFORMER)  # by folder: the tokenizer's weights may have the same file name
        shutil.copytree(base, directory, ignore=lambda folder, _: [file.name] if folder == at else [], symlinks=False)
        weights.save_like(self.module, directory / file, base / file)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.predictor.build()
        return self._halves(network)

    # ------------------------------------------------------------------------------------------------------- training

    def hold(self, images_NCHW: Tensor) -> Tensor:
        """See `Family.hold`: (N, L) ids."""
        self._require_shape(images_NCHW)
        return self.tokenizer.tokenise(images_NCHW)

    def draw(
        self,
        count: int,
        image_shape: Sequence[int],
        generator: torch.Generator,
        *,
        label_drop: float,
        augment: Augment = "none",
    ) -> Draw:
        """See `Family.draw`: `mask`, (count, L + 1) uniform numbers, which tokens are hidden and how many.

        Raises: BadInput for an augmentation.
        """
        if augment != "none":
            raise BadInput(
                f"expected augment 'none', found {augment!r}: images are held as tokens, and a mirrored image's tokens are "
                "no mirrored tokens; mirror the images of the dataset instead"
            )
        return Draw({"mask": torch.rand(count, self.predictor.length + 1, generator=generator)})

    def prepare(self, held_B: Tensor, draw: Draw) -> Tensor:
        """The ids, int64: the network's input is no picture."""
        return held_B.long()

    def noise(self, count: int, image_shape: Sequence[int], generator: torch.Generator, *, scope: Scope) -> Tensor | None:
        """See `ImageToImage.noise`: (count, L) ids of tokenised noise."""
        if self._noises is None:
            self._noises = self.tokenizer.noises(self.grid)
        return self._noises[torch.randint(len(self._noises), (count,), generator=generator)]

    def question(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, noise_in: Scope | None = None) -> Question:
        """See `ImageToImage.question`: (B, L) ids, the mask's where hidden, and what `Predictor` says that questions have.

        Noise stands in for the whole image, whichever scope is asked for: the encoder does not look into the hole.
        """
        id_BL = x_BCHW if noise_in is None else draw["noise"].long()
        rank_BL, is_hidden_BL = self._hidden(draw)
        shown_BL = id_BL.masked_fill(is_hidden_BL, self.predictor.mask_id)
        is_dropped_Bhw = (rank_BL < self.predictor.dropped).view(-1, *self.grid)
        return self._asked(shown_BL, corruption.visible(is_dropped_Bhw, self.predictor.dropped))

    def encode(self, question: Question, *, module: nn.Module | None = None) -> list[Tensor]:
        """See `ImageToImage.encode`: what the encoder says last, (B, 1 + K, D), of aMUSEd (B, L, D)."""
        taps: list[Tensor] = (module or self.module)(*question)
        return taps

    def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `Family.loss`: mean cross-entropy of the hidden tokens."""
        return self._loss_to(x_BCHW, x_BCHW, y_B, draw, module)

    def loss_to_noise(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, module: nn.Module | None = None) -> Tensor:
        """See `ImageToImage.loss_to_noise`: the truth is a noise image's tokens, not codes by random numbers as published."""
        return self._loss_to(draw["noise"].long(), x_BCHW, y_B, draw, module)

    def distance(
        self, x_BCHW: Tensor, y_B: Tensor, draw: Draw, *, teacher: nn.Module, temperature: float = 1.0,
        instead: tuple[Tensor, Tensor] | None = None, module: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """See `ImageToImage.distance`; answers are logits."""
        question = self.question(x_BCHW, y_B, draw)
        with torch.no_grad():
            taught_BLV = self._answer(question if instead is None else self.question(*instead, draw), teacher)
        apart_BL = (self._answer(question, module) - taught_BLV).square().mean(dim=-1)
        return self._where_hidden(apart_BL, draw)

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
        """See `ImageToImage.complete`, and `tokens.filled_in` for a pass's steps: `sampling.steps`, or one a hidden token."""
        self._require_shape(images_BCHW)
        corruption.require_one_each(images_BCHW, hidden_Bhw, seeds)
        if not len(images_BCHW):
            return images_BCHW
        count, size = corruption.require_alike(hidden_Bhw, self.grid), sampling.batch_size
        parts = [slice(i, i + size) for i in range(0, len(seeds), size)]
        return torch.cat([self._completed(images_BCHW[p], hidden_Bhw[p], count, seeds[p], sampling.steps) for p in parts])

    def _completed(self, images_BCHW: Tensor, hidden_Bhw: Tensor, count: int, seeds: Sequence[int], steps: int) -> Tensor:
        images_BCHW, hidden_Bhw = images_BCHW.to(self.device), hidden_Bhw.to(self.device)
        is_covered_B1HW = corruption.pixels(hidden_Bhw, self.cell)
        everywhere_BL = torch.arange(self.predictor.length, device=self.device).expand(len(images_BCHW), -1)
        so_far_BCHW = self.tokenizer.filled(images_BCHW, hidden_Bhw)
        for _ in range(PASSES):
            filled_BL = tokens.filled_in(
                lambda shown_BL: self._answer(self._asked(shown_BL, everywhere_BL), None),
                self.tokenizer.tokenise(so_far_BCHW).long(),
                hidden_Bhw.flatten(1),
                count,
                seeds,
                steps=steps,
                mask_id=self.predictor.mask_id,
                temperature=self.predictor.temperature,
            )
            so_far_BCHW = torch.where(is_covered_B1HW, self.tokenizer.decode(filled_BL, self.grid), images_BCHW)
        return so_far_BCHW.cpu()

    # ---------------------------------------------------------------------------------------------------------- asking

    def _halves(self, network: nn.Module) -> Halves:
        p = self.predictor
        return Halves(
            network.eval(), encoder=p.encoder, shared=p.shared, encode=p.encode, answer=p.answer, device=self.device
        ).eval()

    def _asked(self, shown_BL: Tensor, kept_BK: Tensor) -> Question:
        if self.predictor.dropped:
            return shown_BL, kept_BK
        return (shown_BL, *(one.expand(len(shown_BL), *one.shape[1:]) for one in self.predictor.beside))

    def _answer(self, question: Question, module: nn.Module | None) -> Tensor:
        """(B, L, V) logits, float32."""
        answer_BLV: Tensor = (module or self.module)(*question, whole=True)
        return answer_BLV.float()

    def _hidden(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """int64 (B, L) a random order of the tokens, and bool (B, L) which of them are hidden: the first in it."""
        u_BL, share_B = draw["mask"][:, :-1], draw["mask"][:, -1]
        rank_BL = u_BL.argsort(dim=1, stable=True).argsort(dim=1)
        return rank_BL, rank_BL < self.predictor.hidden(share_B)[:, None]

    def _loss_to(self, true_BL: Tensor, x_BCHW: Tensor, y_B: Tensor, draw: Draw, module: nn.Module | None) -> Tensor:
        logits_BLV = self._answer(self.question(x_BCHW, y_B, draw), module)
        return self._where_hidden(F.cross_entropy(logits_BLV.transpose(1, 2), true_BL, reduction="none"), draw)

    def _where_hidden(self, apart_BL: Tensor, draw: Draw) -> Tensor:
        """(B,) mean over the hidden tokens."""
        _, is_hidden_BL = self._hidden(draw)
        return (apart_BL * is_hidden_BL).sum(dim=1) / is_hidden_BL.sum(dim=1)

    def _require_shape(self, images_NCHW: Tensor) -> None:
        if tuple(images_NCHW.shape[1:]) != self._shape:
            raise BadInput(
                f"the model works on images {self._shape} of {self.grid[0]}x{self.grid[1]} tokens of {self.cell}x{self.cell} "
                f"pixels, found {tuple(images_NCHW.shape[1:])}"
            )


# ---------------------------------------------------------------------------------------------------------- the two layouts


def _of_ours(directory: Path) -> Predictor:
    config = token_transformer.TransformerConfig.read(weights.read_json(directory / TRANSFORMER / "config.json"))

    def build() -> nn.Module:
        try:
            return token_transformer.TokenTransformer(config)
        except RuntimeError as error:  # torch's for sizes beyond its integers, and for memory that is not there
            if is_out_of_memory(error):
                raise
            raise BadModel(f"torch cannot build this transformer: {error}") from error

    return Predictor(
        build=build,
        encoder=token_transformer.ENCODER,
        shared=token_transformer.TIED if config.tied_head else (),
        encode=token_transformer.encode,
        answer=token_transformer.answer,
        side=config.sample_size,
        codes=config.codebook_size,
        mask_id=config.mask_id,
        dropped=config.dropped,
        hidden=config.hidden,
        temperature=TEMPERATURE,
    )


def _of_pipeline(directory: Path, files: Mapping[Path, Path], tokenizer: Tokenizer, device: torch.device) -> Predictor:
    document = amused.config_of(weights.read_json(directory / TRANSFORMER / "config.json"))
    with torch.device("meta"):
        config = dict(amused.built(document).config)  # with defaults for what the file leaves out
    side = amused.require_grid(config)
    pixels = side * tokenizer.factor
    return Predictor(
        build=partial(amused.built, document),
        encoder=amused.ENCODER,
        shared=amused.SHARED,
        encode=amused.encode,
        answer=amused.answer,
        side=side,
        codes=config["codebook_size"],
        mask_id=amused.mask_id(directory, config),
        dropped=0,
        hidden=partial(amused.hidden, side**2),
        temperature=amused.TEMPERATURE,
        beside=amused.beside(directory, files[prompts.TEXT], config, pixels=pixels, device=device),
    )


def _pipeline(directory: Path) -> str | None:
    """The aMUSEd pipeline that the folder is of, or None: then it is of ours. Raises: BadModel for any other pipeline."""
    if not (directory / INDEX).is_file():
        return None
    found = weights.read_json(directory / INDEX).get("_class_name")
    if found not in PIPELINES:
        raise BadModel(f"expected {INDEX} of one of {', '.join(PIPELINES)}, or none, found {found!r}")
    return str(found)


def _parts(pipeline: str | None) -> tuple[Path, ...]:
    """Folders that hold weights which are read."""
    return (TRANSFORMER, tokens.FOLDER, *((prompts.TEXT,) if pipeline else ()))


def _require_configurations(directory: Path, parts: Sequence[Path]) -> None:
    for part in parts:
        if not (directory / part / "config.json").is_file():
            raise BadModel(f"expected {part}/config.json in the model folder, found none")
