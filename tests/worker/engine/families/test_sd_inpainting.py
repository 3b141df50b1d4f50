"""Stable Diffusion inpainting: the pipeline's own numbers, prompts as a second path to a class, and frozen parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionInpaintPipeline
from torch import Tensor

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.sd_inpainting import SIDE, tiny_unet, write_model
from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.contract import MaskSpec, Sampling
from worker.engine import corruption, halves
from worker.engine.errors import BadInput, BadModel, Integrity
from worker.engine.families.sd_inpainting import StableDiffusionInpainting
from worker.engine.family import Draw
from worker.engine.inpainting import answer, encode

CPU = torch.device("cpu")
SHAPE = (3, SIDE, SIDE)
UNET = Path("unet/diffusion_pytorch_model.safetensors")
NONE = len(NAMES)
"""The row of the empty prompt."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "base")
    return tmp_path / "base"


def load(directory: Path, labels: tuple[str, ...] = NAMES) -> StableDiffusionInpainting:
    return StableDiffusionInpainting.load(directory, labels=labels, device=CPU)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pipeline(directory: Path) -> StableDiffusionInpaintPipeline:
    """diffusers' own, as an independent reference."""
    found = StableDiffusionInpaintPipeline.from_pretrained(directory, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def asked(family: StableDiffusionInpainting, count: int = 3, *, label_drop: float = 0.0) -> tuple[Tensor, Tensor, Draw]:
    source = torch.Generator().manual_seed(1)
    draw = family.draw(count, SHAPE, source, label_drop=label_drop)
    noise = family.noise(count, SHAPE, source, scope="image")
    assert noise is not None
    draw = Draw(draw.tensors | {"noise": noise})
    return family.prepare(family.hold(images(count)), draw), torch.arange(count), draw


def means(pipe: StableDiffusionInpaintPipeline, x_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return pipe.vae.encode(x_BCHW).latent_dist.mean * pipe.vae.config.scaling_factor


def test_taps_and_answer_are_those_of_a_full_forward_pass_of_diffusers() -> None:
    unet = tiny_unet().eval()
    source = torch.Generator().manual_seed(2)
    input_BXhw, prompt_BLE = torch.randn(3, 9, 8, 8, generator=source), torch.randn(3, 12, 16, generator=source)
    input_BXhw = input_BXhw.contiguous(memory_format=torch.channels_last)  # convolutions round as their layout is
    question = input_BXhw, torch.tensor([0, 400, 999]), prompt_BLE
    seen: list[Tensor] = []
    unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(out))
    for block in unet.down_blocks:
        block.register_forward_hook(lambda module, args, out: seen.extend(out[1]))
    unet.mid_block.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        full = unet(question[0], question[1], encoder_hidden_states=question[2]).sample
        expected = list(seen)
        taps = encode(unet, *question)
        assert torch.equal(answer(unet, *question), full)
    assert len(taps) == len(expected) == 5  # the input's; one and a halving; one; the middle
    assert all(torch.equal(a, b) for a, b in zip(taps, expected, strict=True))


# -------------------------------------------------------------------------------------------------------------- questions


def test_the_network_is_asked_as_the_pipeline_asks_it(base: Path) -> None:
    family, pipe = load(base), pipeline(base)
    x, y, draw = asked(family)
    input_BXhw, t_B, prompt = family.question(x, y, draw)
    hidden = family.hidden(draw)
    noisy = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(x[:, :4], draw["eps"], draw["t"])
    mask = corruption.pixels(hidden, 2).float()  # of pixels; the pipeline makes the cells of it
    visible = (images().float() / 127.5 - 1) * (mask < 0.5)
    latent_mask, latents = pipe.prepare_mask_latents(
        mask, means(pipe, visible), 3, SIDE, SIDE, torch.float32, CPU, None, False
    )  # fmt: skip
    assert torch.allclose(input_BXhw, torch.cat([noisy, latent_mask, latents], 1), atol=1e-5)
    assert torch.equal(t_B, draw["t"])
    conditional, _ = pipe.encode_prompt(list(NAMES[:3]), CPU, 1, False)
    assert torch.allclose(prompt, conditional, atol=1e-6)


def test_what_is_hidden_is_in_the_question_as_noise_alone(base: Path) -> None:
    family = load(base)
    held, draw = family.hold(images()), asked(family)[2]
    covered = corruption.pixels(family.hidden(draw), family.cell).expand(-1, 3, -1, -1)
    other = family.hold(torch.where(covered, 255 - images(), images()))
    one, two = (family.question(family.prepare(h, draw), torch.arange(3), draw)[0] for h in (held, other))
    assert torch.equal(one[:, 4:], two[:, 4:])
    assert not torch.equal(one[:, :4], two[:, :4])


def test_noise_in_the_hole_is_pure_and_leaves_all_other_latents(base: Path) -> None:
    family = load(base)
    x, y, draw = asked(family)
    plain, noisy = family.question(x, y, draw)[0], family.question(x, y, draw, noise_in="hole")[0]
    hidden = family.hidden(draw)[:, None].expand(-1, 4, -1, -1)
    assert torch.equal(noisy[:, 4:], plain[:, 4:])
    assert torch.equal(noisy[:, :4][hidden], draw["eps"][hidden])
    assert torch.equal(noisy[:, :4][~hidden], plain[:, :4][~hidden])


def test_noise_in_place_of_the_image_is_seen_through_the_autoencoder(base: Path) -> None:
    family = load(base)
    x, y, draw = asked(family)
    noisy = family.question(x, y, draw, noise_in="image")[0]
    visible = draw["noise"] * ~corruption.pixels(family.hidden(draw), family.cell)
    assert torch.equal(noisy[:, :4], draw["eps"])
    assert torch.equal(noisy[:, 4:5], family.question(x, y, draw)[0][:, 4:5])
    assert torch.allclose(noisy[:, 5:], means(pipeline(base), visible), atol=1e-5)


def test_dropped_labels_proxies_and_noise_have_the_empty_prompt(base: Path) -> None:
    family = load(base)
    x, y, draw = asked(family)
    empty = family._prompts(torch.full((3,), NONE))
    assert not torch.equal(family.question(x, y, draw)[2], empty)
    assert torch.equal(family.question(x, torch.full((3,), -1), draw)[2], empty)
    for scope in ("hole", "image"):
        assert torch.equal(family.question(x, y, draw, noise_in=scope)[2], empty)
    draw.tensors["drop"][:] = torch.tensor([True, False, True])
    assert torch.equal(family.question(x, y, draw)[2], family._prompts(torch.tensor([NONE, 1, NONE])))


def test_the_prompts_are_embedded_as_the_pipeline_embeds_them(base: Path) -> None:
    family = load(base, ("A photo", "a dog"))
    conditional, empty = pipeline(base).encode_prompt(["A photo", "a dog"], CPU, 1, True, [""] * 2)
    assert torch.allclose(family._prompts(torch.tensor([0, 1])), conditional, atol=1e-6)
    assert torch.allclose(family._prompts(torch.tensor([2]))[0], empty[0], atol=1e-6)
    with pytest.raises(BadInput, match="same tokens"):
        load(base, ("a dog", ""))


def test_an_image_is_held_with_its_posterior_and_comes_back_as_it_was(base: Path) -> None:
    family = load(base)
    held = family.hold(images())
    assert held.dtype == torch.uint8
    assert held.shape == (3, 3 * SIDE * SIDE + 2 * (2 * 4 * 8 * 8))  # bytes of pixels; two of each of eight channels' moments
    draw = asked(family)[2]
    x = family.prepare(held[1:2], draw.part(slice(1, 2)))
    pixels = torch.nn.functional.pixel_shuffle(x[:, 4:], family.cell)
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), images()[1:2])
    posterior = family.latents.encode(images())
    assert torch.equal(x[:, :4], family.latents.prepare(posterior[1:2], draw.part(slice(1, 2))))


