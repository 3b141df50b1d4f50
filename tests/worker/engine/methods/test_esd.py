"""ESD's own rules: the target, what may move, where its inputs come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from tests.worker.engine.tiny.ddpm import tiny_unet, write_model
from tests.worker.engine.unlearning_job import begin, make_job, write_spec
from worker.contract import JobDirectory
from worker.engine import registry
from worker.engine.errors import BadInput
from worker.engine.intake import effective
from worker.engine.methods.esd import ESD, in_scope

SHORT = {"iterations": 20, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-3}
GENERATED = {"inputs": "generated", "steps": 5, "guidance_scale": 3.0}


def job_method(root: Path, *, family: str = "ddpm", **params: object) -> ESD:
    return begun(make_job(root, family=family, method="esd", params={**SHORT, **params}))


def begun(job: JobDirectory) -> ESD:
    method = begin(job)
    assert isinstance(method, ESD)
    return method


def ask(method: ESD, x: torch.Tensor, t: torch.Tensor, label: int) -> torch.Tensor:
    """The teacher's prediction of the noise in x_t, from diffusers' interface."""
    return method.teacher(x, t, class_labels=torch.full_like(t, label)).sample


# ----------------------------------------------------------------------------------------------------------------- target


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_the_target_is_the_original_s_answer_guided_away_from_the_class(tmp_path: Path, eta: float) -> None:
    method = job_method(tmp_path, eta=eta)
    batch = method.run.batch(method.concepts, 0, 4)
    abar = DDIMScheduler().alphas_cumprod[batch.draw["t"]].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * batch.x_BCHW + (1 - abar).sqrt() * batch.draw["eps"]
    with torch.no_grad():
        e_null, e_class = (ask(method, noisy, batch.draw["t"], label) for label in (4, 1))  # the null label; the class
        came, _ = method.rows(batch, method.run.module)
    # At the start the network is the teacher, so it answers e_class: eta = 0 leaves e_class - e_null, eta = 1 twice that.
    expected = (e_class - (e_null - eta * (e_class - e_null))).square().mean((1, 2, 3))
    assert torch.allclose(came, expected, rtol=1e-4)
    assert torch.allclose(came, (1 + eta) ** 2 * (e_class - e_null).square().mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("family", ["ddpm", "stable_diffusion"])
@pytest.mark.parametrize("inputs", ["noised", "generated"])
def test_steps_bring_the_answer_to_the_target(tmp_path: Path, family: str, inputs: str) -> None:
    steps = {"steps": 5} if inputs == "generated" else {}
    method = job_method(tmp_path, family=family, scope="full", inputs=inputs, **steps)
    batch = method.run.batch(method.concepts, 99, 16)

    def apart() -> float:
        return float(method.rows(batch, method.run.module)[0].mean().detach())

    before = apart()
    for i in range(20):
        method.step(i)
    assert apart() < 0.5 * before


def test_the_teacher_stays_the_original(tmp_path: Path) -> None:
    method = job_method(tmp_path)
    base = load_file(tmp_path / "base/diffusion_pytorch_model.safetensors")
    for i in range(2):
        method.step(i)
    assert all(torch.equal(base[name], t) for name, t in method.teacher.state_dict().items())
    assert not any(torch.equal(base[name], t) for name, t in method.run.family.module.state_dict().items())


def test_a_model_without_a_null_label_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, method="esd", params=SHORT)
    write_model(job.base, tiny_unet(rows=4))
    write_spec(job, method="esd", params=SHORT)
    with pytest.raises(BadInput, match="null label"):
        begun(job).step(0)


# ------------------------------------------------------------------------------------------------------------------ scope


@pytest.mark.parametrize(
    ("scope", "members", "others"),
    [
        ("xattn", {"down.attentions.0.attn2.to_k.weight"}, {"down.attentions.0.attn1.to_k.weight", "conv_in.weight"}),
        ("selfattn", {"down.attentions.0.attn1.to_k.weight"}, {"down.attentions.0.attn2.to_k.weight", "conv_in.weight"}),
        (
            "noxattn",
            {"down.attentions.0.attn1.to_k.weight", "conv_in.weight", "down.resnets.0.time_emb_proj.weight"},
            {"down.attentions.0.attn2.to_k.weight", "time_embedding.linear_1.weight", "conv_out.bias"},
        ),
        ("full", {"conv_in.weight", "time_embedding.linear_1.weight"}, set()),
    ],
)
def test_a_scope_is_told_from_the_names(scope: Any, members: set[str], others: set[str]) -> None:
    assert all(in_scope(name, scope) for name in members)
    assert not any(in_scope(name, scope) for name in others)


@pytest.mark.parametrize("scope", ["xattn", "noxattn", "selfattn"])
def test_weights_outside_the_scope_keep_their_bits_even_where_weights_decay(tmp_path: Path, scope: Any) -> None:
    method = job_method(tmp_path, family="stable_diffusion", scope=scope, algorithm="adamw", weight_decay=0.5, clip=1.0)
    before = {name: p.detach().clone() for name, p in method.run.family.module.named_parameters()}
    for i in range(3):
        method.step(i)
    still = {name for name, p in method.run.family.module.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name in before if not in_scope(name, scope)}
    assert 0 < len(still) < len(before)


def test_a_clip_measures_the_gradient_inside_the_scope_alone(tmp_path: Path) -> None:
    # With plain SGD at rate 1 the update is the clipped gradient, so its length is the clip, whatever lies outside.
    method = job_method(
        tmp_path, family="stable_diffusion", scope="xattn", algorithm="sgd", momentum=0.0, learning_rate=1.0, clip=1e-4
    )
    before = [p.detach().clone() for p in method.run.parameters]
    method.step(0)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(method.run.parameters, before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-4, rel=1e-2)


def test_a_scope_without_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none in 'xattn'"):
        job_method(tmp_path, scope="xattn")  # no cross attention in a network without prompts


# ----------------------------------------------------------------------------------------------------------------- inputs


def test_a_generated_input_is_where_the_reference_sampler_would_be(tmp_path: Path) -> None:
    method = job_method(tmp_path, **GENERATED)
    batch = method.run.batch(method.concepts, 0, 4)
    # Five of a thousand steps, leading: timesteps 800, 600, 400, 200, 0. The first at or below t ends the way; above 800
    # nothing is denoised yet.
    batch.draw.tensors["t"] = torch.tensor([900, 800, 700, 10])
    made = method._generated(batch)
    assert made.draw["t"].tolist() == [800, 800, 600, 0]
    abar = DDIMScheduler().alphas_cumprod[made.draw["t"]].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * made.x_BCHW + (1 - abar).sqrt() * made.draw["eps"]
    for row, steps in enumerate((0, 0, 1, 4)):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(5)
        x = batch.draw["eps"][row : row + 1]
        for t in scheduler.timesteps[:steps]:
            with torch.no_grad():
                e_null, e_class = (ask(method, x, t[None], label) for label in (4, 1))
            guided = e_null + 3.0 * (e_class - e_null)
            x = scheduler.step(guided, t, x, use_clipped_model_output=True).prev_sample
        assert torch.allclose(x_t[row : row + 1], x, atol=1e-4)


def test_generated_inputs_follow_the_present_network_not_the_original(tmp_path: Path) -> None:
    method = job_method(tmp_path, **GENERATED)
    batch = method.run.batch(method.concepts, 0, 4)
    batch.draw.tensors["t"] = torch.zeros(4, dtype=torch.int64)
    before = method._generated(batch).draw["eps"]
    method.step(0)
    assert not torch.allclose(before, method._generated(batch).draw["eps"])


@pytest.mark.parametrize(("inputs", "same"), [("generated", True), ("noised", False)])
def test_generated_inputs_need_no_image(tmp_path: Path, inputs: str, same: bool) -> None:
    weights = []
    for name, change in (("a", 0), ("b", 90)):
        params = {**SHORT, **(GENERATED if inputs == "generated" else {"inputs": inputs})}
        job = make_job(tmp_path / name, method="esd", params=params)
        data = dict(np.load(job.data / "data.npz"))
        np.savez(job.data / "data.npz", images=data["images"] + np.uint8(change), labels=data["labels"])
        write_spec(job, method="esd", params=params)
        method = begun(job)
        method.step(0)
        weights.append(torch.cat([p.detach().flatten() for p in method.run.parameters]))
    assert torch.equal(weights[0], weights[1]) == same


def test_guided_inputs_are_the_same_on_any_number_of_micro_batches(tmp_path: Path) -> None:
    weights = []
    for name, micro in (("whole", None), ("cut", 1)):
        method = job_method(tmp_path / name, algorithm="sgd", **GENERATED)
        method.run.gradients.micro = micro
        method.step(0)
        weights.append(torch.cat([p.detach().flatten() for p in method.run.parameters]))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


# -------------------------------------------------------------------------------------------------------- what is forgotten


def test_single_items_cannot_be_forgotten(tmp_path: Path) -> None:
    job = make_job(tmp_path, method="esd", params=SHORT)
    write_spec(job, method="esd", params=SHORT, forget_classes=(), forget_samples=("13",))
    with pytest.raises(BadInput, match="single images: ESD"):
        begun(job)


def test_items_forgotten_earlier_do_not_take_their_classes_with_them(tmp_path: Path) -> None:
    job = make_job(tmp_path, method="esd", params=SHORT)
    write_spec(job, method="esd", params=SHORT, forgotten_classes=(3,), forgotten_samples=("1", "2"))  # of class 0
    method = begun(job)
    assert set(method.run.forget.labels_N.tolist()) == {0, 1, 3}
    assert set(method.concepts.labels_N.tolist()) == {1, 3}
    assert (job.read_spec().all_forgotten, method.run.dataset.labels_N[1:3].tolist()) == ((1, 3), [0, 0])


# ---------------------------------------------------------------------------------------------------------------- presets


def test_the_published_settings_are_the_paper_s() -> None:
    for preset, scope in (("esd-x-published", "xattn"), ("esd-u-published", "noxattn")):
        params = effective(registry.methods()["esd"], "stable_diffusion", {"preset": preset}).model_dump()
        wanted = {"iterations": 1000, "batch_size": 1, "learning_rate": 1e-5, "eta": 1.0, "guidance_scale": 3.0, "steps": 50}
        assert params.items() >= (wanted | {"scope": scope, "inputs": "generated", "algorithm": "adam"}).items()


def test_cross_attention_alone_is_trained_by_default_where_there_is_some() -> None:
    assert effective(ESD, "stable_diffusion", {}).model_dump()["scope"] == "xattn"
    assert effective(ESD, "ddpm", {}).model_dump()["scope"] == "full"
