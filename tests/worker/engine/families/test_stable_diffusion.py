"""The Stable Diffusion family's own rules: prompts as the pipeline reads them, frozen parts, folder layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.stable_diffusion import SIDE, write_model
from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.contract import Sampling
from worker.engine.errors import BadInput, BadModel
from worker.engine.families.stable_diffusion import StableDiffusion
from worker.engine.methods.sfron import SFRon

CPU = torch.device("cpu")
SHAPE = (3, SIDE, SIDE)
UNET, TEXT = Path("unet/diffusion_pytorch_model.safetensors"), Path("text_encoder/model.safetensors")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "base")
    return tmp_path / "base"


def load(directory: Path, labels: tuple[str, ...] = NAMES) -> StableDiffusion:
    return StableDiffusion.load(directory, labels=labels, device=CPU)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pipeline(directory: Path) -> StableDiffusionPipeline:
    """diffusers' own, as an independent reference."""
    found = StableDiffusionPipeline.from_pretrained(directory, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def job_method(root: Path, **params: object) -> SFRon:
    method = begin(make_job(root, family="stable_diffusion", params=params_of("sfron") | params))
    assert isinstance(method, SFRon)
    return method


# ---------------------------------------------------------------------------------------------------------------- prompts


def test_the_prompts_are_embedded_as_the_pipeline_embeds_them(base: Path) -> None:
    prompts = ("A photo", "a dog", "cut 12345678901234567890")  # upper case, a space, more than the twelve tokens it reads
    family = load(base, prompts)
    conditional, empty = pipeline(base).encode_prompt(list(prompts), CPU, 1, True, [""] * 3)
    assert torch.allclose(family.prompt_KLD[:3], conditional, atol=1e-6)
    assert torch.allclose(family.prompt_KLD[3], empty[0], atol=1e-6)


def test_the_null_label_is_the_empty_prompt(base: Path) -> None:
    family = load(base)
    assert family.denoiser.null_label == family.class_count == len(NAMES)
    x, y = torch.zeros(2, 4, 8, 8), torch.tensor([0, 1])
    draw = family.draw(2, SHAPE, torch.Generator().manual_seed(1), label_drop=1.0)
    dropped = family.loss(x, y, draw)
    draw.tensors["drop"][:] = False
    assert torch.equal(dropped, family.loss(x, torch.full((2,), len(NAMES)), draw))
    assert not torch.allclose(dropped, family.loss(x, y, draw))


@pytest.mark.parametrize(
    "labels",
    [("a dog", "a cat", "A  Dog"), ("a dog", ""), ("12345678901", "123456789012"), ("dog", "dog")],
    ids=["case and spaces", "empty", "beyond the length", "repeated"],
)
def test_prompts_that_the_text_encoder_cannot_tell_apart_are_refused(base: Path, labels: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="same tokens"):
        load(base, labels)


def test_a_text_encoder_that_an_older_transformers_wrote_embeds_the_same(base: Path) -> None:
    today = load(base).prompt_KLD
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(base / TEXT).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(tensors, base / TEXT)
    assert torch.equal(load(base).prompt_KLD, today)
    tensors["text_model.embeddings.position_ids"] = torch.zeros(1, 12, dtype=torch.int64)
    save_file(tensors, base / TEXT)
    with pytest.raises(BadModel, match="positions"):
        load(base)


def test_a_text_encoder_whose_numbers_are_not_finite_is_refused(base: Path) -> None:
    tensors = load_file(base / TEXT)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, base / TEXT)
    with pytest.raises(BadModel, match="finite"):
        load(base)
    (base / TEXT).write_bytes(b"no tensors")
    with pytest.raises(BadModel, match="not a readable safetensors"):
        load(base)


def test_a_tokenizer_that_does_not_fit_the_text_encoder_is_refused(base: Path) -> None:
    vocabulary = json.loads((base / "tokenizer/vocab.json").read_text())
    (base / "tokenizer/vocab.json").write_text(json.dumps(vocabulary | {"surplus": len(vocabulary)}))
    with pytest.raises(BadModel, match=f"at most {len(vocabulary)} tokens.* found {len(vocabulary) + 1}"):
        load(base)
    (base / "tokenizer/vocab.json").write_text("{")
    with pytest.raises(BadModel, match="cannot read the tokenizer"):
        load(base)
    (base / "tokenizer/vocab.json").unlink()
    with pytest.raises(BadModel, match=r"expected vocab\.json or tokenizer\.json"):
        load(base)


