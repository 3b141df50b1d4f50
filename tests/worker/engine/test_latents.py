"""The frozen autoencoder: what is held of an image, how it is drawn from, and how it becomes an image again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.tiny.dit import SIDE, tiny_vae
from worker.engine import diffusion, latents
from worker.engine.errors import BadInput, BadModel, Diverged
from worker.engine.family import Draw
from worker.engine.latents import Latents

CPU = torch.device("cpu")
SHAPE = (1, SIDE, SIDE)
FILE = Path("vae/diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_vae().save_pretrained(tmp_path / "vae")
    return tmp_path


def images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit(folder: Path, change: object) -> None:
    tensors = load_file(folder / FILE)
    save_file(change(tensors), folder / FILE)  # type: ignore[operator]


def test_what_is_held_is_the_posterior_of_pixels_from_minus_one_to_one(folder: Path) -> None:
    held = Latents.load(folder, CPU).encode(images(3))
    with torch.no_grad():
        posterior = tiny_vae().eval().encode(images(3).float() / 127.5 - 1).latent_dist
    expected = torch.cat([posterior.mean, posterior.logvar], 1)
    assert held.shape == (3, 2 * 2, SIDE // 2, SIDE // 2)
    assert held.dtype == torch.float16
    # Rounding to an 11-bit mantissa costs half a unit in the last place: 2^-11 = 1/2048 of the number.
    assert torch.allclose(held.float(), expected, rtol=1 / 2000, atol=1e-6)


def test_an_image_is_held_the_same_whatever_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = Latents.load(folder, CPU)
    together = vae.encode(images(5))
    monkeypatch.setattr(latents, "PIXELS", 2 * SIDE * SIDE)
    # Another kernel may round the other way: one unit in the last place.
    assert torch.allclose(vae.encode(images(5)).float(), together.float(), rtol=2**-10, atol=1e-5)
    assert vae.encode(images(0)).shape == (0, *together.shape[1:])


def test_training_draws_from_the_posterior_and_scales_it(folder: Path) -> None:
    configure(folder, shift_factor=0.25)
    vae = Latents.load(folder, CPU)
    held = torch.tensor([2.0, 2.0, 0.0, 2 * torch.log(torch.tensor(3.0))]).view(1, 4, 1, 1).half()
    z = vae.prepare(held, Draw({"posterior": torch.full((1, 2, 1, 1), 0.5)}))
    # mean 2, standard deviations 1 and 3, half a deviation up: 2.5 and 3.5; less 0.25, times 0.7.
    assert z.flatten().tolist() == pytest.approx([2.25 * 0.7, 3.25 * 0.7], rel=1e-3)
    assert z.dtype == torch.float32


def test_decoding_undoes_shift_and_scale(folder: Path) -> None:
    configure(folder, shift_factor=0.25)
    z = torch.randn(3, 2, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tiny_vae().eval().decode(z / 0.7 + 0.25).sample
    decoded = Latents.load(folder, CPU).decode(z)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, *SHAPE)
    # Another memory layout may round a pixel to the next grey level.
    assert int((decoded.int() - diffusion.to_pixels(expected).int()).abs().max()) <= 1


def test_images_are_decoded_in_batches_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = Latents.load(folder, CPU)
    z = torch.randn(5, 2, SIDE // 2, SIDE // 2)
    together = vae.decode(z)
    monkeypatch.setattr(latents, "PIXELS", 1)  # less than an image has: one at a time
    assert int((vae.decode(z).int() - together.int()).abs().max()) <= 1
    assert vae.decode(z[:0]).shape == (0, *SHAPE)


def test_shapes_follow_from_each_other_and_the_rest_is_refused(folder: Path) -> None:
    vae = Latents.load(folder, CPU)
    assert vae.shape((1, 16, 8)) == (2, 8, 4)
    assert vae.image_shape((2, 8, 4)) == (1, 16, 8)
    for shape in ((3, 8, 8), (1, 9, 8), (1, 8, 7)):
        with pytest.raises(BadInput, match="works on images"):
            vae.shape(shape)


def test_the_draw_is_that_of_pixels_and_one_number_more_a_latent(folder: Path) -> None:
    vae, schedule = Latents.load(folder, CPU), diffusion.schedule_of({})

    def numbers(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    drawn = vae.draw(schedule, 4, SHAPE, numbers(1), label_drop=0.5, augment="none")
    pixels = diffusion.draw(schedule, 4, (2, 4, 4), numbers(1), label_drop=0.5, augment="none")
    assert drawn.tensors.keys() == pixels.tensors.keys() | {"posterior"}
    assert all(torch.equal(drawn[name], pixels[name]) for name in pixels.tensors)
    assert drawn["posterior"].shape == drawn["eps"].shape == (4, 2, 4, 4)
    assert not torch.equal(drawn["posterior"], drawn["eps"])


@pytest.mark.parametrize("augment", ["flip", "crop_flip"])
def test_latents_are_not_mirrored(folder: Path, augment: str) -> None:
    vae = Latents.load(folder, CPU)
    mirrored_latents, latents_of_mirrored = vae.encode(images(1)).flip(-1), vae.encode(images(1).flip(-1))
    assert not torch.allclose(mirrored_latents, latents_of_mirrored, atol=0.01)  # which is why
    with pytest.raises(BadInput, match="expected augment 'none', found"):
        vae.draw(diffusion.schedule_of({}), 1, SHAPE, torch.Generator(), label_drop=0.0, augment=augment)  # type: ignore[arg-type]


def test_nothing_of_it_can_be_trained(folder: Path) -> None:
    vae = Latents.load(folder, CPU)
    assert not any(p.requires_grad for p in vae.vae.parameters())
    assert not any(m.training for m in vae.vae.modules())
    assert not vae.encode(images(1)).requires_grad


def test_a_half_precision_autoencoder_works_in_float32(folder: Path) -> None:
    edit(folder, lambda t: {name: v.half() for name, v in t.items()})
    vae = Latents.load(folder, CPU)
    assert {p.dtype for p in vae.vae.parameters()} == {torch.float32}
    assert bool(torch.isfinite(vae.encode(images(1))).all())


def test_the_attention_names_of_public_autoencoders_are_understood(folder: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    expected = Latents.load(folder, CPU).encode(images(2))

    def rename(name: str) -> str:
        head, found, tail = name.partition(".attentions.0.")
        new = next((n for n in old if tail.startswith(n)), "")
        return f"{head}{found}{old[new]}{tail[len(new) :]}" if found and new else name

    edit(folder, lambda t: {rename(name): v for name, v in t.items()})
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in load_file(folder / FILE)
    assert torch.equal(Latents.load(folder, CPU).encode(images(2)), expected)


def test_a_folder_that_is_no_autoencoder_is_refused(folder: Path) -> None:
    good = (folder / FILE).read_bytes()
    edit(folder, lambda t: t | {"quant_conv.bias": torch.full_like(t["quant_conv.bias"], torch.inf)})
    with pytest.raises(BadModel, match=r"finite.*quant_conv\.bias"):
        Latents.load(folder, CPU)
    (folder / FILE).write_bytes(good)
    (folder / "vae/old.bin").touch()
    with pytest.raises(BadModel, match="safetensors weights only"):
        Latents.load(folder, CPU)
    (folder / "vae/old.bin").unlink()
    configure(folder, _class_name="VQModel")
    with pytest.raises(BadModel, match="expected a diffusers AutoencoderKL in vae/, found 'VQModel'"):
        Latents.load(folder, CPU)
    configure(folder, _class_name="AutoencoderKL", norm_num_groups=3)  # 8 channels are not 3 groups
    with pytest.raises(BadModel, match="cannot build"):
        Latents.load(folder, CPU)
    with pytest.raises(BadModel, match=r"expected vae/config\.json"):
        Latents.load(folder / "vae", CPU)


def test_what_float16_cannot_hold_and_pixels_that_are_not_numbers_are_refused(folder: Path) -> None:
    vae = Latents.load(folder, CPU)
    with pytest.raises(Diverged, match="NaN or infinite pixels"):
        vae.decode(torch.full((1, 2, 4, 4), torch.nan))
    edit(folder, lambda t: t | {"quant_conv.bias": torch.full_like(t["quant_conv.bias"], 1e6)})  # above 65504
    with pytest.raises(BadModel, match="finite latents"):
        Latents.load(folder, CPU).encode(images(1))
