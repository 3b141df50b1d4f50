"""Class-conditional DiT: a folder as diffusers' `DiTPipeline` saves it (the layout of facebook/DiT-XL-2-256), safetensors only.

`transformer/` is trained; `vae/` is frozen and its bytes are copied. There are K classes, and row K of the label table is the
null label.
Class names come with the registration. An `id2label` in model_index.json is read for one thing: a folder that has the
registered names in another order is refused, as the wrong class would be forgotten.

Where diffusers' model differs from the published one, and what is done about it:

- Every block has its own copy of the time and label embedder. They were one in training, so they are one here (`tie`): the
  gradient is the sum over blocks, Fisher information and clip norm are of the parameters there are. Saved, they are copies
  again.
- In train mode every copy would drop labels by its own draw. The network stays in eval mode; labels are dropped once, outside.
- The frequencies of the time embedding are 10000^(-i/127); Meta's code, whose converted weights are the public ones, has
  10000^(-i/128). `"time_embedding": "meta" | "diffusers"` in transformer/config.json says which a folder was trained with;
  without the key DiT-XL/2 with 1000 classes is Meta's and every other folder diffusers'. `DiTPipeline` knows only its own: say
  "diffusers" to unlearn Meta's weights exactly as that pipeline runs them.
- With a learned variance the network answers noise and variance side by side. The loss is the noise's mean squared error, as
  the samplers here, and `DiTPipeline`, read the noise alone. The variance half gets no gradient of its own while the layers
  under it move: an ancestral sampler that reads it should not be used on a result.
- Guidance is on the whole noise, as in `DiTPipeline`; Meta's code guides three of the four latent channels.

Shape suffixes: N items, B images, C latent channels (of pixels where the text says images), H, W latent cells.
Source: Peebles & Xie 2023, arXiv:2212.09748.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from worker.engine import diffusion, weights
from worker.engine.errors import BadModel
from worker.engine.family import Kind
from worker.engine.latents import FOLDER as VAE
from worker.engine.latents import LatentDenoising, Latents

TRANSFORMER = Path("transformer")
SCHEDULER = Path("scheduler/scheduler_config.json")
INDEX = Path("model_index.json")

TimeEmbedding = Literal["meta", "diffusers"]
FREQUENCY_SHIFTS: Mapping[TimeEmbedding, int] = {"meta": 0, "diffusers": 1}
"""s of the exponent -i / (128 - s)."""

PUBLIC = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "patch_size": 2, "num_embeds_ada_norm": 1000}
"""DiT-XL/2 on ImageNet, at any resolution."""


class DiT(LatentDenoising):
    """A `DiTTransformer2DModel` that predicts noise in the latents of a frozen autoencoder."""

    name: ClassVar[str] = "dit"
    title: ClassVar[str] = "Diffusion transformer on latents (diffusers DiTPipeline)"
    kind: ClassVar[Kind] = "generator"
    prompts: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = frozenset({"batch_norm", "augment"})
    table: ClassVar[str] = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        latents: Latents,
        schedule: DDIMScheduler,
        *,
        time_embedding: TimeEmbedding,
        device: torch.device,
    ) -> None:
        self.module: nn.Module = _ready(transformer, time_embedding, device)
        self.class_count: int = transformer.config.num_embeds_ada_norm
        self.device = device
        self.latents = latents
        self.time_embedding = time_embedding
        self.denoiser = diffusion.Denoiser.of(
            ask, self.module, schedule, labels=self.class_count, null=self.class_count, device=device
        )
        side = transformer.config.sample_size
        self._shape = (transformer.config.in_channels, side, side)

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`. A folder without a scheduler gets DiT's own schedule (linear, 1000 steps)."""
        file = _weights_file(directory)
        config = weights.read_json(directory / TRANSFORMER / "config.json")
        _require_dit(config, len(labels))
        if (directory / INDEX).is_file():
            weights.require_label_order(weights.read_json(directory / INDEX).get("id2label"), labels, INDEX.name)
        time_embedding = time_embedding_of(config)
        scheduler = directory / SCHEDULER
        schedule = _schedule(weights.read_json(scheduler) if scheduler.is_file() else {})
        known = inspect.signature(DiTTransformer2DModel.__init__).parameters
        try:
            transformer = DiTTransformer2DModel.from_config({k: v for k, v in config.items() if k in known})
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this configuration: {error}") from error
        weights.load_into(transformer, directory / file)
        _require_equal_copies(transformer)
        latents = Latents.load(directory, device)
        _require_matching(transformer, latents)
        return cls(transformer, latents, schedule, time_embedding=time_embedding, device=device)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`. The tied embedder is written once a block, as the base has it."""
        file = _weights_file(base)

        def trained(folder: str, _: list[str]) -> set[str]:
            return {file.name} if Path(folder) == base / file.parent else set()

        shutil.copytree(base, directory, ignore=trained, symlinks=False)
        weights.save_like(self.module, directory / file, base / file)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`; drawn as the paper draws its own, so that it could be trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = DiTTransformer2DModel.from_config(self.module.config)
            initialise(transformer)
        return _ready(transformer, self.time_embedding, self.device)