# ----------------------------------------------------------------------------------------------------- noise and guidance


def test_the_loss_is_the_squared_error_of_the_noise_that_the_scheduler_adds(base: Path) -> None:
    family = load(base)
    draw = family.draw(3, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0)
    x, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 2])
    pipe = pipeline(base)
    noisy = DDPMScheduler.from_config(pipe.scheduler.config).add_noise(x, draw["eps"], draw["t"])
    conditional, _ = pipe.encode_prompt(list(NAMES[:3]), CPU, 1, False)
    expected = (pipe.unet(noisy, draw["t"], encoder_hidden_states=conditional).sample - draw["eps"]).square().mean((1, 2, 3))
    assert torch.allclose(family.loss(x, y, draw), expected, rtol=1e-4)


def test_a_velocity_model_is_asked_for_the_velocity(base: Path) -> None:
    edit_json(base / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    family = load(base)
    draw = family.draw(2, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0)
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    reference = DDPMScheduler.from_config(pipeline(base).scheduler.config)
    noisy, target = reference.add_noise(x, draw["eps"], draw["t"]), reference.get_velocity(x, draw["eps"], draw["t"])
    answer = family.module(noisy, draw["t"], encoder_hidden_states=family.prompt_KLD[y]).sample
    assert torch.allclose(family.loss(x, y, draw), (answer - target).square().mean((1, 2, 3)), rtol=1e-4)


def test_a_guided_sample_is_the_pipeline_s(base: Path) -> None:
    came = load(base).sample(torch.tensor([2]), [5], sampling=Sampling(steps=4, guidance_scale=3.0))
    pipe = pipeline(base)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    start = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))[None]
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np", "latents": start}
    expected = torch.from_numpy(np.round(pipe(NAMES[2], **arguments).images * 255)).permute(0, 3, 1, 2).int()
    assert came.shape == (1, *SHAPE)
    assert int((came.int() - expected).abs().max()) <= 1
    assert len(came.unique()) > 50  # a picture, not one grey that anything would agree with


def test_latents_are_never_clipped_whatever_the_folder_leaves_out(base: Path) -> None:
    # Public folders have a PNDM schedule, which has no such key, and diffusers' default for DDIM is to clip.
    assert "clip_sample" not in json.loads((base / "scheduler/scheduler_config.json").read_text())
    config = load(base).denoiser.schedule.config
    assert (config.clip_sample, config.thresholding, config.steps_offset) == (False, False, 1)
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")


def test_more_steps_than_the_schedule_has_are_refused(base: Path) -> None:
    # With an offset of 1, a thousand steps of a thousand would end at timestep 1000, which is none.
    with pytest.raises(BadInput, match="timestep 1000"):
        load(base).sample(torch.tensor([0]), [1], sampling=Sampling(steps=1000))


# ------------------------------------------------------------------------------------------------------------ frozen parts


def test_images_are_encoded_once_and_prompts_before_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load(base)
    held = family.hold(torch.zeros(4, *SHAPE, dtype=torch.uint8))
    assert held.shape == (4, 8, 8, 8)  # mean and log-variance of four channels
    monkeypatch.setattr(family.latents.vae, "encode", lambda _: pytest.fail("encoded again"))
    draw = family.draw(4, SHAPE, torch.Generator().manual_seed(1), label_drop=0.0)
    family.loss(family.prepare(held, draw), torch.tensor([0, 1, 2, 3]), draw)
    assert not any("text" in name for name in vars(family))  # the text encoder is let go
    assert {id(p) for p in family.module.parameters()}.isdisjoint({id(p) for p in family.latents.vae.parameters()})


