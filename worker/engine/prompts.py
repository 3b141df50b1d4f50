"""Prompts as the text encoder of a pipeline's folder reads them. It answers once, at load, and is let go.

Shape suffixes: K prompts, L tokens of a prompt, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.engine import weights
from worker.engine.errors import BadInput, BadModel, is_out_of_memory

TEXT, TOKENIZER = Path("text_encoder"), Path("tokenizer")

PROMPTS_AT_ONCE = 64


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
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(weights.network_values(config))).eval()
    except Exception as error:  # a stranger's values: a configuration class validates in ways of its own
        if is_out_of_memory(error):
            raise
        raise BadModel(f"transformers cannot build this text encoder: {error}") from error
    _load_text_encoder(encoder, directory / file)
    token_KL, real_KL = token_ids(directory / TOKENIZER, prompts, encoder.config)
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


def token_ids(folder: Path, prompts: Sequence[str], config: CLIPTextConfig) -> tuple[Tensor, Tensor]:
    """(K, L) ids of the prompts' tokens, and (K, L) which of them are no padding.

    Raises: BadModel when the folder holds no tokenizer that fits the text encoder.
    """
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
