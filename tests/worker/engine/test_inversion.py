"""A label is looked for, and nothing else of the model moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worker.engine import tiny
from worker.engine import registry
from worker.engine.errors import BadInput, Diverged
from worker.engine.inversion import invert, starts

GENERATORS = [name for name in tiny.families() if registry.families()[name].kind == "generator"]


@pytest.fixture(params=GENERATORS)
def model(request: pytest.FixtureRequest, tmp_path: Path):
    tiny.case(request.param).write(tmp_path / "model")
    return registry.families()[request.param].load(tmp_path / "model", labels=tiny.NAMES, device=torch.device("cpu"))


def images(model) -> torch.Tensor:
    case = tiny.case(model.name)
    return torch.randint(0, 256, (6, case.channels, case.side, case.side), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def found(model, steps: int = 4, **changes):
    start_RX = starts(model, 1, (0, 2), 3, seed=7)
    wish = {"steps": steps, "batch": 4, "learning_rate": 0.1, "seed": 7, "beat": lambda: None, **changes}
    return start_RX, invert(model, images(model), start_RX, **wish)


def test_rows_move_and_weights_do_not(model) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    start_RX, result = found(model)
    assert result.rows_RX.shape == start_RX.shape
    assert all(not torch.equal(a, b.cpu()) for a, b in zip(result.rows_RX, start_RX, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert all(p.grad is None for p in model.module.parameters())
    assert result.loss_SR.shape == (4, 3)


def test_the_same_seed_finds_the_same_rows(model) -> None:
    (_, one), (_, other) = found(model), found(model)
    assert torch.equal(one.rows_RX, other.rows_RX)
    assert torch.equal(one.loss_SR, other.loss_SR)


def test_it_begins_with_the_null_label_and_with_the_classs_own(model) -> None:
    rows_RX = starts(model, 1, (0, 2), 4, seed=7)
    assert torch.equal(rows_RX[0], model.conditioning(torch.tensor([model.null_label]))[0])
    assert torch.equal(rows_RX[1], model.conditioning(torch.tensor([1]))[0])
    assert not torch.equal(rows_RX[2], rows_RX[3])
    with pytest.raises(BadInput, match="retained classes"):
        starts(model, 1, (), 1, seed=7)


def test_each_restart_descends_as_it_would_alone(model) -> None:
    start_RX, together = found(model, steps=2)
    alone = invert(model, images(model), start_RX[:1], steps=2, batch=4, learning_rate=0.1, seed=7, beat=lambda: None)
    assert alone.loss_SR[0, 0] == pytest.approx(float(together.loss_SR[0, 0]), rel=1e-4)  # same images, times and noise


def test_a_loss_that_is_not_finite_is_no_failed_attack(model) -> None:
    start_RX = starts(model, 1, (0, 2), 1, seed=7)
    with pytest.raises(Diverged, match="could not be inverted"):
        invert(
            model, images(model), start_RX * float("nan"), steps=2, batch=4, learning_rate=0.1, seed=7, beat=lambda: None
        )  # fmt: skip


def test_a_row_is_found_again_by_what_the_model_says_under_it(tmp_path: Path) -> None:
    """Descending the loss of a model whose answer depends on the row alone leads to the row: here, by hand, a quadratic."""

    class Bowl:
        """loss(e) = |e - x|^2, so that e* is the mean image."""

        null_label, label_count = None, 2
        module = torch.nn.Module()

        def __init__(self, rows_MX: torch.Tensor | None = None) -> None:
            self.rows_MX = rows_MX

        def conditioning(self, y_B: torch.Tensor) -> torch.Tensor:
            return torch.eye(2)[y_B]

        def with_labels(self, rows_MX: torch.Tensor) -> Bowl:
            return Bowl(rows_MX)

        def hold(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            return images_NCHW.float().flatten(1)

        def draw(self, count, shape, source, *, label_drop):
            from worker.engine.family import Draw

            return Draw({"t": torch.zeros(count)})

        def prepare(self, held_B, draw):
            return held_B

        def loss(self, x_BX, y_B, draw):
            return (self.rows_MX[y_B - 2] - x_BX).square().sum(dim=1)

    given = torch.tensor([[3.0, 1.0], [5.0, 1.0]]).view(2, 1, 1, 2)
    result = invert(
        Bowl(), given, torch.zeros(2, 2), steps=400, batch=2, learning_rate=0.1, seed=1, beat=lambda: None
    )  # fmt: skip
    assert result.rows_RX == pytest.approx(torch.tensor([[4.0, 1.0], [4.0, 1.0]]), abs=0.01)
    assert float(result.loss_SR[-1, 0]) == pytest.approx(1.0, abs=0.01)  # (1 + 1) / 2: what is left of two images