def test_the_loss_is_the_squared_error_in_the_hole(base: Path) -> None:
    family = load(base)
    x, y, draw = asked(family)
    input_BXhw, t_B, prompt = family.question(x, y, draw)
    predicted = pipeline(base).unet.eval()(input_BXhw, t_B, encoder_hidden_states=prompt).sample
    error = (predicted - draw["eps"]).square().mean(1) * family.hidden(draw)
    assert torch.allclose(family.loss(x, y, draw), error.sum((1, 2)) / 16, rtol=1e-4)  # 4x4 of 8x8 latent cells


def test_the_loss_to_noise_keeps_the_prompt(base: Path) -> None:
    family = load(base)
    x, y, draw = asked(family)
    loss = family.loss_to_noise(x, y, draw)
    assert not torch.allclose(loss, family.loss_to_noise(x, torch.full((3,), -1), draw))
    input_BXhw, t_B, _ = family.question(x, y, draw, noise_in="hole")
    error = (answer(family.module.network, input_BXhw, t_B, family._prompts(y)) - draw["eps"]).square().mean(1)
    assert torch.allclose(loss, (error * family.hidden(draw)).sum((1, 2)) / 16, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- completing


@pytest.mark.parametrize("label", [2, None], ids=["guided by a prompt", "without a prompt"])
def test_a_hole_is_filled_as_by_the_pipeline(label: int | None, base: Path) -> None:
    family, pipe = load(base), pipeline(base)
    given = images(1)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0])
    y_B = None if label is None else torch.tensor([label])
    came = family.complete(given, hidden, [5], sampling=Sampling(steps=4, guidance_scale=3.0), y_B=y_B)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    mask, image = corruption.pixels(hidden, 2).float(), given / 127.5 - 1
    arguments: dict[str, Any] = {
        "image": image, "mask_image": mask, "masked_image_latents": means(pipe, image * (mask < 0.5)),
        "latents": torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))[None],
        "height": SIDE, "width": SIDE, "num_inference_steps": 4, "strength": 1.0, "output_type": "np",
    }  # fmt: skip
    guided = {"prompt": "", "guidance_scale": 1.0} if label is None else {"prompt": NAMES[label], "guidance_scale": 3.0}
    expected = torch.from_numpy(np.round(pipe(**arguments, **guided).images * 255)).permute(0, 3, 1, 2).int()
    inside = mask.bool().expand_as(given)
    assert int((came.int() - expected)[inside].abs().max()) <= 1
    assert len(came[inside].unique()) > 20  # a picture, not one grey that anything would agree with
    assert torch.equal(came[~inside], given[~inside])


