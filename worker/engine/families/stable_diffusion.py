"""Stable Diffusion 1.x and 2.x: a diffusers `StableDiffusionPipeline` folder, in which a class is a prompt.

Only the UNet is trained. The text encoder answers once, at load, for every class's prompt and for the empty one, which is the
null label; then it is let go. The autoencoder stays, frozen (`worker.engine.latents`). A safety checker is carried along
untouched and never loaded: it filters answers, it does not make them.

Shape suffixes: N items, B images, C channels, H, W pixels; L tokens of a prompt, D their width, K classes.
Source: Rombach et al. 2022, arXiv:2112.10752. Where we differ from published unlearning code: prompts and images are encoded
once, not at every step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.engine import diffusion, weights
from worker.engine.errors import BadInput, BadModel, is_out_of_memory
from worker.engine.family import Kind
from worker.engine.latents import LatentDenoising, Latents
from worker.engine.precision import channels_last

UNET, TEXT, TOKENIZER, SCHEDULER = Path("unet"), Path("text_encoder"), Path("tokenizer"), Path("scheduler")
PARTS = (UNET, Path("vae"), TEXT)
CARRIED = Path("safety_checker")
"""Weights that are copied and never read."""

OTHER_INPUTS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Keys of a UNet's configuration that ask for more than x_t, t and a prompt."""

AS_THE_PIPELINE = {"clip_sample": False, "thresholding": False, "steps_offset": 1}
"""What the pipeline makes of any schedule. Public folders leave `clip_sample` out, and diffusers' default would cut latents."""

PROMPTS_AT_ONCE = 64


