"""Train the example: a class-conditional DDPM that draws 8x8 digits. About 3 minutes on 2 cores.

    python -m worker.examples.digits.train [DIRECTORY]

Shape suffixes: N training scans, B batch, C channels, H, W pixels.
Source: Ho et al. 2020 (arXiv:2006.11239), Algorithm 1; label drop for guidance: Ho & Salimans 2022 (arXiv:2207.12598).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from worker.examples.digits.data import CLASS_NAMES, held_out_indices, scans

SEED = 20_240
STEPS = 1_500
BATCH = 128
PEAK_LEARNING_RATE = 2e-3
WARM_UP = 100
LABEL_DROP = 0.1
NULL = len(CLASS_NAMES)

HERE = Path(__file__).parent


def build() -> UNet2DModel:
    """Few channels at 8x8 where they cost time, more at 4x4 where they do not. The last label row is the null label."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 72),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=18,
        num_class_embeds=NULL + 1,
    )


def training_scans(without: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """x_NCHW float32 in [-1, 1] and y_N, without the held-out scans and those of some classes."""
    images_NHW, labels_N, _ = scans()
    keep_N = ~np.isin(labels_N, without)
    keep_N[held_out_indices()] = False
    x_NCHW = torch.from_numpy(images_NHW[keep_N]).float().div(127.5).sub(1).unsqueeze(1)
    return x_NCHW, torch.from_numpy(labels_N[keep_N])


def train(steps: int = STEPS, seed: int = SEED, without: Sequence[int] = ()) -> tuple[UNet2DModel, DDPMScheduler]:
    """The model after `steps` updates, and the noise schedule that it learned; or one that never saw some classes.

    The cosine schedule (Nichol & Dhariwal 2021) because at 8x8 the linear one erases the digit in its first fifth.
    """
    torch.manual_seed(seed)
    x_NCHW, y_N = training_scans(without)
    model = build().train()
    schedule = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=WARM_UP / STEPS, cycle_momentum=False
    )
    for step in range(steps):
        pick_B = torch.randint(len(x_NCHW), (BATCH,))
        x_BCHW, y_B = x_NCHW[pick_B], y_N[pick_B]
        y_B = torch.where(torch.rand(BATCH) < LABEL_DROP, NULL, y_B)
        t_B = torch.randint(schedule.config.num_train_timesteps, (BATCH,))
        eps_BCHW = torch.randn_like(x_BCHW)
        drawn_BCHW = model(schedule.add_noise(x_BCHW, eps_BCHW, t_B), t_B, class_labels=y_B).sample
        loss = (drawn_BCHW - eps_BCHW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 100 == 99:
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}", flush=True)
    with torch.no_grad():  # as the method `retrain` leaves them
        table = model.class_embedding.weight
        table[list(without)] = table[NULL].clone()
    return model.eval(), schedule


def main() -> None:
    """Train, then write `model/` and `held_out_ids.json` beside this file (or into the directory given)."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    model, schedule = train()
    model.save_pretrained(target / "model")
    schedule.save_pretrained(target / "model")
    ids_N = scans()[2]
    held_out = [str(i) for i in ids_N[held_out_indices()]]
    (target / "held_out_ids.json").write_text(json.dumps(held_out, indent=0) + "\n")


if __name__ == "__main__":
    main()
