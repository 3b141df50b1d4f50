"""A masked autoencoder of about 8,000 parameters on 16 patches of 8x8 grey images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.worker.engine.tiny import Case

SIDE = 8


def config(**changes: Any) -> ViTMAEConfig:
    """Dropout is on, as it may be in a folder, and keys have no bias: a softmax would see nothing of it but rounding."""
    values = {
        "image_size": SIDE,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "hidden_dropout_prob": 0.3,
        "qkv_bias": False,
        "mask_ratio": 0.5,
    }
    return ViTMAEConfig(**(values | changes))


def tiny_mae(**changes: Any) -> ViTMAEForPreTraining:
    """Seeded, with weights large enough that images differ: freshly initialised ones make them all but the same."""
    torch.manual_seed(3)
    network = ViTMAEForPreTraining(config(**changes))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(8 if "projection" not in name else 1)
    return network.eval()


def write_model(directory: Path, network: ViTMAEForPreTraining | None = None) -> None:
    """Under the names that the module has; `save_pretrained` writes those of the published weights."""
    network = network or tiny_mae()
    directory.mkdir(parents=True, exist_ok=True)
    network.config.save_pretrained(directory)
    tensors = {name: t.detach().clone().contiguous() for name, t in network.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


CASE = Case(write_model, 1, SIDE)