class StableDiffusion(LatentDenoising):
    """A `UNet2DConditionModel` on latents, asked with the embeddings of one prompt a class."""

    name: ClassVar[str] = "stable_diffusion"
    title: ClassVar[str] = "Stable Diffusion 1.x, 2.x (diffusers StableDiffusionPipeline)"
    kind: ClassVar[Kind] = "generator"
    prompts: ClassVar[bool] = True
    ignores: ClassVar[frozenset[str]] = frozenset({"batch_norm", "augment"})

    def __init__(self, unet: UNet2DConditionModel, prompt_KLD: Tensor, latents: Latents, schedule: DDIMScheduler) -> None:
        self.device = prompt_KLD.device
        self.module: nn.Module = channels_last(unet.to(self.device).eval())
        self.class_count = len(prompt_KLD) - 1
        self.latents = latents
        self.prompt_KLD = prompt_KLD
        """(K + 1, L, D) float32; the last row is the empty prompt's."""
        k = self.class_count
        self.denoiser = diffusion.Denoiser.of(self.ask, self.module, schedule, labels=k, null=k, device=self.device)
        size = unet.config.sample_size
        self._shape = (unet.config.in_channels, *(size if isinstance(size, (tuple, list)) else (size, size)))

    @classmethod
    def load(cls, directory: Path, *, labels: Sequence[str], device: torch.device) -> Self:
        """See `Family.load`; also refused: a prompt that reads like another one, or like the empty one."""
        _require_pipeline(directory)
        files = weight_files(directory)
        config = weights.read_json(directory / UNET / "config.json")
        prompt_KLD = encoded(directory, files[TEXT], [*labels, ""], device)
        latents = Latents.load(directory, device)
        _require_fitting(config, width=prompt_KLD.shape[-1], channels=latents.vae.config.latent_channels)
        schedule = diffusion.schedule_of(weights.read_json(directory / SCHEDULER / "scheduler_config.json") | AS_THE_PIPELINE)
        try:
            unet = UNet2DConditionModel.from_config(config)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise BadModel(f"diffusers cannot build this configuration: {error}") from error
        weights.load_into(unet, directory / files[UNET])
        return cls(unet, prompt_KLD, latents, schedule)

    def save(self, directory: Path, base: Path) -> None:
        """See `Family.save`: every file of the base as it is, but for the UNet's weights."""
        file = weight_files(base)[UNET]
        unet = str(base / UNET)  # by folder: the autoencoder's weights usually have the same file name
        shutil.copytree(base, directory, ignore=lambda at, _: [file.name] if at == unet else [], symlinks=False)
        weights.save_like(self.module, directory / file, base / file)

    def fresh(self, seed: int) -> nn.Module:
        """See `Family.fresh`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = UNet2DConditionModel.from_config(self.module.config)
        return channels_last(unet.to(self.device).eval())

    def ask(self, module: nn.Module, noisy_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        """See `diffusion.Ask`."""
        noisy_BCHW = noisy_BCHW.contiguous(memory_format=torch.channels_last)
        return module(noisy_BCHW, t_B, encoder_hidden_states=self.prompt_KLD[y_B]).sample.float()


# --------------------------------------------------------------------------------------------------------------- prompts


def encoded(directory: Path, file: Path, prompts: Sequence[str], device: torch.device) -> Tensor:
    """(K, L, D) float32 on the device: the last hidden state of the folder's text encoder for each prompt, as the pipeline
    asks for it: padded to the tokenizer's length, cut beyond it.

    Args:
        file: the text encoder's weights, relative to `directory`.

    Raises:
        BadInput: two prompts of the same tokens; the model could not forget one and keep the other.
        BadModel: not a CLIP text encoder, or no tokenizer that fits it.
    """
    config = weights.read_json(directory / TEXT / "config.json")
    if config.get("model_type") != "clip_text_model":
        raise BadModel(f"expected model_type 'clip_text_model' in {TEXT}/config.json, found {config.get('model_type')!r}")
    try:
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(config)).eval()
    except Exception as error:  # a stranger's values: a configuration class validates in ways of its own
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot build this text encoder: {error}") from error
    _load_text_encoder(encoder, directory / file)
    token_KL, real_KL = _tokens(directory / TOKENIZER, prompts, encoder.config)
    _require_different(token_KL, prompts)
    encoder = encoder.to(device)
    masked = getattr(encoder.config, "use_attention_mask", False)
    rows = [slice(i, i + PROMPTS_AT_ONCE) for i in range(0, len(prompts), PROMPTS_AT_ONCE)]
    with torch.no_grad():
        parts = [
            encoder(token_KL[r].to(device), attention_mask=real_KL[r].to(device) if masked else None).last_hidden_state
            for r in rows
        ]
    return torch.cat(parts).float()


def _tokens(folder: Path, prompts: Sequence[str], config: CLIPTextConfig) -> tuple[Tensor, Tensor]:
    """(K, L) ids of the prompts' tokens, and (K, L) which of them are no padding."""
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would make up a tokenizer that knows no word at all.
        raise BadModel(f"expected vocab.json or tokenizer.json in {TOKENIZER}/, found neither")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot read the tokenizer: {error}") from error
    if len(tokenizer) > config.vocab_size:
        raise BadModel(
            f"expected a tokenizer of at most {config.vocab_size} tokens for this text encoder, found {len(tokenizer)}"
        )
    length = min(tokenizer.model_max_length, config.max_position_embeddings)
    read = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return read.input_ids, read.attention_mask


def _require_different(token_KL: Tensor, prompts: Sequence[str]) -> None:
    first: dict[tuple[int, ...], int] = {}
    for k, tokens in enumerate(token_KL.tolist()):
        twin = first.setdefault(tuple(tokens), k)
        if twin != k:
            raise BadInput(
                f"expected prompts that the model can tell apart, found {prompts[twin]!r} and {prompts[k]!r} of the same tokens"
            )


