"""Inpainting diffusion: diffusers' own numbers, on given masks; what is asked, what is answered, and what is put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.i2i_diffusion import SIDE, tiny_unet, write_model
from worker.contract import MaskSpec, Sampling
from worker.engine import corruption
from worker.engine.errors import BadInput, BadModel
from worker.engine.families.i2i_diffusion import I2IDiffusion
from worker.engine.family import Draw
from worker.engine.inpainting import answer, encode

CPU = torch.device("cpu")
LABELS = torch.zeros(3, dtype=torch.int64)

PALETTE: dict[str, Any] = {
    "sample_size": 16,
    "layers_per_block": 2,
    "block_out_channels": (8, 8, 8, 16),
    "down_block_types": ("ResnetDownsampleBlock2D",) * 4,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 4,
    "attention_head_dim": 4,
    "add_attention": True,
    "resnet_time_scale_shift": "scale_shift",
}
"""Palette's network in diffusers' terms, but for its widths."""

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "palette": PALETTE,
    "attention": {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "no middle": {"mid_block_type": None},
    "centred": {"center_input_sample": True},
}  # fmt: skip


def load(folder: Path) -> I2IDiffusion:
    return I2IDiffusion.load(folder, labels=NAMES, device=CPU)


def family_of(root: Path, **changes: Any) -> I2IDiffusion:
    write_model(root / "base", tiny_unet(**changes))
    return load(root / "base")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def inputs(family: I2IDiffusion, count: int = 3) -> Tensor:
    return torch.rand(count, *family._shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


def drawn(family: I2IDiffusion, count: int = 3) -> Draw:
    source = torch.Generator().manual_seed(1)
    draw = family.draw(count, family._shape, source, label_drop=0.0)
    noise = family.noise(count, family._shape, source, scope="image")
    assert noise is not None
    return Draw(draw.tensors | {"noise": noise})


def reference(folder: Path) -> UNet2DModel:
    """As diffusers loads it."""
    return UNet2DModel.from_pretrained(folder, local_files_only=True).eval()


# ------------------------------------------------------------------------------------------------------------ the halves


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_taps_and_answer_are_those_of_a_full_forward_pass_of_diffusers(network: dict[str, Any]) -> None:
    unet = tiny_unet(**network).eval()
    side = unet.config.sample_size
    source = torch.Generator().manual_seed(2)
    input_BCHW, t_B = torch.randn(3, 2, side, side, generator=source), torch.tensor([0, 400, 999])
    input_BCHW = input_BCHW.contiguous(memory_format=torch.channels_last)  # convolutions round as their layout is
    seen: list[Tensor] = []
    unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(out))
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, out: seen.extend(out[1]))
    if unet.mid_block is not None:
        unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        full = unet(input_BCHW, t_B).sample
        expected = list(seen)
        taps = encode(unet, input_BCHW, t_B)
        assert torch.equal(answer(unet, input_BCHW, t_B), full)
    assert len(taps) == len(expected) > 2
    assert all(torch.equal(a, b) for a, b in zip(taps, expected, strict=True))


def test_the_taps_of_palette_s_network_are_thirteen(tmp_path: Path) -> None:
    family = family_of(tmp_path, **PALETTE)
    taps = family.encode(family.question(inputs(family), LABELS, drawn(family)))
    # The input's; two blocks and a halving at each of three resolutions; two blocks at the last; the middle.
    assert [t.shape[-1] for t in taps] == [16, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 2]


def test_the_embedding_of_time_is_trained_only_as_the_published_code_does(tmp_path: Path) -> None:
    module = family_of(tmp_path).module

    def trained() -> set[str]:
        return {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}

    assert trained() == {"conv_in", "down_blocks", "mid_block"}
    module.choose("release")
    assert trained() == {"conv_in", "down_blocks", "mid_block", "time_embedding"}


def test_dropout_of_the_configuration_is_off(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    draw, x = drawn(family), inputs(family)
    assert torch.equal(family.loss(x, LABELS, draw), family.loss(x, LABELS, draw))


# -------------------------------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize("channels", [1, 3])
def test_the_condition_comes_first_and_the_hole_is_noisy_in_both(channels: int, tmp_path: Path) -> None:
    family = family_of(tmp_path, channels=channels)
    x, draw = inputs(family), drawn(family)
    asked, t_B = family.question(x, LABELS, draw)
    hidden = family.hidden(draw)[:, None].expand_as(x)
    condition, y = asked[:, :channels], asked[:, channels:]
    noisy = DDPMScheduler().add_noise(x, draw["eps"], draw["t"])  # diffusers' own, as an independent reference
    assert torch.equal(t_B, draw["t"])
    assert torch.equal(condition, torch.where(hidden, draw["fill"], x))
    assert torch.allclose(y, torch.where(hidden, noisy, x), atol=1e-6)
    assert not torch.equal(draw["fill"], draw["eps"])


def test_a_quarter_of_every_image_is_hidden(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    hidden = family.hidden(drawn(family, 8))
    assert hidden.flatten(1).sum(1).tolist() == [16] * 8  # 4x4 of 8x8
    assert len({tuple(h.flatten().tolist()) for h in hidden}) > 1


def test_noise_in_the_hole_is_pure_and_leaves_all_else(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    x, draw = inputs(family), drawn(family)
    (plain, t), (noisy, t_noisy) = family.question(x, LABELS, draw), family.question(x, LABELS, draw, noise_in="hole")
    hidden = family.hidden(draw)
    assert torch.equal(t, t_noisy)
    assert torch.equal(noisy[:, 0], plain[:, 0])
    assert torch.equal(noisy[:, 1][hidden], draw["eps"][:, 0][hidden])
    assert torch.equal(noisy[:, 1][~hidden], x[:, 0][~hidden])
    assert family.noise(3, family._shape, torch.Generator(), scope="hole") is None  # the draw has it anyhow


def test_noise_in_place_of_the_image_is_hidden_and_made_noisy_like_one(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    x, draw = inputs(family), drawn(family)
    noisy = family.question(x, LABELS, draw, noise_in="image")
    assert all(torch.equal(a, b) for a, b in zip(noisy, family.question(draw["noise"], LABELS, draw), strict=True))


# ----------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_squared_error_in_the_hole(prediction: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / "scheduler_config.json", prediction_type=prediction)
    family = load(tmp_path)
    x, draw = inputs(family), drawn(family)
    asked, t_B = family.question(x, LABELS, draw)
    target = draw["eps"] if prediction == "epsilon" else DDPMScheduler().get_velocity(x, draw["eps"], t_B)
    hidden = family.hidden(draw)[:, None]
    error = (reference(tmp_path)(asked, t_B).sample - target).square() * hidden
    assert torch.allclose(family.loss(x, LABELS, draw), error.sum((1, 2, 3)) / 16, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_to_noise_has_pure_noise_in_the_hole_for_input_and_truth(prediction: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / "scheduler_config.json", prediction_type=prediction)
    family = load(tmp_path)
    x, draw = inputs(family), drawn(family)
    asked, t_B = family.question(x, LABELS, draw, noise_in="hole")
    target = draw["eps"]
    if prediction == "v_prediction":
        abar = DDPMScheduler().alphas_cumprod[t_B].view(-1, 1, 1, 1)
        clean = draw["eps"] * (1 - (1 - abar).sqrt()) / abar.sqrt()  # whose x_t is eps
        assert torch.allclose(DDPMScheduler().add_noise(clean, draw["eps"], t_B), draw["eps"], atol=1e-4)
        target = DDPMScheduler().get_velocity(clean, draw["eps"], t_B)
    error = (reference(tmp_path)(asked, t_B).sample - target).square() * family.hidden(draw)[:, None]
    assert torch.allclose(family.loss_to_noise(x, LABELS, draw), error.sum((1, 2, 3)) / 16, rtol=1e-3)


def test_a_teacher_may_be_asked_about_other_images_in_the_same_holes(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    x, draw = inputs(family), drawn(family)
    other = x.flip(0)
    apart = family.distance(x, LABELS, draw, teacher=family.module, instead=(other, LABELS))
    asked, t_B = family.question(x, LABELS, draw)
    there, _ = family.question(other, LABELS, draw)
    unet = reference(tmp_path / "base")
    error = (unet(asked, t_B).sample - unet(there, t_B).sample).square() * family.hidden(draw)[:, None]
    assert torch.allclose(apart, error.sum((1, 2, 3)) / 16, rtol=1e-3)
    assert float(apart[0].detach()) > 0


# ------------------------------------------------------------------------------------------------------------- completing


def test_a_hole_is_filled_as_by_a_plain_sampler_that_puts_known_pixels_back(tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    # An untrained network takes little away: under the usual schedule every pixel would end black or white.
    edit_json(tmp_path / "base/scheduler_config.json", beta_start=1e-5, beta_end=1e-4)
    family = load(tmp_path / "base")
    images = torch.randint(0, 256, (1, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0])
    came = family.complete(images, hidden, [5], sampling=Sampling(steps=4))
    known, mask = images / 127.5 - 1, hidden[:, None]
    start, fill = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))[:, None]
    condition, y = torch.where(mask, fill, known), torch.where(mask, start, known)
    scheduler = DDIMScheduler.from_config(DDPMScheduler(beta_start=1e-5, beta_end=1e-4).config)
    unet = reference(tmp_path / "base")
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = unet(torch.cat([condition, y], 1), t).sample
            y = torch.where(mask, scheduler.step(predicted, t, y, use_clipped_model_output=True).prev_sample, known)
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(came, torch.where(mask, expected, images))
    assert len(came[mask].unique()) > 4  # a picture, not one grey


def test_the_network_sees_known_pixels_at_every_step(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    images = torch.randint(0, 256, (2, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    hidden = corruption.masks(MaskSpec(kind="brush", ratio=0.3), family.grid, [0, 1])
    seen: list[Tensor] = []
    forward = family.module._answer

    def watch(network: Any, asked: Tensor, t: Tensor) -> Tensor:
        seen.append(asked)
        return forward(network, asked, t)

    family.module._answer = watch
    family.complete(images, hidden, [1, 2], sampling=Sampling(sampler="dpm++", steps=5))
    known, visible = (images / 127.5 - 1)[:, 0], ~hidden
    assert len(seen) == 5
    for asked in seen:
        assert all(torch.allclose(asked[:, c][visible], known[visible]) for c in (0, 1))


def test_both_samplers_complete(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    images = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.uint8)
    hidden = corruption.masks(MaskSpec(kind="box", ratio=0.25), family.grid, [0, 1])
    both = [family.complete(images, hidden, [1, 2], sampling=Sampling(sampler=s, steps=4)) for s in ("ddim", "dpm++")]
    assert not torch.equal(*both)
    other = family.complete(images, hidden, [3, 2], sampling=Sampling(steps=4))
    assert not torch.equal(other[0], both[0][0])  # another seed
    assert torch.equal(other[1], both[0][1])


def test_completing_refuses_more_steps_than_the_schedule_has_and_labels_that_are_not_one_an_image(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    images = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0])
    edit_json(tmp_path / "base/scheduler_config.json", num_train_timesteps=10)
    with pytest.raises(BadInput, match="at most 10 sampler steps, found 11"):
        load(tmp_path / "base").complete(images, hidden, [1], sampling=Sampling(steps=11))
    with pytest.raises(BadInput, match="1 images, 1 masks, 1 seeds, 2 labels"):
        family.complete(images, hidden, [1], sampling=Sampling(steps=2), y_B=torch.zeros(2, dtype=torch.int64))


# ----------------------------------------------------------------------------------------------------------------- folder


def test_an_image_is_mirrored_where_the_draw_says_so(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    held = family.hold(torch.arange(2 * SIDE * SIDE, dtype=torch.uint8).view(2, 1, SIDE, SIDE))
    x = family.prepare(held, Draw({"flip": torch.tensor([False, True])}))
    plain = family.prepare(held, Draw({}))
    assert torch.equal(x[0], plain[0])
    assert torch.equal(x[1], plain[1].flip(-1))
    assert "flip" in family.draw(1, (1, SIDE, SIDE), torch.Generator(), label_drop=0.0, augment="flip").tensors


def test_a_pipeline_folder_is_read_and_written_with_its_layout(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_unet().save_pretrained(base / "unet")
    DDPMScheduler(num_train_timesteps=50).save_pretrained(base / "scheduler")
    family = load(base)
    assert len(family.schedule.alphas_cumprod) == 50
    family.save(tmp_path / "out", base)
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {
        "scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    load(tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "expected a diffusers UNet2DModel"),
        ("config.json", {"in_channels": 1}, "in_channels twice out_channels, a condition and an image, found 1 and 1"),
        ("config.json", {"out_channels": None}, "found 2 and None"),
        ("config.json", {"num_class_embeds": 4}, "not told a class, found num_class_embeds = 4"),
        ("config.json", {"class_embed_type": "timestep"}, "found class_embed_type = 'timestep'"),
        ("config.json", {"time_embedding_type": "fourier"}, "time_embedding_type 'positional', found 'fourier'"),
        ("config.json", {"sample_size": None}, "sample_size to be one whole number, or a height and a width, found None"),
        ("config.json", {"sample_size": 9}, "sides that are multiples of 2, as the network halves them, found 9x9"),
        ("config.json", {"down_block_types": ["SkipDownBlock2D"] * 2, "norm_num_groups": 2}, "found SkipDownBlock2D"),
        ("config.json", {"down_block_types": ["NoSuchBlock", "DownBlock2D"]}, "cannot build this configuration: ValueError"),
        ("config.json", {"norm_num_groups": 0}, "cannot build this configuration"),
        ("scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("scheduler_config.json", {"beta_schedule": "none"}, "cannot build this noise schedule"),
    ],
)
def test_a_folder_that_cannot_fill_holes_is_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, object], sentence: str
) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadModel, match=r"expected config\.json or unet/config\.json"):
        load(tmp_path)


def test_an_image_too_small_for_a_hole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hides some of 1x1 cells"):
        family_of(tmp_path, sample_size=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
                  block_out_channels=(8,))  # fmt: skip
