"""The DiT family against the network of the paper, written from the paper: the same weights must give the same noise.

Diffusers' model, which the family wraps, has other frequencies of its time embedding; see worker/engine/families/dit.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.dit import SIDE, tiny_dit, write_model
from worker.engine.families import dit
from worker.engine.families.dit import DiT


class MetaDiT:
    """The network as the paper describes it, with adaLN-Zero blocks and a learned variance, on tensors with Meta's names.

    Shape suffixes: B images, C channels in, H, W latent cells, T tokens of p x p cells, D width, M heads.
    Source: Peebles & Xie 2023, arXiv:2212.09748, section 3 and figure 3; the released weights' order of frequencies and tables.
    """

    def __init__(self, tensors: dict[str, Tensor], *, depth: int, heads: int) -> None:
        self.w, self.depth, self.heads = tensors, depth, heads
        self.width, _, self.patch, _ = tensors["x_embedder.proj.weight"].shape

    def __call__(self, x_BCHW: Tensor, t_B: Tensor, y_B: Tensor) -> Tensor:
        """(B, 2C, H, W): noise, then variance."""
        cells = x_BCHW.shape[-1] // self.patch
        embedded_BDhw = F.conv2d(x_BCHW, self.w["x_embedder.proj.weight"], self.w["x_embedder.proj.bias"], stride=self.patch)
        tokens_BTD = embedded_BDhw.flatten(2).transpose(1, 2) + self.positions(cells)
        c_BD = self.time(t_B) + self.w["y_embedder.embedding_table.weight"][y_B]
        for i in range(self.depth):
            tokens_BTD = self.block(f"blocks.{i}", tokens_BTD, c_BD)
        shift, scale = self.modulation("final_layer", c_BD, 2)
        answer_BTO = self.linear("final_layer.linear", self.normal(tokens_BTD, shift, scale))
        answer = answer_BTO.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (cells, cells))  # (B, h, w, p, q, 2C)
        return answer.permute(0, 5, 1, 3, 2, 4).reshape(len(x_BCHW), -1, *x_BCHW.shape[2:])

    def block(self, name: str, tokens_BTD: Tensor, c_BD: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(name, c_BD, 6)
        qkv = self.linear(f"{name}.attn.qkv", self.normal(tokens_BTD, shift_1, scale_1))
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, M, T, D / M)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        tokens_BTD = tokens_BTD + gate_1 * self.linear(f"{name}.attn.proj", attention.transpose(1, 2).flatten(2))
        wide = F.gelu(self.linear(f"{name}.mlp.fc1", self.normal(tokens_BTD, shift_2, scale_2)), approximate="tanh")
        return tokens_BTD + gate_2 * self.linear(f"{name}.mlp.fc2", wide)

    def time(self, t_B: Tensor) -> Tensor:
        """Cosines before sines, of t · 10000^(-i / 128)."""
        angle = t_B[:, None].float() * 10000 ** (-torch.arange(128) / 128)
        wave = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.linear("t_embedder.mlp.2", F.silu(self.linear("t_embedder.mlp.0", wave)))

    def positions(self, cells: int) -> Tensor:
        """(T, D) the column in the first half of the width, the row in the second; sines before cosines."""
        frequency = 10000 ** (-torch.arange(self.width // 4, dtype=torch.float64) / (self.width // 4))
        angle = torch.arange(cells)[:, None] * frequency
        side = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        return torch.cat([side.repeat(cells, 1), side.repeat_interleave(cells, 0)], dim=1)

    def modulation(self, name: str, c_BD: Tensor, count: int) -> tuple[Tensor, ...]:
        return self.linear(f"{name}.adaLN_modulation.1", F.silu(c_BD))[:, None].chunk(count, dim=-1)

    def normal(self, tokens_BTD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(tokens_BTD, (self.width,), eps=1e-6) * (1 + scale) + shift

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])


META_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
META_NAMES_IN_A_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def under_meta_s_names(transformer: DiTTransformer2DModel) -> MetaDiT:
    """The same weights in Meta's layout, where queries, keys and values are one matrix."""
    theirs, depth = transformer.state_dict(), transformer.config.num_layers
    names = META_NAMES | {
        f"transformer_blocks.{i}.{a}": f"blocks.{i}.{b}" for i in range(depth) for a, b in META_NAMES_IN_A_BLOCK.items()
    }
    tensors = {
        f"{b}.{end}": theirs[f"{a}.{end}"] for a, b in names.items() for end in ("weight", "bias") if f"{a}.{end}" in theirs
    }
    for i in range(depth):
        for end in ("weight", "bias"):
            qkv = [theirs[f"transformer_blocks.{i}.attn1.to_{letter}.{end}"] for letter in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(qkv)
    return MetaDiT(tensors, depth=depth, heads=transformer.config.num_attention_heads)


@pytest.mark.parametrize("t", [10, 500, 999])
def test_the_noise_is_what_the_paper_s_own_network_says(tmp_path: Path, t: int) -> None:
    transformer = tiny_dit(layers=3)
    write_model(tmp_path, transformer)
    config = tmp_path / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_embedding": "meta"}))
    family = DiT.load(tmp_path, labels=NAMES, device=torch.device("cpu"))
    x_BCHW = torch.randn(5, 2, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(2))
    t_B, y_B = torch.full((5,), t), torch.arange(5)  # 4 is the null label
    with torch.no_grad():
        noise_BCHW, variance_BCHW = under_meta_s_names(transformer)(x_BCHW, t_B, y_B).chunk(2, dim=1)
        assert torch.allclose(dit.ask(family.module, x_BCHW, t_B, y_B), noise_BCHW, rtol=0, atol=1e-3)
        assert torch.allclose(family.module(x_BCHW, t_B, y_B).sample[:, 2:], variance_BCHW, rtol=0, atol=1e-3)
        with_diffusers_frequencies_BCHW = dit.ask(transformer.eval(), x_BCHW, t_B, y_B)
    assert not torch.allclose(with_diffusers_frequencies_BCHW, noise_BCHW, rtol=0, atol=1e-3)
