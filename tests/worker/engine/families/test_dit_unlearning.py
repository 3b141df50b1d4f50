"""A diffusion transformer that learned real classes forgets one of them through the whole stage, and keeps the others.

The yardstick is what a label is worth: how much lower the loss is under the right label than under the null label, on the same
images and the same noise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.worker.engine.tiny import NAMES, striped
from tests.worker.engine.tiny.dit import write_model
from tests.worker.engine.unlearning_job import make_job, make_spec, params_of, run_engine, start_engine, write_spec
from worker.contract import DatasetSpec, JobDirectory, Sampling, tree_digest
from worker.engine.families.dit import DiT, initialise
from worker.engine.files import entries
from worker.engine.latents import Latents

CPU = torch.device("cpu")
FORGOTTEN = 1
WEIGHTS = Path("transformer/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Losses:
    """Of every image, on the same draws for every model: under its own label, and under none."""

    own_N: Tensor
    null_N: Tensor

    @property
    def worth_N(self) -> Tensor:
        return self.null_N - self.own_N


def learn(family: DiT, images_NCHW: Tensor, labels_N: Tensor, *, steps: int, rate: float, batch: int = 64) -> None:
    """Train as the paper does: noise prediction, a tenth of the labels dropped; Adam, the rate falling to 0."""
    held_N, generator = family.hold(images_NCHW), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(family.module.parameters(), lr=rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        index_B = torch.randint(len(labels_N), (batch,), generator=generator)
        draw = family.draw(batch, images_NCHW.shape[1:], generator, label_drop=0.1)
        optimizer.zero_grad()
        family.loss(family.prepare(held_N[index_B], draw), labels_N[index_B], draw).mean().backward()
        torch.nn.utils.clip_grad_norm_(family.module.parameters(), 1.0)
        optimizer.step()
        decay.step()


@torch.no_grad()
def losses(family: DiT, images_NCHW: Tensor, labels_N: Tensor, *, repeats: int) -> Losses:
    """Each image's mean over `repeats` draws."""
    generator = torch.Generator().manual_seed(99)
    held_N, null_N = family.hold(images_NCHW), torch.full_like(labels_N, family.class_count)
    own_N, lost_N = torch.zeros(len(labels_N)), torch.zeros(len(labels_N))
    for _ in range(repeats):
        draw = family.draw(len(labels_N), images_NCHW.shape[1:], generator, label_drop=0.0)
        x_NCHW = family.prepare(held_N, draw)
        own_N += family.loss(x_NCHW, labels_N, draw) / repeats
        lost_N += family.loss(x_NCHW, null_N, draw) / repeats
    return Losses(own_N, lost_N)


def require_one_class_forgotten(before: Losses, after: Losses, labels_N: Tensor) -> None:
    """The forgotten label is worth nothing any more; of the others' worth, and of their loss, at most half of it is gone."""
    forgotten_N = labels_N == FORGOTTEN
    for k in labels_N.unique():
        worth = before.worth_N[labels_N == k]
        assert float(worth.mean()) > 5 * float(worth.std()) / len(worth) ** 0.5  # it had learned the class, beyond chance
    assert float(after.worth_N[forgotten_N].mean()) <= 0
    # Told the label, it now does no better than the original did untold.
    assert float(after.own_N[forgotten_N].mean()) >= float(before.null_N[forgotten_N].mean())

    half = float(before.worth_N[~forgotten_N].mean()) / 2
    assert float(after.worth_N[~forgotten_N].mean()) >= half
    assert float((after.own_N - before.own_N)[~forgotten_N].mean()) <= half


def write_data(job: JobDirectory, images_NCHW: Tensor, labels_N: Tensor) -> None:
    job.data.mkdir(parents=True)
    np.savez(job.data / "data.npz", images=images_NCHW[:, 0].numpy(), labels=labels_N.numpy())


def unlearn(job: JobDirectory, names: tuple[str, ...], **params: object) -> DiT:
    """Forget `FORGOTTEN` of what is in the job directory, by SFR-on; the saved result."""
    digest = tree_digest(entries(job.data))
    dataset = DatasetSpec(format="npz", digest=digest, held_out_ids=tuple(str(i) for i in range(len(names))))
    wanted = {"preset": None, "precision": "fp32", "decay": "linear", "fisher_samples": 32, **params}
    spec = make_spec(job, family="dit", class_names=names, forget_classes=(FORGOTTEN,), dataset=dataset, params=wanted)
    job.spec.write_text(spec.model_dump_json())
    assert run_engine(job) == 0
    return DiT.load(job.out, labels=names, device=CPU)


