"""What every family must keep, whichever it is: a family is under test the moment its file exists.

A family needs a tiny model to be tested on, in `tests/worker/engine/tiny/<family>.py`; one without fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.tiny import NAMES, case, families
from worker.contract import Sampling
from worker.engine import registry
from worker.engine.errors import BadInput, BadModel
from worker.engine.family import Draw

FAMILIES = families()
KINDS = {name: registry.families()[name].kind for name in FAMILIES}
SAMPLING = Sampling(steps=3, guidance_scale=2.0)


def load(name: str, directory: Path) -> Any:
    return registry.families()[name].load(directory, labels=NAMES, device=torch.device("cpu"))


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def generator_name(name: str) -> str:
    if KINDS[name] != "generator":
        pytest.skip("draws nothing")
    return name


@pytest.fixture
def labelled_name(name: str) -> str:
    if KINDS[name] == "i2i":
        pytest.skip("knows no labels")
    return name


@pytest.fixture
def base(name: str, tmp_path: Path) -> Path:
    case(name).write(tmp_path / "base")
    return tmp_path / "base"


def images(name: str, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *case(name).shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def asked(family: Any, name: str, count: int, *, label_drop: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, Draw]:
    draw = family.draw(count, case(name).shape, torch.Generator().manual_seed(0), label_drop=label_drop)
    return family.prepare(family.hold(images(name, count)), draw), torch.arange(count) % len(NAMES), draw


def weights_of(base: Path, family: Any) -> Path:
    """The file that holds the trained weights: the only one that training may change."""
    trained = {n for n, _ in family.module.named_parameters()}
    return next(f for f in sorted(base.rglob("*.safetensors")) if trained & set(load_file(f)))


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_loss_is_one_finite_number_an_image_with_gradients_for_every_weight(name: str, base: Path) -> None:
    family = load(name, base)
    loss = family.loss(*asked(family, name, 5))
    assert loss.shape == (5,)
    assert loss.dtype == torch.float32
    assert bool((torch.isfinite(loss) & (loss >= 0)).all())
    loss.mean().backward()
    assert all(p.grad is not None for p in family.module.parameters() if p.requires_grad)


def test_the_loss_is_float32_under_autocast(name: str, base: Path) -> None:
    family = load(name, base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = family.loss(*asked(family, name, 2))
    assert loss.dtype == torch.float32


def test_an_image_has_the_same_loss_alone_as_in_a_batch(name: str, base: Path) -> None:
    family = load(name, base)
    x, y, draw = asked(family, name, 4, label_drop=0.5)
    whole = family.loss(x, y, draw)
    alone = torch.cat([family.loss(x[i : i + 1], y[i : i + 1], draw.part(slice(i, i + 1))) for i in range(4)])
    assert torch.allclose(whole, alone, rtol=1e-4)


def test_contrast_repeats_the_loss_and_tells_labels_apart(labelled_name: str, base: Path) -> None:
    name = labelled_name
    family = load(name, base)
    x, y, draw = asked(family, name, 4)
    loss, distance = family.contrast(x, y, torch.tensor([0, 1, 3, 2]), draw)
    assert torch.allclose(loss, family.loss(x, y, draw), rtol=1e-4)
    if KINDS[name] == "generator":
        assert distance[:2].tolist() == pytest.approx([0, 0], abs=1e-10)  # its own answer
        assert bool((distance[2:] > 0).all())
    else:
        assert torch.allclose(distance[:2], loss[:2])  # the cross-entropy to the own label
        assert not torch.allclose(distance[2:], loss[2:])


def test_no_distance_to_itself_and_some_to_a_fresh_network(name: str, base: Path) -> None:
    family = load(name, base)
    x, y, draw = asked(family, name, 3)
    assert family.distance(x, y, draw, teacher=family.module).abs().max() < 1e-6
    fresh = family.fresh(1)
    assert bool((family.distance(x, y, draw, teacher=fresh) > 0).all())
    assert all(p.grad is None for p in fresh.parameters())


def test_fresh_weights_depend_on_the_seed_alone(name: str, base: Path) -> None:
    family = load(name, base)
    torch.manual_seed(99)
    a, b, c = (list(family.fresh(seed).parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a, c, strict=True))
    assert [p.shape for p in a] == [p.shape for p in family.module.parameters()]


def test_images_of_another_size_are_refused(name: str, base: Path) -> None:
    channels, side, _ = case(name).shape
    with pytest.raises(BadInput, match="works on"):
        load(name, base).hold(torch.zeros(1, channels, side + 1, side, dtype=torch.uint8))


def test_a_sample_depends_on_its_seed_and_class_not_on_its_neighbours(generator_name: str, base: Path) -> None:
    family = load(generator_name, base)
    y, seeds = torch.tensor([0, 1, 2, 3, 0]), [10, 11, 12, 13, 14]
    together = family.sample(y, seeds, sampling=SAMPLING)
    assert together.shape == (5, *case(generator_name).shape)
    assert together.dtype == torch.uint8
    for i in range(5):
        alone = family.sample(y[i : i + 1], seeds[i : i + 1], sampling=SAMPLING)[0]
        # A batch of another size may take another kernel and round a pixel to the next grey level.
        assert int((alone.int() - together[i].int()).abs().max()) <= 1
    assert not torch.equal(together[0], together[4])
    batched = family.sample(y, seeds, sampling=SAMPLING.model_copy(update={"batch_size": 2}))
    assert int((batched.int() - together.int()).abs().max()) <= 1


def test_both_samplers_draw(generator_name: str, base: Path) -> None:
    family = load(generator_name, base)
    both = [
        family.sample(torch.tensor([0, 1]), [1, 2], sampling=Sampling(sampler=sampler, steps=4, guidance_scale=2.0))
        for sampler in ("ddim", "dpm++")
    ]
    assert both[0].shape == both[1].shape
    assert not torch.equal(both[0], both[1])


def test_sampling_refuses_what_it_cannot_mean(generator_name: str, base: Path) -> None:
    family = load(generator_name, base)
    with pytest.raises(BadInput, match="seed"):
        family.sample(torch.tensor([0, 1]), [1], sampling=SAMPLING)
    with pytest.raises(BadInput, match="labels"):
        family.sample(torch.tensor([100_000]), [1], sampling=SAMPLING)
    assert len(family.sample(torch.empty(0, dtype=torch.int64), [], sampling=SAMPLING)) == 0


def test_saved_unchanged_it_has_the_base_s_bytes_of_every_tensor(name: str, base: Path, tmp_path: Path) -> None:
    load(name, base).save(tmp_path / "out", base)
    files = sorted(p.relative_to(base) for p in base.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert any(p.suffix != ".safetensors" for p in files)
    for path in files:
        if path.suffix != ".safetensors":
            assert (base / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
            continue
        before, after = load_file(base / path), load_file(tmp_path / "out" / path)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)


def test_trained_weights_are_what_is_saved(name: str, base: Path, tmp_path: Path) -> None:
    family = load(name, base)
    with torch.no_grad():
        for parameter in family.module.parameters():
            parameter.add_(0.5)
    family.save(tmp_path / "out", base)
    back = load(name, tmp_path / "out")
    pairs = zip(family.module.parameters(), back.module.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_half_precision_base_stays_half_precision(name: str, base: Path, tmp_path: Path) -> None:
    file = weights_of(base, load(name, base))
    edit(file, lambda t: t.update({n: v.half() for n, v in t.items() if v.is_floating_point()}))
    family = load(name, base)
    assert {p.dtype for p in family.module.parameters()} == {torch.float32}
    family.save(tmp_path / "out", base)
    saved = load_file(tmp_path / "out" / file.relative_to(base)).values()
    assert {t.dtype for t in saved if t.is_floating_point()} == {torch.float16}


def test_weights_that_are_not_the_family_s_are_refused_by_name(name: str, base: Path) -> None:
    family = load(name, base)
    file = weights_of(base, family)
    first = sorted(n for n, _ in family.module.named_parameters() if n in load_file(file))[0]
    good = file.read_bytes()

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
        edit(file, change)
        with pytest.raises(BadModel, match=sentence):
            load(name, base)
        file.write_bytes(good)
    file.write_bytes(good[:-100])
    with pytest.raises(BadModel, match="safetensors"):
        load(name, base)


FLOATS = "float16 or bfloat16 or float32 or float64"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_weights_that_are_no_floating_point_numbers_of_16_to_64_bits_are_refused(
    dtype: torch.dtype, name: str, base: Path, tmp_path: Path
) -> None:
    family = load(name, base)
    file = weights_of(base, family)
    first = sorted(n for n, _ in family.module.named_parameters() if n in load_file(file))[0]
    edit(file, lambda t: t.update({first: torch.ones(t[first].shape).to(dtype)}))
    sentence = f"expected {FLOATS} in {first}, found {str(dtype).removeprefix('torch.')}"
    with pytest.raises(BadModel, match=sentence):
        load(name, base)
    with pytest.raises(BadModel, match=sentence):  # nor is what was trained cut down to such a base
        family.save(tmp_path / "out", base)


def test_a_pickle_and_a_second_set_of_weights_are_refused(name: str, base: Path) -> None:
    weights = weights_of(base, load(name, base))
    (weights.parent / "ema.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(BadModel, match=r"\.safetensors"):
        load(name, base)
    (weights.parent / "ema.safetensors").unlink()
    (weights.parent / "extra.bin").write_bytes(b"")
    with pytest.raises(BadModel, match="safetensors weights only"):
        load(name, base)


def test_weights_that_are_not_finite_are_not_saved(name: str, base: Path, tmp_path: Path) -> None:
    family = load(name, base)
    with torch.no_grad():
        next(family.module.parameters())[0] = float("inf")
    with pytest.raises(BadModel, match="finite"):
        family.save(tmp_path / "out", base)
