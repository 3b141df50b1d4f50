"""What models know before they answer: the last layer is found in every architecture, and encoders are asked alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.worker.engine.tiny import NAMES, case, families
from tests.worker.engine.tiny.classifier import SIDE, TRANSFORMERS, write_model, write_transformers
from worker.engine import registry
from worker.engine.errors import BadInput, BadModel
from worker.engine.families.classifier import ImageClassifier
from worker.engine.features import features_of
from worker.engine.last_layer import last_layer

CPU = torch.device("cpu")
KINDS = {name: registry.families()[name].kind for name in families()}


def images(count: int, channels: int = 3, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", [*sorted(TRANSFORMERS), "cifar-20", "cifar-18"])
def test_logits_are_what_the_head_says_of_the_features(name: str, tmp_path: Path) -> None:
    if name in TRANSFORMERS:
        write_transformers(tmp_path, name)
    else:
        write_model(tmp_path, depth=int(name.split("-")[1]), channels=3)
    family = ImageClassifier.load(tmp_path, labels=NAMES, device=CPU)
    features = family.features(images(5))
    assert features.shape == (5, family.head.in_features)
    with torch.no_grad():
        assert torch.allclose(family.head(features), family.logits(images(5)), atol=1e-6)
    assert features.std() > 0
    assert not features.requires_grad
    assert family.features(images(0)).shape == (0, family.head.in_features)
    assert not family.head._forward_pre_hooks  # nobody listens any longer


def test_an_answer_of_two_heads_is_refused() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.b(x)) / 2

    with pytest.raises(BadModel, match="one last linear layer"):
        last_layer(TwoHeads(), lambda module, x: module(x), torch.ones(1, 3))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind == "i2i"])
def test_encoders_are_asked_alike_by_whoever_asks(name: str, tmp_path: Path) -> None:
    made = case(name)
    made.write(tmp_path)
    one, other = (registry.families()[name].load(tmp_path, labels=NAMES, device=CPU) for _ in range(2))
    seen = images(3, made.channels, made.side)
    first = features_of(one, seen, 7)
    assert first.ndim == 2
    assert first.dtype == torch.float32
    assert torch.equal(first, features_of(other, seen, 7))
    assert not torch.equal(first, features_of(one, seen, 8))  # another seed hides other parts
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(first, features_of(other, seen, 7))


def test_a_generator_has_no_features() -> None:
    class Drawing:
        kind = "generator"

    with pytest.raises(BadInput, match="asked about images"):
        features_of(Drawing(), images(1), 0)  # type: ignore[arg-type]