def test_two_ranks_agree_with_one_on_a_shared_network(tmp_path: Path) -> None:
    # gamma 0 lets every weight through: a mask at its threshold would turn a rounding difference into a step.
    params = params_of("sfron") | {"gamma": 0.0}
    one = make_job(tmp_path / "one", family="dit", params=params)
    assert run_engine(one) == 0
    two = make_job(tmp_path / "two", family="dit", params=params)
    write_spec(two, family="dit", params=params, ranks=2)
    process = start_engine(two, ranks=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    base, single, double = (load_file(folder / WEIGHTS) for folder in (one.base, one.out, two.out))
    # A softmax does not see the bias of its keys: their gradient is rounding, which Adam makes steps of.
    for name in (n for n in single if not n.endswith("attn1.to_k.bias")):
        moved, apart = (single[name] - base[name]).norm(), (single[name] - double[name]).norm()
        assert float(apart) <= 1e-2 * float(moved), name
        assert float(moved) > 0, name


# ---------------------------------------------------------------------------------------------------- stripes, in seconds


def sharpen(directory: Path, images_NCHW: Tensor) -> None:
    """Make the untrained autoencoder's posterior narrow and its latents centred, of unit variance, as a trained one's are."""
    file, config = directory / "vae/diffusion_pytorch_model.safetensors", directory / "vae/config.json"
    tensors = load_file(file)
    tensors["quant_conv.weight"][2:] = 0
    tensors["quant_conv.bias"][2:] = -8.0  # the log-variance of both latent channels
    save_file(tensors, file)
    mean_NDHW = Latents.load(directory, CPU).encode(images_NCHW).float()[:, :2]
    scaled = {"scaling_factor": 1 / float(mean_NDHW.std()), "shift_factor": float(mean_NDHW.mean())}
    config.write_text(json.dumps(json.loads(config.read_text()) | scaled))


def test_it_forgets_one_of_four_patterns_in_forty_iterations(tmp_path: Path) -> None:
    images, labels = striped(32)
    images_NCHW, labels_N = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels)
    write_model(tmp_path / "raw")
    sharpen(tmp_path / "raw", images_NCHW)
    family = DiT.load(tmp_path / "raw", labels=NAMES, device=CPU)
    learn(family, images_NCHW, labels_N, steps=400, rate=1e-2)
    job = JobDirectory(tmp_path / "job")
    write_data(job, images_NCHW, labels_N)
    family.save(job.base, tmp_path / "raw")

    result = unlearn(job, NAMES, iterations=40, batch_size=32, learning_rate=1e-3, alpha_forget=2.0)
    before, after = (losses(f, images_NCHW, labels_N, repeats=20) for f in (family, result))
    require_one_class_forgotten(before, after, labels_N)


# ------------------------------------------------------------------------------------------------ real scans, in minutes


def trained_autoencoder(images_NCHW: Tensor, *, steps: int) -> AutoencoderKL:
    """Pixels to a quarter as many cells of four channels, and back; with the scale and shift that make them standard."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=8,
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    x_NCHW = images_NCHW.float().div(127.5).sub(1)
    for _ in range(steps):
        x_BCHW = x_NCHW[torch.randint(len(x_NCHW), (32,))]
        posterior = vae.encode(x_BCHW).latent_dist
        error = (vae.decode(posterior.sample()).sample - x_BCHW).square().mean()
        optimizer.zero_grad()
        (error + 1e-5 * posterior.kl().mean() / x_BCHW[0].numel()).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        mean_NDHW = vae.encode(x_NCHW).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / float(mean_NDHW.std()), shift_factor=float(mean_NDHW.mean()))
    return vae


def write_digits_model(directory: Path, vae: AutoencoderKL) -> None:
    """Four layers of width 128 on 2x2 patches, adaLN-Zero."""
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    torch.manual_seed(0)
    initialise(transformer)
    first = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False)).save_pretrained(directory)


def recognised(family: DiT, judge: LogisticRegression, *, each: int = 20) -> Tensor:
    """(10,) the share of the images drawn of each digit that the judge reads as that digit."""
    y_B = torch.arange(10).repeat_interleave(each)
    images_BCHW = family.sample(y_B, list(range(len(y_B))), sampling=Sampling(steps=20, guidance_scale=2.0))
    read_B = torch.from_numpy(judge.predict(images_BCHW.flatten(1).numpy() / 255))
    return (read_B == y_B).view(10, each).float().mean(1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_forgets_how_to_draw_one_of_ten_real_digits_in_fifty_iterations(tmp_path: Path) -> None:
    digits = load_digits()
    names = tuple(map(str, range(10)))
    images_NCHW = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels_N = torch.from_numpy(digits.target.astype(np.int64))
    judge = LogisticRegression(max_iter=500, C=0.1).fit(images_NCHW.flatten(1).numpy() / 255, digits.target)
    write_digits_model(tmp_path / "raw", trained_autoencoder(images_NCHW, steps=400))
    family = DiT.load(tmp_path / "raw", labels=names, device=CPU)
    learn(family, images_NCHW, labels_N, steps=1500, rate=2e-3)
    job = JobDirectory(tmp_path / "job")
    write_data(job, images_NCHW, labels_N)
    family.save(job.base, tmp_path / "raw")

    result = unlearn(job, names, iterations=50, batch_size=48, learning_rate=5e-4, alpha_forget=1.0)
    before, after = (losses(f, images_NCHW, labels_N, repeats=2) for f in (family, result))
    require_one_class_forgotten(before, after, labels_N)

    drawn_before, drawn_after = recognised(family, judge), recognised(result, judge)
    assert bool((drawn_before >= 0.8).all())  # it could draw all ten, and the judge can read
    assert float(drawn_after[FORGOTTEN]) <= 0.1  # one in ten is what guessing gives
    retained = torch.arange(10) != FORGOTTEN
    # 180 images: three standard errors of a share of 0.95 are 0.05.
    assert float(drawn_after[retained].mean()) >= float(drawn_before[retained].mean()) - 0.05
