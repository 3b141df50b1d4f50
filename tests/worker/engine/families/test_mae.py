"""Masked autoencoders: the same numbers as transformers', on given masks, and only folders that can complete an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTImageProcessor, ViTMAEForPreTraining

from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny.mae import config, tiny_mae, write_model
from worker.contract import MaskSpec, Sampling
from worker.engine import corruption
from worker.engine.errors import BadInput, BadModel
from worker.engine.families.mae import MaskedAutoencoder, answer, encode
from worker.engine.family import Draw

CPU = torch.device("cpu")


def load(folder: Path) -> MaskedAutoencoder:
    return MaskedAutoencoder.load(folder, labels=NAMES, device=CPU)


def family_of(root: Path, **changes: Any) -> MaskedAutoencoder:
    write_model(root / "base", tiny_mae(**changes))
    return load(root / "base")


def inputs(count: int = 3, side: int = 8, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(2))


def noise(network: ViTMAEForPreTraining, count: int = 3) -> Tensor:
    cells = network.vit.embeddings.patch_embeddings.num_patches
    return torch.rand(count, cells, generator=torch.Generator().manual_seed(3))


def kept(network: ViTMAEForPreTraining, noise_BL: Tensor) -> Tensor:
    """The patches that transformers keeps for this noise, in its order."""
    return noise_BL.argsort(dim=1)[:, : int(noise_BL.shape[1] * (1 - network.config.mask_ratio))]


@pytest.mark.parametrize("mask_ratio", [0.5, 0.75, 0.6])
def test_taps_and_answer_are_those_of_a_full_forward_pass_of_transformers(mask_ratio: float) -> None:
    network, x_BCHW = tiny_mae(mask_ratio=mask_ratio), inputs()
    noise_BL, taps = noise(network), []
    hook = network.vit.layernorm.register_forward_hook(lambda module, args, out: taps.append(out))
    full = network(pixel_values=x_BCHW, noise=noise_BL)
    hook.remove()
    visible_BK = kept(network, noise_BL)
    assert torch.equal(encode(network, x_BCHW, visible_BK)[0], taps[0])
    assert torch.allclose(answer(network, x_BCHW, visible_BK), full.logits, atol=1e-6)


def test_the_order_in_which_patches_are_kept_decides_nothing() -> None:
    # Masks give them in ascending order, transformers in a random one.
    network, x_BCHW = tiny_mae(), inputs()
    visible_BK = kept(network, noise(network))
    ascending_BK = visible_BK.sort(dim=1).values
    assert not torch.equal(visible_BK, ascending_BK)
    assert torch.allclose(answer(network, x_BCHW, ascending_BK), answer(network, x_BCHW, visible_BK), atol=1e-5)


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    family, x_BCHW = family_of(tmp_path), inputs()
    network = family.module.network
    noise_BL = noise(network)
    # Its masks hide the lowest numbers, transformers' the highest.
    loss_B = family.loss(x_BCHW, torch.zeros(3, dtype=torch.int64), Draw({"mask": 1 - noise_BL}))
    assert float(loss_B.mean()) == pytest.approx(float(network(pixel_values=x_BCHW, noise=noise_BL).loss), rel=1e-5)


def test_the_loss_to_noise_does_not_look_at_what_lies_hidden(tmp_path: Path) -> None:
    family, x_BCHW, y_B = family_of(tmp_path), inputs(), torch.zeros(3, dtype=torch.int64)
    draw = family.draw(3, (1, 8, 8), torch.Generator().manual_seed(0), label_drop=0.0)
    noise_BCHW = family.noise(3, (1, 8, 8), torch.Generator().manual_seed(1), scope="hole")
    draw = Draw(draw.tensors | {"noise": noise_BCHW})
    loss_B = family.loss_to_noise(x_BCHW, y_B, draw)
    covered = corruption.pixels(corruption.hidden(family.native, family.grid, draw["mask"]), family.cell)
    assert torch.equal(family.loss_to_noise(x_BCHW.masked_fill(covered, 0.0), y_B, draw), loss_B)
    # Were the noise what lies there, it would be the loss.
    assert torch.allclose(family.loss(torch.where(covered, noise_BCHW, x_BCHW), y_B, draw), loss_B)


@pytest.mark.parametrize("mask_ratio", [0.75, 0.6, 0.3])
def test_training_hides_as_many_patches_as_transformers_does(mask_ratio: float, tmp_path: Path) -> None:
    family = family_of(tmp_path, mask_ratio=mask_ratio)
    network = family.module.network
    draw = family.draw(2, (1, 8, 8), torch.Generator().manual_seed(0), label_drop=0.0)
    _, visible_BK = family.question(inputs(2), torch.zeros(2, dtype=torch.int64), draw)
    assert visible_BK.shape[1] == kept(network, noise(network)).shape[1]


def test_a_32_pixel_image_has_64_patches_of_4x4(tmp_path: Path) -> None:
    family = family_of(tmp_path, image_size=32, patch_size=4, num_channels=3)
    assert family.grid == (8, 8)
    draw = family.draw(2, (3, 32, 32), torch.Generator().manual_seed(0), label_drop=0.0)
    (tap,) = family.encode(family.question(inputs(2, 32, 3), torch.zeros(2), draw))
    assert tap.shape == (2, 1 + 32, 16)  # half of 64 patches, and the class token


def test_a_centre_hole_leaves_exactly_the_patches_outside(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    hidden = corruption.masks(MaskSpec(kind="center", ratio=0.25), family.grid, [0])  # 2x2 of 4x4 patches
    seen: list[Tensor] = []
    forward = family.module._answer

    def watch(network: Any, x: Tensor, visible: Tensor) -> Tensor:
        seen.append(visible)
        return forward(network, x, visible)

    family.module._answer = watch
    images = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    completed = family.complete(images, hidden, [0], sampling=Sampling())
    assert seen[0].tolist() == [[0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15]]
    changed = (completed != images)[0, 0]
    assert changed[2:6, 2:6].any()
    changed[2:6, 2:6] = False
    assert not changed.any()


def test_completed_pixels_are_the_answer_s_undone_from_the_normalisation(tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    ViTImageProcessor(image_mean=[0.3], image_std=[0.2], size={"height": 8, "width": 8}).save_pretrained(tmp_path / "base")
    family = load(tmp_path / "base")
    images = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hidden = corruption.masks(MaskSpec(kind="outpaint", ratio=0.75), family.grid, [0])
    completed = family.complete(images, hidden, [0], sampling=Sampling())
    network = family.module.network
    x_BCHW = (images / 255 - 0.3) / 0.2
    drawn = network.unpatchify(answer(network, x_BCHW, corruption.visible(hidden, 12)))
    expected = ((drawn * 0.2 + 0.3) * 255).clamp(0, 255)
    where = corruption.pixels(hidden, family.cell)
    assert (completed[where] - expected[where]).abs().max() <= 0.51  # rounded


def test_dropout_of_the_configuration_is_off(tmp_path: Path) -> None:
    family = family_of(tmp_path, hidden_dropout_prob=0.5)
    draw = family.draw(2, (1, 8, 8), torch.Generator().manual_seed(0), label_drop=0.0)
    question = family.question(inputs(2), torch.zeros(2), draw)
    assert torch.equal(family.encode(question)[0], family.encode(question)[0])


def test_a_folder_that_transformers_saved_is_read_and_written_under_its_names(tmp_path: Path) -> None:
    network = tiny_mae(qkv_bias=True)
    network.save_pretrained(tmp_path / "base")
    family = load(tmp_path / "base")
    family.save(tmp_path / "out", tmp_path / "base")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("base", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "out")
    x_BCHW, noise_BL = inputs(), noise(network)
    assert torch.equal(again(x_BCHW, noise=noise_BL).logits, network(x_BCHW, noise=noise_BL).logits)


def test_fresh_weights_keep_the_tables_of_positions(tmp_path: Path) -> None:
    family = family_of(tmp_path)
    with torch.no_grad():
        family.module.network.vit.embeddings.position_embeddings.add_(1)  # as another library may have made them
    fresh = family.fresh(1)
    assert torch.equal(
        fresh.network.vit.embeddings.position_embeddings, family.module.network.vit.embeddings.position_embeddings
    )
    assert fresh.frozen().keys() == family.module.frozen().keys()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"norm_pix_loss": True}, "norm_pix_loss"),
        ({"image_size": 9}, "whole patches, found patches of 2 on a side of 9"),
        ({"image_size": 1}, "whole patches"),
        ({"patch_size": [2, 2]}, "patch_size to be one number"),
        ({"model_type": "vit"}, "model_type 'vit_mae'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"mask_ratio": 0.0}, "hides none"),
        ({"mask_ratio": 1.0}, "hides all"),
        ({"hidden_act": "no_such_function"}, "cannot build"),
        ({"num_attention_heads": -1}, "num_attention_heads to be one number of at least 1"),
        ({"decoder_num_attention_heads": -1}, "decoder_num_attention_heads to be one number of at least 1"),
    ],
)
def test_a_configuration_that_cannot_complete_images_is_refused(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path)


def test_an_encoder_without_a_decoder_is_refused(tmp_path: Path) -> None:
    network = tiny_mae()
    network.config.save_pretrained(tmp_path)
    network.vit.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "vit_mae"}))
    with pytest.raises(BadModel, match="missing"):
        load(tmp_path)


def test_labels_are_not_made_up_for_a_network_that_has_none(tmp_path: Path) -> None:
    """transformers would make a name for each of `num_labels`: a few bytes of a configuration could take all memory."""
    write_model(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_labels": 5000}))
    assert len(load(tmp_path).module.network.config.id2label) < 5000


def test_the_configuration_s_own_kernel_is_not_taken(tmp_path: Path) -> None:
    write_model(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_attn_implementation": "kernels-community/flash"}))
    assert load(tmp_path).module.network.config._attn_implementation in ("sdpa", "eager")


def test_tiny_configurations_are_as_said() -> None:
    assert config().norm_pix_loss is False


def test_noise_is_as_wide_as_the_pixels_that_the_network_is_shown(tmp_path: Path) -> None:
    """Pixels from 0 to 1 that are left as they are have no mean of 0: N(0, 1) would be darker than black half of the time."""
    write_model(tmp_path / "plain")
    (tmp_path / "plain" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    for family, mean, std in ((family_of(tmp_path), 0.0, 1.0), (load(tmp_path / "plain"), 0.5, 0.5)):
        drawn = family.noise(500, (1, 8, 8), torch.Generator().manual_seed(1), scope="image")
        assert drawn is not None
        assert float(drawn.mean()) == pytest.approx(mean, abs=0.02)
        assert float(drawn.std()) == pytest.approx(std, rel=0.02)
