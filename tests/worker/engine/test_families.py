"""What every family must keep, whichever it is: a family is under test the moment its file exists.

A family needs a tiny model to be tested on: `MODELS` says how to write one, and a family without an entry fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.unlearning_job import NAMES, SIDE, write_model
from worker.contract import Sampling
from worker.engine import registry
from worker.engine.errors import BadInput, BadModel
from worker.engine.family import Family

MODELS: dict[str, Callable[[Path], None]] = {"ddpm": write_model}
FAMILIES = sorted(registry.families())
SHAPE = (1, SIDE, SIDE)
SAMPLING = Sampling(steps=3, guidance_scale=2.0)


def load(name: str, directory: Path) -> Family:
    return registry.families()[name].load(directory, class_count=len(NAMES), device=torch.device("cpu"))


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(name: str, tmp_path: Path) -> Path:
    MODELS[name](tmp_path / "base")
    return tmp_path / "base"


def edit(base: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = next(base.rglob("*.safetensors"))
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_the_loss_is_one_finite_number_an_image_with_gradients_for_every_weight(name: str, base: Path) -> None:
    family = load(name, base)
    x = family.prepare(torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8))
    draw = family.draw(5, SHAPE, torch.Generator().manual_seed(0), label_drop=0.0)
    loss = family.loss(x, torch.arange(5) % len(NAMES), draw)
    assert loss.shape == (5,)
    assert loss.dtype == torch.float32
    assert bool((torch.isfinite(loss) & (loss >= 0)).all())
    loss.mean().backward()
    assert all(p.grad is not None for p in family.module.parameters() if p.requires_grad)


def test_an_image_has_the_same_loss_alone_as_in_a_batch(name: str, base: Path) -> None:
    family = load(name, base)
    x = family.prepare(torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))
    y = torch.arange(4) % len(NAMES)
    draw = family.draw(4, SHAPE, torch.Generator().manual_seed(0), label_drop=0.5)
    whole = family.loss(x, y, draw)
    alone = torch.cat([family.loss(x[i : i + 1], y[i : i + 1], draw.part(slice(i, i + 1))) for i in range(4)])
    assert torch.allclose(whole, alone, rtol=1e-5)


def test_contrast_repeats_the_loss_and_is_zero_against_the_own_label(name: str, base: Path) -> None:
    family = load(name, base)
    x = family.prepare(torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8))
    y = torch.tensor([0, 1, 2, 3])
    draw = family.draw(4, SHAPE, torch.Generator().manual_seed(0), label_drop=0.0)
    loss, distance = family.contrast(x, y, torch.tensor([0, 1, 3, 2]), draw)
    assert torch.allclose(loss, family.loss(x, y, draw), rtol=1e-5)
    assert distance[:2].tolist() == pytest.approx([0, 0], abs=1e-10)
    assert bool((distance[2:] > 0).all())


def test_a_sample_depends_on_its_seed_and_class_not_on_its_neighbours(name: str, base: Path) -> None:
    family = load(name, base)
    y, seeds = torch.tensor([0, 1, 2, 3, 0]), [10, 11, 12, 13, 14]
    together = family.sample(y, seeds, sampling=SAMPLING)
    assert together.shape == (5, *SHAPE)
    assert together.dtype == torch.uint8
    for i in range(5):
        alone = family.sample(y[i : i + 1], seeds[i : i + 1], sampling=SAMPLING)[0]
        # A batch of another size may take another kernel and round a pixel to the next grey level.
        assert int((alone.int() - together[i].int()).abs().max()) <= 1
    assert not torch.equal(together[0], together[4])
    batched = family.sample(y, seeds, sampling=SAMPLING.model_copy(update={"batch_size": 2}))
    assert int((batched.int() - together.int()).abs().max()) <= 1


def test_sampling_refuses_what_it_cannot_mean(name: str, base: Path) -> None:
    family = load(name, base)
    with pytest.raises(BadInput, match="seed"):
        family.sample(torch.tensor([0, 1]), [1], sampling=SAMPLING)
    with pytest.raises(BadInput, match="labels"):
        family.sample(torch.tensor([len(NAMES) + 1]), [1], sampling=SAMPLING)
    assert len(family.sample(torch.empty(0, dtype=torch.int64), [], sampling=SAMPLING)) == 0


def test_saved_unchanged_it_has_the_base_s_bytes_of_every_tensor(name: str, base: Path, tmp_path: Path) -> None:
    load(name, base).save(tmp_path / "out", base)
    before, after = (load_file(next(d.rglob("*.safetensors"))) for d in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    others = [p.relative_to(base) for p in base.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert others
    assert all((base / p).read_bytes() == (tmp_path / "out" / p).read_bytes() for p in others)


def test_a_half_precision_base_stays_half_precision(name: str, base: Path, tmp_path: Path) -> None:
    edit(base, lambda t: t.update({n: v.half() for n, v in t.items()}))
    family = load(name, base)
    assert {p.dtype for p in family.module.parameters()} == {torch.float32}
    family.save(tmp_path / "out", base)
    assert {t.dtype for t in load_file(next((tmp_path / "out").rglob("*.safetensors"))).values()} == {torch.float16}


def test_weights_that_are_not_the_family_s_are_refused_by_name(name: str, base: Path) -> None:
    first = sorted(load_file(next(base.rglob("*.safetensors"))))[0]
    good = next(base.rglob("*.safetensors")).read_bytes()

    def nan(t: dict[str, torch.Tensor]) -> None:
        t[first].view(-1)[0] = float("nan")

    def reshape(t: dict[str, torch.Tensor]) -> None:
        t[first] = torch.zeros(1, 2, 3)

    for change, sentence in (
        (nan, "finite"),
        (reshape, "expected"),
        (lambda t: t.pop(first), "1 missing"),
        (lambda t: t.update(stowaway=torch.zeros(1)), "1 surplus"),
    ):
        edit(base, change)  # type: ignore[arg-type]
        with pytest.raises(BadModel, match=sentence):
            load(name, base)
        next(base.rglob("*.safetensors")).write_bytes(good)
    next(base.rglob("*.safetensors")).write_bytes(good[:-100])
    with pytest.raises(BadModel, match="safetensors"):
        load(name, base)


def test_a_pickle_and_a_second_set_of_weights_are_refused(name: str, base: Path) -> None:
    weights = next(base.rglob("*.safetensors"))
    (weights.parent / "ema.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(BadModel, match=r"one \.safetensors"):
        load(name, base)
    (weights.parent / "ema.safetensors").unlink()
    (weights.parent / "extra.bin").write_bytes(b"")
    with pytest.raises(BadModel, match="safetensors weights only"):
        load(name, base)


def test_weights_that_are_not_finite_are_not_saved(name: str, base: Path, tmp_path: Path) -> None:
    family = load(name, base)
    with torch.no_grad():
        next(family.module.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(BadModel, match="finite"):
        family.save(tmp_path / "out", base)