def ask(module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
    """See `diffusion.Ask`: the first C of the channels answered, the noise; the rest would be the variance."""
    return module(noisy_BCHW, timestep=t_B, class_labels=y_B).sample[:, : noisy_BCHW.shape[1]].float()


def tie(transformer: DiTTransformer2DModel) -> None:
    """Make the blocks share the time and label embedder of block 0."""
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb = transformer.transformer_blocks[0].norm1.emb


def time_embedding_of(config: Mapping[str, Any]) -> TimeEmbedding:
    """Whose frequencies a folder was trained with. Raises: BadModel for a name that is neither."""
    public = all(config.get(key) == value for key, value in PUBLIC.items())
    named = config.get("time_embedding", "meta" if public else "diffusers")
    if named not in FREQUENCY_SHIFTS:
        raise BadModel(f"expected time_embedding 'meta' or 'diffusers' in transformer/config.json, found {named!r}")
    return named


def time_frequencies(time_embedding: TimeEmbedding) -> Timesteps:
    """t (B,) -> (B, 256): 128 cosines, then 128 sines."""
    return Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=FREQUENCY_SHIFTS[time_embedding])


def initialise(transformer: DiTTransformer2DModel) -> None:
    """New weights in place, from torch's global generator.

    Source: Peebles & Xie 2023, section 3.2, adaLN-Zero: each block starts as the identity, and the answer as zero.
    """
    for layer in transformer.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    patches = transformer.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.detach().flatten(1))  # as the linear layer that it is
    nn.init.zeros_(patches.bias)
    embedder = transformer.transformer_blocks[0].norm1.emb
    small = embedder.class_embedder.embedding_table, embedder.timestep_embedder.linear_1, embedder.timestep_embedder.linear_2
    for layer in small:
        nn.init.normal_(layer.weight, std=0.02)
    for layer in (
        *(block.norm1.linear for block in transformer.transformer_blocks),
        transformer.proj_out_1,
        transformer.proj_out_2,
    ):
        nn.init.zeros_(layer.weight)


def _ready(transformer: DiTTransformer2DModel, time_embedding: TimeEmbedding, device: torch.device) -> nn.Module:
    """Tied, with the right frequencies, on the device, in eval mode."""
    tie(transformer)
    transformer.transformer_blocks[0].norm1.emb.time_proj = time_frequencies(time_embedding)
    return transformer.to(device).eval()


def _schedule(config: Mapping[str, Any]) -> DDIMScheduler:
    """The folder's, less what is meant for pixels: latents are not bounded, so that cutting them to [-1, 1] is never meant.

    `variance_type` goes too: told of a learned variance, diffusers' DPM-Solver would take three channels for the noise.
    """
    kept = {key: value for key, value in config.items() if key != "variance_type"}
    return diffusion.schedule_of({**kept, "clip_sample": False, "thresholding": False})


def _weights_file(directory: Path) -> Path:
    """The transformer's weights, relative to the folder.

    Raises: BadModel when there is no transformer, a pickle, or safetensors that are neither its nor the autoencoder's.
    """
    if not (directory / TRANSFORMER / "config.json").is_file():
        raise BadModel(f"expected {TRANSFORMER}/config.json in the model folder, found none")
    file = TRANSFORMER / weights.only_file(directory / TRANSFORMER, below=Path())
    suffixes = weights.PICKLES | {".safetensors"}
    found = (p.relative_to(directory) for p in sorted(directory.rglob("*")) if p.suffix.lower() in suffixes)
    strange = [p.as_posix() for p in found if p.parent not in (TRANSFORMER, VAE)]
    if strange:
        raise BadModel(f"expected weights in {TRANSFORMER}/ and {VAE}/ alone, safetensors weights only, found {strange}")
    return file


def _require_dit(config: Mapping[str, Any], class_count: int) -> None:
    """The public folder was saved when the class was still called Transformer2DModel, and was many models in one."""
    kind, norm = config.get("_class_name"), config.get("norm_type", "ada_norm_zero")
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel") or norm != "ada_norm_zero":
        raise BadModel(f"expected a DiTTransformer2DModel with norm_type 'ada_norm_zero', found {kind!r} with {norm!r}")
    rows = config.get("num_embeds_ada_norm")
    if rows != class_count:
        raise BadModel(f"expected num_embeds_ada_norm = {class_count}, the number of classes, found {rows}")
    channels = config.get("in_channels", 4)
    if config.get("out_channels") not in (None, channels, 2 * channels):
        raise BadModel(
            f"expected out_channels = {channels} (noise) or {2 * channels} (noise and variance), found {config['out_channels']}"
        )


def _require_equal_copies(transformer: DiTTransformer2DModel) -> None:
    blocks = transformer.transformer_blocks
    first = blocks[0].norm1.emb.state_dict()
    for i, block in enumerate(blocks):
        strange = [name for name, tensor in block.norm1.emb.state_dict().items() if not torch.equal(tensor, first[name])]
        if strange:
            raise BadModel(
                f"expected equal copies of the time and label embedder in all {len(blocks)} blocks, found another "
                f"{strange[0]} in block {i}"
            )


def _require_matching(transformer: DiTTransformer2DModel, latents: Latents) -> None:
    wanted, found = transformer.config.in_channels, latents.vae.config.latent_channels
    if wanted != found:
        raise BadModel(f"expected an autoencoder of {wanted} latent channels, as the transformer has, found {found}")
