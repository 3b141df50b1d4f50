"""The DiT family's own rules: one embedder, its frequencies, the variance half, guidance, folders, a frozen autoencoder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler
from safetensors.torch import load_file

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.dit import SIDE, tiny_dit, tiny_vae, write_model
from tests.worker.engine.unlearning_job import make_job, run_engine
from worker.contract import JobDirectory, Sampling
from worker.engine import checkpoint
from worker.engine.errors import BadModel
from worker.engine.families import dit
from worker.engine.families.dit import DiT
from worker.engine.family import Draw

CPU = torch.device("cpu")
SHAPE = (1, SIDE, SIDE)
LATENT = (2, SIDE // 2, SIDE // 2)
CONFIG = Path("transformer/config.json")
FILE = Path("transformer/diffusion_pytorch_model.safetensors")
EMBEDDER = ".norm1.emb."


def load(directory: Path, labels: tuple[str, ...] = NAMES) -> DiT:
    return DiT.load(directory, labels=labels, device=CPU)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def questions(family: DiT, count: int, *, label_drop: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, Draw]:
    """Latents, labels, and the draw of an image each."""
    draw = family.draw(count, SHAPE, torch.Generator().manual_seed(1), label_drop=label_drop)
    x = torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(count) % len(NAMES), draw


def answer_of(transformer: DiTTransformer2DModel, x: torch.Tensor, y: torch.Tensor, draw: Draw) -> torch.Tensor:
    """What diffusers' own model says to the noisy latents."""
    noisy = DDPMScheduler().add_noise(x, draw["eps"], draw["t"])
    answer: torch.Tensor = transformer.eval()(noisy, timestep=draw["t"], class_labels=y).sample
    return answer


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """The tensors of the embedder, by name, one a block."""
    found: dict[str, list[torch.Tensor]] = {}
    for name in sorted(n for n in tensors if EMBEDDER in n):
        found.setdefault(name.partition(EMBEDDER)[2], []).append(tensors[name])
    return found


# ------------------------------------------------------------------------------------------------------- one embedder


def test_the_blocks_share_one_embedder_which_counts_once(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_dit(layers=3))
    ours, theirs = load(tmp_path).module, tiny_dit(layers=3)
    one_embedder = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    untied = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == untied - 2 * one_embedder
    assert not [name for name, _ in ours.named_parameters() if EMBEDDER in name and not name.startswith("transformer_blocks.0")]


def test_the_gradient_of_the_shared_embedder_is_the_sum_over_the_copies(tmp_path: Path) -> None:
    write_model(tmp_path)
    family, untied = load(tmp_path), tiny_dit()
    x, y, draw = questions(family, 4)
    family.loss(x, y, draw).mean().backward()
    (answer_of(untied, x, y, draw)[:, :2] - draw["eps"]).square().mean().backward()
    gradients = {name: p.grad for name, p in untied.named_parameters() if p.grad is not None}
    ours = dict(family.module.named_parameters())
    summed = copies(gradients)
    assert len(summed) == 5  # two linear layers with a bias each, and the label table
    for name, parts in summed.items():
        gradient = ours[f"transformer_blocks.0{EMBEDDER}{name}"].grad
        assert gradient is not None
        assert len(parts) == 2
        assert torch.allclose(gradient, parts[0] + parts[1], rtol=1e-3, atol=1e-7)
        assert not torch.allclose(gradient, parts[0], rtol=1e-1, atol=1e-7)  # one copy's alone is another


def test_a_fresh_network_shares_too_and_starts_at_an_answer_of_zero(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    fresh = family.fresh(1)
    assert len(list(fresh.parameters())) == len(list(family.module.parameters()))
    x, y, draw = questions(family, 2)
    assert torch.equal(dit.ask(fresh, x, draw["t"], y), torch.zeros_like(x))  # adaLN-Zero
    family.loss(x, y, draw, module=fresh).mean().backward()
    assert float(fresh.proj_out_2.weight.grad.norm()) > 0  # type: ignore[union-attr,operator] # and can leave it


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    transformer = tiny_dit()
    with torch.no_grad():
        transformer.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2.bias[3] += 1e-6
    write_model(tmp_path, transformer)
    sentence = r"expected equal copies .* in all 2 blocks, found another timestep_embedder\.linear_2\.bias in block 1"
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory: pytest.TempPathFactory) -> JobDirectory:
    """A whole run of the engine on the tiny model."""
    job = make_job(tmp_path_factory.mktemp("job"), family="dit")
    assert run_engine(job) == 0
    return job


