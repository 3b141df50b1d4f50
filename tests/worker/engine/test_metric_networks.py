"""The networks of published figures, by tiny stand-ins: how images are shown to them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.worker.engine.tiny import metrics
from worker.engine import metric_networks as networks
from worker.engine.errors import BadInput, BadModel

CPU = torch.device("cpu")


def images(count: int, channels: int = 3, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def nothing() -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metrics.write_clip(metrics.write_inception(tmp_path_factory.mktemp("mounted")))


def test_what_is_mounted_is_told_by_name(mounted: Path, tmp_path: Path) -> None:
    assert networks.mounted(mounted) == ("inception", "clip")
    assert networks.mounted(metrics.write_inception(tmp_path)) == ("inception",)
    assert networks.mounted(tmp_path / "nowhere") == ()


@pytest.mark.parametrize("side", [8, 32, 320])
def test_images_are_resized_as_pillow_resizes_floats(side: int) -> None:
    # clean-fid's resizer: every channel by itself as a float image, bicubic.
    (image_CHW,) = images(1, side=side)
    planes = [
        Image.fromarray(plane.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC) for plane in image_CHW
    ]
    expected_CHW = np.stack([np.asarray(p) for p in planes]).clip(0, 255)
    (came_CHW,) = networks.resized(image_CHW[None]).numpy()
    assert np.abs(came_CHW - expected_CHW).max() < 1e-2  # of 255; the order of float32 sums


def test_inception_answers_the_same_whoever_else_is_asked_and_has_a_sign_of_life(mounted: Path) -> None:
    inception, signs = networks.Inception(mounted, CPU), []
    features_ND, p_NK = inception.look(images(70), lambda: signs.append(1))
    assert (features_ND.shape, p_NK.shape) == ((70, metrics.FEATURES), (70, metrics.CLASSES))
    assert features_ND.dtype == p_NK.dtype == torch.float64
    assert len(signs) == 3
    assert torch.allclose(p_NK.sum(1), torch.ones(70, dtype=torch.float64))
    few_MD, _ = inception.look(images(70)[64:], nothing)
    assert torch.allclose(few_MD, features_ND[64:], atol=1e-6)


def test_inception_score_is_of_probabilities_without_the_output_bias(mounted: Path) -> None:
    inception = networks.Inception(mounted, CPU)
    features_ND, p_NK = inception.look(images(4), nothing)
    weight = torch.jit.load(str(mounted / "inception.pt")).output.weight.double()
    assert torch.allclose(p_NK, (features_ND @ weight.T).softmax(dim=1), atol=1e-6)


def test_grey_images_are_shown_as_three_equal_channels(mounted: Path) -> None:
    grey = images(3, channels=1)
    for network in (networks.Inception(mounted, CPU), networks.Clip(mounted, CPU)):
        one, three = (network.look(x, nothing) for x in (grey, grey.repeat(1, 3, 1, 1)))
        assert torch.equal(one[0], three[0])
        with pytest.raises(BadInput, match="1 or 3 channels, got 2"):
            network.look(images(3, channels=2), nothing)


def test_clip_embeds_what_its_own_processor_prepares(mounted: Path) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    shown = images(3)
    came = networks.Clip(mounted, CPU).look(shown, nothing)
    processor = AutoImageProcessor.from_pretrained(mounted / "clip", backend="pil", local_files_only=True)
    model = CLIPModel.from_pretrained(mounted / "clip", local_files_only=True).eval()
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in shown]
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(came.float(), expected, atol=1e-6)
    assert came.shape == (3, metrics.EMBEDDING)


def test_what_is_no_such_network_is_refused_in_a_sentence_without_a_path(tmp_path: Path, mounted: Path) -> None:
    (tmp_path / "inception.pt").write_bytes(b"nothing")
    with pytest.raises(BadModel, match=r"expected a TorchScript module in inception\.pt") as refused:
        networks.Inception(tmp_path, CPU)
    assert str(tmp_path) not in str(refused.value)
    (tmp_path / "clip").mkdir()
    with pytest.raises(BadModel, match="expected a CLIPModel in safetensors") as refused:
        networks.Clip(tmp_path, CPU)
    assert str(tmp_path) not in str(refused.value)


def test_clip_without_some_of_its_weights_is_not_filled_up_with_random_ones(tmp_path: Path, mounted: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(mounted / "clip", tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(file)
    del tensors["visual_projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"visual_projection\.weight"):
        networks.Clip(tmp_path, CPU)


class Odd(nn.Module):
    """Answers that are no features or no probabilities."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        features = x.mean(dim=(2, 3))
        if return_features:
            if self.what == "map":
                return x
            return features / 0.0 if self.what == "infinite" else features
        return features if self.what == "logits" else features.softmax(dim=1)


class Plain(nn.Module):
    """Takes an image and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Odd("map"), r"expected 2 rows from inception\.pt, got \[2, 3, 299, 299\]"),
        (Odd("infinite"), "expected finite numbers"),
        (Odd("logits"), "sum to 1"),
        (Plain(), r"to take \[2, 3, 299, 299\] and \{'return_features': True\}"),
    ],
)
def test_a_module_that_answers_otherwise_is_refused(tmp_path: Path, module: nn.Module, sentence: str) -> None:
    inception = networks.Inception(metrics.write_inception(tmp_path, module), CPU)
    with pytest.raises(BadModel, match=sentence):
        inception.look(images(2), nothing)
