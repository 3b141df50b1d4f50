"""Stand-ins for the networks of published figures: a TorchScript module with Inception's two answers, and a tiny CLIP."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from worker.contract import tree_digest
from worker.engine.files import entries

FEATURES, CLASSES, EMBEDDING = 64, 5, 12


class Stand(nn.Module):
    """The grey levels of 8 x 8 tiles of an image that it must get at 299 pixels a side, and five classes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False) -> Tensor:
        assert x.shape[1:] == (3, 299, 299)
        features_BD = nn.functional.adaptive_avg_pool2d(x.mean(dim=1), (8, 8)).flatten(1) / 128.0 - 1.0
        if return_features:
            return features_BD
        logits_BK = nn.functional.linear(features_BD, self.output.weight)
        if not no_output_bias:
            logits_BK = logits_BK + self.output.bias
        return logits_BK.softmax(dim=1)


def write_inception(folder: Path, module: nn.Module | None = None) -> Path:
    """`inception.pt` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module or Stand()).save(str(folder / "inception.pt"))
    return folder


def write_clip(folder: Path) -> Path:
    """`clip/` in the folder: 16 x 16 pixels, embeddings of 12 numbers."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**size, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING)).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder / "clip")
    return folder


def digest(folder: Path) -> str:
    """As a spec names what is mounted."""
    return tree_digest(entries(folder))