def test_saved_every_block_has_its_equal_copy_again_under_the_base_s_names(unlearned: JobDirectory) -> None:
    before, after = load_file(unlearned.base / FILE), load_file(unlearned.out / FILE)
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    for name, tensors in copies(after).items():
        assert len(tensors) == 2
        assert torch.equal(tensors[0], tensors[1])
        assert not torch.equal(tensors[0], copies(before)[name][0])


def test_diffusers_loads_what_is_saved_and_answers_as_the_trained_network_does(unlearned: JobDirectory) -> None:
    theirs = DiTPipeline.from_pretrained(unlearned.out, local_files_only=True).transformer
    family = load(unlearned.out)
    x, y, draw = questions(family, 3)
    expected = (answer_of(theirs, x, y, draw)[:, :2] - draw["eps"]).square().mean((1, 2, 3))
    assert torch.allclose(family.loss(x, y, draw), expected, rtol=1e-5)


def test_the_autoencoder_and_all_else_keep_their_bytes(unlearned: JobDirectory) -> None:
    files = [p.relative_to(unlearned.base) for p in sorted(unlearned.base.rglob("*")) if p.is_file()]
    assert Path("vae/diffusion_pytorch_model.safetensors") in files
    for file in files:
        assert ((unlearned.base / file).read_bytes() == (unlearned.out / file).read_bytes()) is (file != FILE)


def test_the_position_table_is_no_weight(tmp_path: Path, unlearned: JobDirectory) -> None:
    family = load(unlearned.out)
    assert "pos_embed.pos_embed" in dict(family.module.named_buffers())
    assert "pos_embed.pos_embed" not in load_file(unlearned.out / FILE)
    # All that was trained is the patches' projection: the table is what the configuration gives.
    assert torch.equal(family.module.pos_embed.pos_embed, tiny_dit().pos_embed.pos_embed)  # type: ignore[union-attr]