def _load_text_encoder(encoder: CLIPTextModel, path: Path) -> None:
    """Fill the encoder from its file, whichever transformers wrote it.

    Until version 5 every name began with `text_model.`, and until 4.31 the file held the positions' numbers too.

    Raises: BadModel; see `weights.load_into`.
    """
    prefix = "text_model."
    wanted = "" if not all(name.startswith(prefix) for name in encoder.state_dict()) else prefix
    try:
        with safe_open(path, framework="pt") as source:
            names = set(source.keys())
    except (SafetensorError, OSError) as error:
        raise BadModel(f"{path.name} of {TEXT}/ is not a readable safetensors file") from error
    numbered = any(name.endswith("embeddings.position_ids") for name in names)
    embeddings = encoder.get_submodule(f"{wanted}embeddings")
    if numbered:
        embeddings.register_buffer("position_ids", embeddings.position_ids.clone(), persistent=True)
    weights.load_into(encoder, path, rename=lambda name: wanted + name.removeprefix(prefix))
    positions_1L = torch.arange(encoder.config.max_position_embeddings)[None]
    if not torch.equal(embeddings.position_ids, positions_1L):
        raise BadModel(f"expected the positions 0 to {positions_1L.shape[1] - 1} in order in {TEXT}/, found others")


# ---------------------------------------------------------------------------------------------------------------- folder


def weight_files(directory: Path) -> dict[Path, Path]:
    """The one safetensors file of each part that is read, relative to the folder; `*.fp16.safetensors` is as good as any.

    Raises:
        BadModel: a pickle anywhere, a part with no or with two files (one of them would survive unlearning), or weights in
            another place, such as a whole checkpoint beside the parts.
    """
    files = [p.relative_to(directory) for p in sorted(directory.rglob("*")) if p.is_file()]
    pickles = [p.as_posix() for p in files if p.suffix.lower() in weights.PICKLES]
    if pickles:
        raise BadModel(f"expected safetensors weights only, found {', '.join(pickles)}")
    found = [p for p in files if p.suffix.lower() == ".safetensors"]
    strays = [p.as_posix() for p in found if p.parent not in (*PARTS, CARRIED)]
    if strays:
        raise BadModel(f"expected .safetensors files in {', '.join(map(str, PARTS))} and {CARRIED} only, found {strays}")
    by_part = {part: [p for p in found if p.parent == part] for part in (*PARTS, CARRIED)}
    for part, own in by_part.items():
        if len(own) > 1 or (part in PARTS and not own):
            raise BadModel(f"expected one .safetensors file in {part}/, found {[p.name for p in own]}")
    return {part: by_part[part][0] for part in PARTS}


def _require_pipeline(directory: Path) -> None:
    for file in (Path("model_index.json"), UNET / "config.json", TEXT / "config.json", SCHEDULER / "scheduler_config.json"):
        if not (directory / file).is_file():
            raise BadModel(f"expected {file.as_posix()} in the model folder, found none")
    kind = weights.read_json(directory / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        why = "; its two text encoders are not supported" if "XL" in str(kind) else ""
        raise BadModel(f"expected a StableDiffusionPipeline, found {kind!r}{why}")


def _require_fitting(config: Mapping[str, Any], *, width: int, channels: int) -> None:
    """The UNet takes x_t, t and a prompt of the text encoder's width, and its latents are the autoencoder's."""
    if config.get("_class_name") != "UNet2DConditionModel":
        raise BadModel(f"expected a diffusers UNet2DConditionModel, found {config.get('_class_name')!r}")
    others = [key for key in OTHER_INPUTS if config.get(key) is not None]
    if others:
        raise BadModel(f"expected a UNet that is asked with a prompt alone, found {others[0]} = {config[others[0]]!r}")
    if config.get("cross_attention_dim") != width:
        raise BadModel(f"expected cross_attention_dim = {width}, the text encoder's, found {config.get('cross_attention_dim')}")
    came = (config.get("in_channels"), config.get("out_channels"))
    if came != (channels, channels):
        raise BadModel(
            f"expected {channels} channels in and out, as the autoencoder's latents have, found {came[0]} and {came[1]}"
        )