def test_training_changes_the_unet_s_bytes_and_no_others(tmp_path: Path) -> None:
    method = job_method(tmp_path / "job")
    family, job_base = method.run.family, tmp_path / "job/base"
    (job_base / "safety_checker").mkdir()
    (job_base / "safety_checker/model.safetensors").write_bytes(b"not read, so it need not be readable")
    method.step(0)
    family.save(tmp_path / "out", job_base)
    files = sorted(p.relative_to(job_base) for p in job_base.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    changed = [p for p in files if (job_base / p).read_bytes() != (tmp_path / "out" / p).read_bytes()]
    assert changed == [UNET]


# -------------------------------------------------------------------------------------------------------------- unlearning


def test_the_saliency_mask_keeps_masked_out_weights_bit_identical_in_a_forget_step(tmp_path: Path) -> None:
    method = job_method(tmp_path, optimizer="dual")
    method.step(0)  # the remain optimizer has momentum now
    before = [p.detach().clone() for p in method.run.parameters]
    method.forget_step(1)
    after = [p.detach() for p in method.run.parameters]
    assert all(torch.equal(b[~m], a[~m]) for b, a, m in zip(before, after, method.mask, strict=True))
    assert any(not torch.equal(b[m], a[m]) for b, a, m in zip(before, after, method.mask, strict=True))
    assert any(bool((~m).any()) for m in method.mask)


def test_relabelling_moves_a_prompt_s_answer_towards_the_next_retained_prompt_s(tmp_path: Path) -> None:
    method = job_method(tmp_path, gamma=0.0, learning_rate=1e-3, alpha_decay="constant", temperature=0.0)
    run = method.run
    batch = run.batch(run.forget, 99, 16)
    assert method.anchor_K[batch.y_B].tolist() == [2] * 16  # 1 is forgotten, 2 is retained

    def apart() -> float:
        arguments = (batch.x_BCHW, batch.y_B, method.anchor_K[batch.y_B], batch.draw)
        return float(run.family.contrast(*arguments)[1].mean().detach())

    before = apart()
    for i in range(10):
        method.forget_step(i)
    assert apart() < 0.5 * before


# ------------------------------------------------------------------------------------------------------------------ folder


def test_weights_under_an_fp16_name_are_read_and_written_under_it(base: Path, tmp_path: Path) -> None:
    for file in (UNET, TEXT):
        (base / file).rename((base / file).with_suffix(".fp16.safetensors"))
    family = load(base)
    family.save(tmp_path / "out", base)
    assert (tmp_path / "out" / UNET).with_suffix(".fp16.safetensors").is_file()
    assert not (tmp_path / "out" / UNET).exists()
    load(tmp_path / "out")


@pytest.mark.parametrize(
    "surplus",
    [UNET.with_suffix(".fp16.safetensors"), TEXT.with_suffix(".fp16.safetensors"), Path("v1-5-pruned.safetensors")],
    ids=["unet", "text encoder", "whole checkpoint"],
)
def test_a_second_set_of_weights_is_refused_wherever_it_is(base: Path, surplus: Path) -> None:
    (base / surplus).write_bytes((base / UNET).read_bytes())
    with pytest.raises(BadModel, match=r"\.safetensors file"):
        load(base)


def test_a_pickle_is_refused_even_where_nothing_is_read(base: Path) -> None:
    (base / "safety_checker").mkdir()
    (base / "safety_checker/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadModel, match=r"safety_checker/pytorch_model\.bin"):
        load(base)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline'; its two text encoders"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "found 'StableDiffusionInpaintPipeline'"),
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "expected a diffusers UNet2DConditionModel"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim = 8"),
        ("unet/config.json", {"cross_attention_dim": 24}, "expected cross_attention_dim = 16.* found 24"),
        ("unet/config.json", {"in_channels": 9}, "expected 4 channels .* found 9 and 4"),
        ("unet/config.json", {"down_block_types": ["NoSuchBlock"]}, "cannot build"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("text_encoder/config.json", {"model_type": "t5"}, "clip_text_model"),
        ("text_encoder/config.json", {"hidden_size": "many"}, "cannot build this text encoder"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_name(base: Path, file: str, changes: dict[str, object], sentence: str) -> None:
    edit_json(base / file, **changes)
    with pytest.raises(BadModel, match=sentence):
        load(base)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_folder_without_one_of_its_parts_is_refused(base: Path, file: str) -> None:
    (base / file).unlink()
    with pytest.raises(BadModel, match=rf"expected {file}"):
        load(base)


def test_noise_is_like_latents(base: Path) -> None:
    noise = load(base).noise(500, SHAPE, torch.Generator().manual_seed(1))
    assert noise.shape == (500, 4, 8, 8)
    # 128,000 standard normals: the mean's deviation is 0.0028, the deviation's 0.002; five of each.
    assert float(noise.mean()) == pytest.approx(0, abs=0.014)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_a_kernel_that_the_text_encoder_s_configuration_names_is_not_fetched(base: Path) -> None:
    edit_json(base / "text_encoder/config.json", _attn_implementation="kernels-community/flash", num_labels=5000)
    assert load(base).class_count == len(NAMES)