def test_a_step_checkpoint_brings_a_shared_network_back(tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    family, other = load(tmp_path / "base"), load(tmp_path / "base")
    with torch.no_grad():
        for parameter in family.module.parameters():
            parameter.add_(0.1)
    checkpoint.save(tmp_path / "steps", 3, {"weights": family.module.state_dict()}, "key")
    other.module.load_state_dict(checkpoint.load(tmp_path / "steps", 3)["weights"])
    pairs = zip(family.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other.save(tmp_path / "out", tmp_path / "base")
    assert all(torch.equal(a, b) for a, b in copies(load_file(tmp_path / "out" / FILE)).values())


# --------------------------------------------------------------------------------------------------- labels and time


def test_labels_are_dropped_once_outside_and_never_by_the_copies(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    embedder = family.module.transformer_blocks[0].norm1.emb.class_embedder  # type: ignore[union-attr,index]
    assert embedder.dropout_prob == 0.1  # it would, in train mode
    assert not any(m.training for m in family.module.modules())
    x, y, draw = questions(family, 8, label_drop=1.0)
    kept = Draw({**draw.tensors, "drop": torch.zeros(8, dtype=torch.bool)})
    null = torch.full_like(y, len(NAMES))
    assert torch.allclose(family.loss(x, y, draw), family.loss(x, null, kept), rtol=1e-6)
    assert not torch.allclose(family.loss(x, y, draw), family.loss(x, y, kept), rtol=1e-3)
    assert torch.equal(family.loss(x, y, kept), family.loss(x, y, kept))


@pytest.mark.parametrize(
    ("t", "similarity", "rounding"), [(10, 0.9999, 5e-5), (100, 0.99, 5e-3), (500, 0.82, 5e-3), (999, 0.49, 5e-3)]
)
def test_the_two_time_embeddings_part_as_t_grows(t: int, similarity: float, rounding: float) -> None:
    meta, diffusers = (dit.time_frequencies(which)(torch.tensor([t]))[0] for which in ("meta", "diffusers"))
    assert float(torch.cosine_similarity(meta, diffusers, dim=0)) == pytest.approx(similarity, abs=rounding)


def test_meta_s_frequencies_are_i_over_128_and_cosines_come_first() -> None:
    embedded = dit.time_frequencies("meta")(torch.tensor([7]))[0]
    for i in (0, 1, 64, 127):
        angle = 7 * 10000 ** (-i / 128)
        assert float(embedded[i]) == pytest.approx(math.cos(angle), abs=1e-5)
        assert float(embedded[128 + i]) == pytest.approx(math.sin(angle), abs=1e-5)


def test_a_folder_says_whose_time_embedding_it_was_trained_with(tmp_path: Path) -> None:
    write_model(tmp_path)
    plain = load(tmp_path)
    x, y, draw = questions(plain, 3)
    assert plain.time_embedding == "diffusers"
    edit_json(tmp_path / CONFIG, time_embedding="diffusers")
    assert torch.equal(load(tmp_path).loss(x, y, draw), plain.loss(x, y, draw))
    edit_json(tmp_path / CONFIG, time_embedding="meta")
    meta = load(tmp_path)
    reference = tiny_dit()
    for block in reference.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    expected = (answer_of(reference, x, y, draw)[:, :2] - draw["eps"]).square().mean((1, 2, 3))
    assert torch.allclose(meta.loss(x, y, draw), expected, rtol=1e-5)
    assert not torch.equal(meta.loss(x, y, draw), plain.loss(x, y, draw))
    fresh = meta.fresh(0).transformer_blocks[0].norm1.emb.time_proj  # type: ignore[union-attr,index]
    assert fresh.downscale_freq_shift == 0
    edit_json(tmp_path / CONFIG, time_embedding="sinusoidal")
    with pytest.raises(BadModel, match="expected time_embedding 'meta' or 'diffusers'"):
        load(tmp_path)


def test_without_a_word_the_public_transformer_is_meta_s_and_any_other_diffusers() -> None:
    public = dict(tiny_dit().config) | dit.PUBLIC
    assert dit.time_embedding_of(public) == "meta"
    assert dit.time_embedding_of(public | {"sample_size": 64}) == "meta"  # the 512x512 one
    assert dit.time_embedding_of(public | {"num_embeds_ada_norm": 10}) == "diffusers"
    assert dit.time_embedding_of(public | {"num_layers": 12}) == "diffusers"
    assert dit.time_embedding_of(public | {"time_embedding": "diffusers"}) == "diffusers"


# ---------------------------------------------------------------------------------------------- noise, variance, guidance


def test_the_loss_is_the_squared_error_of_the_noise_half(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    x, y, draw = questions(family, 3)
    answer = answer_of(tiny_dit(), x, y, draw)
    assert answer.shape[1] == 4
    assert torch.allclose(family.loss(x, y, draw), (answer[:, :2] - draw["eps"]).square().mean((1, 2, 3)), rtol=1e-5)


def test_the_weights_of_the_variance_half_get_no_gradient(tmp_path: Path) -> None:
    write_model(tmp_path)
    family = load(tmp_path)
    family.loss(*questions(family, 3)).mean().backward()
    gradient = family.module.proj_out_2.weight.grad  # type: ignore[union-attr]
    # Rows are patch cells times channels, channels last: the unpatching reshapes to (…, p, p, c).
    by_channel = gradient.view(2, 2, 4, -1)  # type: ignore[operator]
    assert bool((by_channel[:, :, :2] != 0).any())
    assert bool((by_channel[:, :, 2:] == 0).all())


def test_a_network_without_a_variance_half_works_too(tmp_path: Path) -> None:
    write_model(tmp_path, tiny_dit(learn_sigma=False))
    family = load(tmp_path)
    x, y, draw = questions(family, 3)
    expected = (answer_of(tiny_dit(learn_sigma=False), x, y, draw) - draw["eps"]).square().mean((1, 2, 3))
    assert torch.allclose(family.loss(x, y, draw), expected, rtol=1e-5)
    assert family.sample(torch.tensor([1]), [1], sampling=Sampling(steps=2)).shape == (1, *SHAPE)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_are_those_of_diffusers_pipeline(tmp_path: Path, scale: float) -> None:
    # 1000 classes, because that pipeline has 1000 for its null label. All channels are guided there, so here too.
    write_model(tmp_path, tiny_dit(classes=1000))
    pipeline = DiTPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(6)
    answer = pipeline([417], guidance_scale=scale, generator=noise, num_inference_steps=5, output_type="pt").images
    family = load(tmp_path, tuple(map(str, range(1000))))
    sampling = Sampling(sampler="ddim", steps=5, guidance_scale=scale)
    ours = family.sample(torch.tensor([417]), [6], sampling=sampling)
    assert int((ours.int() - answer.mul(255).round().int()).abs().max()) <= 1  # a rounding at most
    assert ours.unique().numel() > 5  # not a blank, on which all would agree


def test_what_a_schedule_says_for_pixels_is_not_done_to_latents(tmp_path: Path) -> None:
    write_model(tmp_path)
    y, seeds = torch.tensor([0, 1]), [1, 2]
    samplings = [Sampling(sampler=sampler, steps=4) for sampler in ("ddim", "dpm++")]
    plain = [load(tmp_path).sample(y, seeds, sampling=sampling) for sampling in samplings]
    # Saved from training: x_0 cut to [-1, 1], and a variance that DPM-Solver would look for in the noise's place.
    DDPMScheduler(clip_sample=True, variance_type="learned_range").save_pretrained(tmp_path / "scheduler")
    told = load(tmp_path)
    assert told.denoiser.schedule.config.clip_sample is False
    solver = DPMSolverMultistepScheduler.from_config(told.denoiser.schedule.config, algorithm_type="dpmsolver++")
    solver.set_timesteps(2)
    four_channels = torch.randn(1, 4, 2, 2)  # told of a learned variance it would take three of them for the noise
    assert solver.step(four_channels, solver.timesteps[0], four_channels).prev_sample.shape == (1, 4, 2, 2)
    for sampling, expected in zip(samplings, plain, strict=True):
        assert torch.equal(told.sample(y, seeds, sampling=sampling), expected)


# ----------------------------------------------------------------------------------------------------------- folders


def test_the_public_folder_s_older_class_name_and_surplus_keys_are_understood(tmp_path: Path) -> None:
    write_model(tmp_path)
    expected = load(tmp_path)
    edit_json(tmp_path / CONFIG, _class_name="Transformer2DModel", cross_attention_dim=None, num_vector_embeds=None)
    x, y, draw = questions(expected, 2)
    assert torch.equal(load(tmp_path).loss(x, y, draw), expected.loss(x, y, draw))
    edit_json(tmp_path / CONFIG, norm_type="layer_norm")
    with pytest.raises(BadModel, match="expected a DiTTransformer2DModel with norm_type 'ada_norm_zero'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "PixArtTransformer2DModel"}, "expected a DiTTransformer2DModel"),
        ({"num_embeds_ada_norm": 7}, "expected num_embeds_ada_norm = 4, the number of classes, found 7"),
        ({"out_channels": 3}, r"expected out_channels = 2 \(noise\) or 4"),
        ({"num_layers": 3}, "missing"),
        ({"attention_head_dim": "eight"}, "cannot build"),
        ({"dropout": math.nan}, "expected numbers in config.json, found NaN"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    write_model(tmp_path)
    edit_json(tmp_path / CONFIG, **change)
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)


def test_the_registered_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    index = tmp_path / "model_index.json"
    edit_json(index, id2label={str(k): name for k, name in enumerate((*NAMES[:2], *reversed(NAMES[2:])))})
    sentence = "expected class 2 to be 'diagonal', as registered, found 'blank' in id2label of model_index.json"
    with pytest.raises(BadModel, match=sentence):
        load(tmp_path)
    for others in ({str(k): f"LABEL_{k}" for k in range(4)}, None):
        edit_json(index, id2label=others)
        load(tmp_path)
    index.unlink()
    load(tmp_path)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    tiny_vae(latent_channels=4).save_pretrained(tmp_path / "vae")
    with pytest.raises(BadModel, match="expected an autoencoder of 2 latent channels, as the transformer has, found 4"):
        load(tmp_path)


def test_weights_elsewhere_in_the_folder_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    for stray in ("scheduler/old.bin", "ema.safetensors", "vae/nested/ema.pt"):
        (tmp_path / stray).parent.mkdir(exist_ok=True)
        (tmp_path / stray).touch()
        with pytest.raises(BadModel, match="safetensors weights only"):
            load(tmp_path)
        (tmp_path / stray).unlink()
    shutil.rmtree(tmp_path / "transformer")
    with pytest.raises(BadModel, match=r"expected transformer/config\.json"):
        load(tmp_path)


def test_a_folder_without_a_schedule_gets_dit_s_own(tmp_path: Path) -> None:
    write_model(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    betas = load(tmp_path).denoiser.schedule.betas
    assert betas.tolist() == pytest.approx(torch.linspace(1e-4, 0.02, 1000).tolist(), rel=1e-5)  # linear, 1000 steps
