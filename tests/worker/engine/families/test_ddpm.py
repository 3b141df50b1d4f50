"""The DDPM family's own rules: the loss as the papers write it, guidance, the null label, folder layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.ddpm import SIDE, tiny_unet, write_model
from worker.contract import Sampling
from worker.engine.errors import BadInput, BadModel
from worker.engine.families.ddpm import DDPM
from worker.engine.family import Draw

CPU = torch.device("cpu")
SHAPE = (1, SIDE, SIDE)


def load(directory: Path) -> DDPM:
    return DDPM.load(directory, labels=NAMES, device=CPU)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pixels_span_minus_one_to_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    held = family.hold(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, *SHAPE))
    assert family.prepare(held, Draw({}))[:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_an_image_is_mirrored_where_the_draw_says_so(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    held = family.hold(torch.arange(2 * SIDE * SIDE, dtype=torch.uint8).view(2, *SHAPE))
    x = family.prepare(held, Draw({"flip": torch.tensor([False, True])}))
    plain = family.prepare(held, Draw({}))
    assert torch.equal(x[0], plain[0])
    assert torch.equal(x[1], plain[1].flip(-1))
    flips = family.draw(10_000, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0, augment="flip")["flip"]
    # Binomial(10,000, 0.5): standard deviation 0.005; five of them.
    assert float(flips.float().mean()) == pytest.approx(0.5, abs=0.025)


def test_the_loss_is_the_squared_error_of_the_noise_that_the_scheduler_adds(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    x, y = torch.rand(3, *SHAPE) * 2 - 1, torch.tensor([0, 1, 2])
    draw = family.draw(3, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0)
    noisy = DDPMScheduler().add_noise(x, draw["eps"], draw["t"])  # diffusers' own, as an independent reference
    unet = UNet2DModel.from_pretrained(tmp_path, local_files_only=True).eval()
    expected = (unet(noisy, draw["t"], class_labels=y).sample - draw["eps"]).square().mean((1, 2, 3))
    assert torch.allclose(family.loss(x, y, draw), expected, rtol=1e-5)


def test_a_velocity_model_is_asked_for_the_velocity(tmp_path: Path) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / "scheduler_config.json", prediction_type="v_prediction")
    family = load(tmp_path)
    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 1])
    draw = family.draw(2, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0)
    noisy = DDPMScheduler().add_noise(x, draw["eps"], draw["t"])
    target = DDPMScheduler().get_velocity(x, draw["eps"], draw["t"])
    expected = (family.module(noisy, draw["t"], class_labels=y).sample - target).square().mean((1, 2, 3))
    assert torch.allclose(family.loss(x, y, draw), expected, rtol=1e-5)


def test_a_dropped_label_is_the_null_label(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    x = torch.zeros(2, *SHAPE)
    draw = family.draw(2, SHAPE, torch.Generator().manual_seed(1), label_drop=1.0)
    dropped = family.loss(x, torch.tensor([0, 1]), draw)
    draw.tensors["drop"][:] = False
    assert torch.equal(dropped, family.loss(x, torch.full((2,), len(NAMES)), draw))


def test_label_drop_happens_at_its_rate(tmp_path: Path) -> None:
    write_model(tmp_path)
    drop = load(tmp_path).draw(10_000, SHAPE, torch.Generator().manual_seed(1), label_drop=0.1)["drop"]
    # Binomial(10,000, 0.1): standard deviation 0.003; five of them.
    assert float(drop.float().mean()) == pytest.approx(0.1, abs=0.015)


def test_unguided_sampling_is_the_reference_sampler(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    came = family.sample(torch.tensor([2]), [5], sampling=Sampling(steps=4, guidance_scale=1.0))
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(5))
    scheduler = DDIMScheduler.from_config(DDPMScheduler().config)
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = family.module(x, t, class_labels=torch.tensor([2])).sample
            x = scheduler.step(predicted, t, x, use_clipped_model_output=True).prev_sample
    assert torch.equal(came, ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def test_guidance_extrapolates_from_the_null_prediction(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    x, y, null = torch.randn(2, *SHAPE), torch.tensor([0, 3]), torch.full((2,), len(NAMES))
    with torch.no_grad():
        e_class, e_null = (family.module(x, 7, class_labels=labels).sample for labels in (y, null))
        assert torch.allclose(
            family.denoiser._guided(x, torch.tensor([7, 7]), y, 3.0), e_null + 3 * (e_class - e_null), atol=1e-5
        )


def test_without_a_null_label_guidance_is_refused_and_nothing_is_dropped(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_unet(rows=len(NAMES)))
    family = load(tmp_path)
    with pytest.raises(BadInput, match="null label"):
        family.sample(torch.tensor([0]), [1], sampling=Sampling(steps=2))
    assert family.sample(torch.tensor([0]), [1], sampling=Sampling(steps=2, guidance_scale=1)).shape == (1, *SHAPE)
    draw = family.draw(2, SHAPE, torch.Generator().manual_seed(1), label_drop=1.0)
    assert bool(torch.isfinite(family.loss(torch.zeros(2, *SHAPE), torch.tensor([0, 3]), draw)).all())


def test_a_pipeline_folder_is_read_and_written_with_its_layout(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_unet().save_pretrained(base / "unet")
    DDPMScheduler().save_pretrained(base / "scheduler")
    (base / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    load(base).save(tmp_path / "out", base)
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    load(tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", {"num_class_embeds": 7}, "expected num_class_embeds = 4"),
        ("config.json", {"num_class_embeds": None}, "expected num_class_embeds = 4"),
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "expected a diffusers UNet2DModel"),
        ("config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("config.json", {"down_block_types": ["NoSuchBlock"]}, "cannot build"),
        ("scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, object], sentence: str
) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_a_network_that_knows_the_one_image_draws_it(tmp_path: Path, sampler: str) -> None:
    """Data with all its mass on one image x: the right noise is (x_t - a_t x) / s_t, and every sampler must end at x."""
    write_model(tmp_path)
    edit_json(tmp_path / "scheduler_config.json", clip_sample=False)
    denoiser = load(tmp_path).denoiser
    x = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def knows(_: torch.nn.Module, noisy: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        abar = denoiser.abar_T[t].view(-1, 1, 1, 1)
        return (noisy - abar.sqrt() * x) / (1 - abar).sqrt()

    sampling = Sampling.model_validate({"sampler": sampler, "steps": 10, "guidance_scale": 2.0})
    drawn = replace(denoiser, ask=knows).sample(torch.tensor([0, 3]), [1, 2], SHAPE, sampling=sampling)
    assert torch.allclose(drawn, x.expand(2, *SHAPE), atol=2e-3)