def test_a_class_is_asked_for_by_its_prompt_and_minus_one_without(base: Path) -> None:
    family, sampling = load(base), Sampling(steps=3, guidance_scale=2.0)
    given = images(1)
    hidden = corruption.masks(MaskSpec(kind="box", ratio=0.25), family.grid, [0])

    def completed(*labels: int) -> Tensor:
        y_B = torch.tensor(labels) if labels else None
        return family.complete(given, hidden, [1], sampling=sampling, y_B=y_B)

    assert not torch.equal(completed(0), completed(1))
    assert int((completed(-1).int() - completed().int()).abs().max()) <= 1
    with pytest.raises(BadInput, match="expected labels 0 to 3, or -1 for none, found \\[4\\]"):
        completed(4)


def test_a_cell_is_a_latent_cell(base: Path) -> None:
    family = load(base)
    assert (family.cell, family.grid) == (2, (8, 8))
    with pytest.raises(BadInput, match=r"expected masks bool \(B, 8, 8\)"):
        family.complete(images(1), torch.zeros(1, 16, 16, dtype=torch.bool), [1], sampling=Sampling(steps=2))


# ----------------------------------------------------------------------------------------------------------- frozen parts


def job_method(root: Path, **params: object) -> Any:
    params = params_of("encoder_l2", "sd_inpainting") | params
    return begin(make_job(root, family="sd_inpainting", method="encoder_l2", params=params))


def test_training_changes_the_encoder_s_bytes_and_no_others(tmp_path: Path) -> None:
    method = job_method(tmp_path / "job")
    family, folder = method.run.family, tmp_path / "job/base"
    before = halves.digests(family)
    assert {"vae", "prompts"} <= {name.split("/")[0] for name in before}
    method.step(0)
    halves.require_unchanged(family, before)
    family.save(tmp_path / "out", folder)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert [p for p in files if (folder / p).read_bytes() != (tmp_path / "out" / p).read_bytes()] == [UNET]


@pytest.mark.parametrize("companion", ["vae", "prompts"])
def test_a_companion_that_was_changed_is_an_integrity_error(companion: str, base: Path) -> None:
    family = load(base)
    before = halves.digests(family)
    with torch.no_grad():
        next(family.companions[companion].parameters()).add_(1)
    with pytest.raises(Integrity, match=f"the first of them {companion}/"):
        halves.require_unchanged(family, before)


def test_both_the_prompt_and_the_empty_one_are_trained_on(tmp_path: Path) -> None:
    lesson = job_method(tmp_path).lesson
    drops = torch.cat([lesson.forget_batch(i).draw["drop"] for i in range(40)]).float()
    # Binomial(320, 0.5): standard deviation 0.028; five of them.
    assert float(drops.mean()) == pytest.approx(0.5, abs=0.14)


# ----------------------------------------------------------------------------------------------------------------- folder


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "expected a StableDiffusionInpaintPipeline, found"),
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "two text encoders are not supported"),
        ("unet/config.json", {"in_channels": 4}, "expected 9 channels in and 4 out, by the autoencoder's latents, found 4 and"),
        ("unet/config.json", {"cross_attention_dim": 24}, "expected cross_attention_dim = 16.* found 24"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ("unet/config.json", {"encoder_hid_dim": 16}, "encoder_hid_dim = 16"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type 'positional', found 'fourier'"),
        ("unet/config.json", {"sample_size": None}, "sample_size to be one whole number"),
        ("unet/config.json", {"down_block_types": ["NoSuchBlock"]}, "cannot build"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("vae/config.json", {"_class_name": "AsymmetricAutoencoderKL"}, "expected a diffusers AutoencoderKL"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_name(base: Path, file: str, changes: dict[str, object], sentence: str) -> None:
    edit_json(base / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(base)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_folder_without_one_of_its_parts_is_refused(base: Path, file: str) -> None:
    (base / file).unlink()
    with pytest.raises(BadModel, match=rf"expected {file}"):
        load(base)


def test_a_pickle_is_refused_even_where_nothing_is_read(base: Path) -> None:
    (base / "safety_checker").mkdir()
    (base / "safety_checker/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadModel, match=r"safety_checker/pytorch_model\.bin"):
        load(base)


def test_augmentation_of_latents_is_refused(base: Path) -> None:
    with pytest.raises(BadInput, match="augment 'none', found 'flip'"):
        load(base).draw(1, SHAPE, torch.Generator(), label_drop=0.0, augment="flip")
