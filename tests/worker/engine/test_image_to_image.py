"""What every image-to-image family must keep: a family of this kind is under test the moment its file exists.

Its tiny model is that of `test_families.py`; what only the family knows, such as where to hook a full forward pass, it tests in
a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.worker.engine.tiny import NAMES, case, families
from tests.worker.engine.unlearning_job import ONE_RANK, begin, make_job, params_of
from worker.contract import MaskSpec, Sampling
from worker.engine import corruption, registry, unlearn
from worker.engine.checkpoint import Cadence
from worker.engine.completion import apart
from worker.engine.errors import BadInput, Integrity
from worker.engine.family import Draw
from worker.engine.stepper import frozen_copy

FAMILIES = [name for name in families() if registry.families()[name].kind == "i2i"]
KINDS = ("center", "outpaint", "strip", "box", "brush", "random_patch")
SAMPLING = Sampling(steps=3, guidance_scale=1.0)

every = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def family(name: str, tmp_path: Path) -> Any:
    case(name).write(tmp_path / "base")
    return load(name, tmp_path / "base")


def load(name: str, folder: Path) -> Any:
    return registry.families()[name].load(folder, labels=NAMES, device=torch.device("cpu"))


def images(name: str, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *case(name).shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def asked(family: Any, name: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Draw]:
    """Images as a network's input, labels, and a draw with noise of the whole image."""
    source, shape = torch.Generator().manual_seed(seed), case(name).shape
    draw = family.draw(count, shape, source, label_drop=0.0)
    noise = family.noise(count, shape, source, scope="image")
    draw = draw if noise is None else Draw(draw.tensors | {"noise": noise})
    return family.prepare(family.hold(images(name, count)), draw), torch.arange(count) % len(NAMES), draw


def grid_of(family: Any, name: str) -> tuple[int, int]:
    return corruption.grid_of(case(name).shape[1:], family.cell)


def masks(family: Any, name: str, seeds: list[int], kind: str = "random_patch", ratio: float = 0.5) -> torch.Tensor:
    return corruption.masks(MaskSpec(kind=kind, ratio=ratio), grid_of(family, name), seeds)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- the encoder


@every
def test_it_has_an_encoder_to_train_and_a_decoder_to_keep(name: str, family: Any) -> None:
    module = family.module
    halves = {module.half_of(n) for n, p in module.named_parameters() if p.requires_grad}
    assert halves == {"encoder"}
    assert "decoder" in {module.half_of(n) for n in module.frozen()}
    assert not {n.split(".")[0] for n, p in module.teacher().named_parameters() if module.half_of(n) == "decoder"}


@every
def test_taps_are_tokens_or_maps_one_row_an_image_with_a_gradient(name: str, family: Any) -> None:
    taps = family.encode(family.question(*asked(family, name, 3)))
    assert taps
    assert all(len(t) == 3 and t.ndim in (3, 4) and t.requires_grad for t in taps)
    apart(taps, [torch.zeros_like(t) for t in taps]).mean().backward()
    named = family.module.named_parameters()
    assert all((p.grad is not None) == p.requires_grad for _, p in named)


@every
def test_the_encoder_reads_nothing_of_the_decoder(name: str, family: Any) -> None:
    question = family.question(*asked(family, name, 2))
    before = [t.clone() for t in family.encode(question)]
    with torch.no_grad():
        for n, tensor in family.module.frozen().items():
            if family.module.half_of(n) == "decoder":
                tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, family.encode(question), strict=True))


@every
def test_the_student_equals_its_teacher_at_the_start(name: str, family: Any) -> None:
    question = family.question(*asked(family, name, 3))
    taught = [t.detach() for t in family.encode(question, module=family.module.teacher())]
    assert apart(family.encode(question), taught).tolist() == [0.0, 0.0, 0.0]


@every
def test_the_same_draw_is_the_same_question_and_another_is_not(name: str, family: Any) -> None:
    x, y, draw = asked(family, name, 3)
    one, again = family.question(x, y, draw), family.question(x, y, draw)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = family.question(x, y, asked(family, name, 3, seed=1)[2])
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every
def test_noise_in_place_of_the_image_makes_the_image_no_matter(name: str, family: Any) -> None:
    x, y, draw = asked(family, name, 3)
    shown = family.question(x, y, draw, noise_in="image")
    blank = family.question(torch.zeros_like(x), y, draw, noise_in="image")
    assert all(torch.equal(a, b) for a, b in zip(shown, blank, strict=True))
    distance = apart(family.encode(shown), family.encode(family.question(x, y, draw)))
    assert bool((distance > 0).all())


@every
def test_a_row_s_question_is_its_own(name: str, family: Any) -> None:
    x, y, draw = asked(family, name, 4)
    whole = family.question(x, y, draw)
    part = family.question(x[1:3], y[1:3], draw.part(slice(1, 3)))
    assert all(torch.equal(a[1:3], b) for a, b in zip(whole, part, strict=True))


# ------------------------------------------------------------------------------------------------ what baselines ask for


@every
def test_a_teacher_can_be_asked_about_another_image_under_the_same_draw(name: str, family: Any) -> None:
    x, y, draw = asked(family, name, 3)
    other = x.roll(1, 0), y.roll(1, 0)
    teacher = frozen_copy(family.module)

    def distance(*given: Any, **options: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = family.distance(*given, draw, teacher=teacher, **options)
        return found

    assert distance(x, y).tolist() == distance(x, y, instead=(x, y)).tolist() == [0.0] * 3
    assert bool((distance(x, y, instead=other) > 0).all())
    # The student still is its teacher: which of the two is asked about which image is no matter.
    assert torch.allclose(distance(x, y, instead=other), distance(*other, instead=(x, y)), rtol=1e-4)


@every
def test_the_loss_to_noise_is_a_loss_of_both_halves_and_another_than_the_loss(name: str, family: Any) -> None:
    x, y, draw = noisy(family, name, 3)
    loss_B = family.loss_to_noise(x, y, draw)
    assert loss_B.shape == (3,)
    assert loss_B.dtype == torch.float32
    assert bool((loss_B > 0).all())
    assert not torch.allclose(loss_B, family.loss(x, y, draw))
    alone = [family.loss_to_noise(x[i : i + 1], y[i : i + 1], draw.part(slice(i, i + 1))) for i in range(3)]
    assert torch.allclose(torch.cat(alone), loss_B, rtol=1e-4)
    family.module.choose("all")
    family.loss_to_noise(x, y, draw).sum().backward()
    halves = {family.module.half_of(n) for n, p in family.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert halves >= {"encoder", "decoder"}


def noisy(family: Any, name: str, count: int) -> tuple[torch.Tensor, torch.Tensor, Draw]:
    """As `asked`, with noise of the hole."""
    x, y, draw = asked(family, name, count)
    noise = family.noise(count, case(name).shape, torch.Generator().manual_seed(6), scope="hole")
    return x, y, draw if noise is None else Draw(draw.tensors | {"noise": noise})


# ------------------------------------------------------------------------------------------------------------ completing


@every
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_visible_is_kept_and_what_is_hidden_is_not_looked_at(kind: str, name: str, family: Any) -> None:
    given, seeds = images(name, 3), [1, 2, 3]
    hidden = masks(family, name, seeds, kind)
    completed = family.complete(given, hidden, seeds, sampling=SAMPLING)
    assert completed.shape == given.shape
    assert completed.dtype == torch.uint8
    covered = corruption.pixels(hidden, family.cell).expand_as(given)
    assert torch.equal(completed[~covered], given[~covered])
    assert not torch.equal(completed[covered], given[covered])
    erased = torch.where(covered, torch.zeros_like(given), given)
    assert torch.equal(family.complete(erased, hidden, seeds, sampling=SAMPLING), completed)


@every
def test_a_completed_image_does_not_depend_on_its_neighbours(name: str, family: Any) -> None:
    given, seeds = images(name, 5), [5, 6, 7, 8, 9]
    hidden = masks(family, name, seeds)
    together = family.complete(given, hidden, seeds, sampling=SAMPLING)
    batched = family.complete(given, hidden, seeds, sampling=SAMPLING.model_copy(update={"batch_size": 2}))
    # A batch of another size may take another kernel and round a pixel to the next grey level.
    assert int((batched.int() - together.int()).abs().max()) <= 1
    alone = family.complete(given[2:3], hidden[2:3], [7], sampling=SAMPLING)[0]
    assert int((alone.int() - together[2].int()).abs().max()) <= 1


@every
def test_completing_refuses_what_it_cannot_mean(name: str, family: Any) -> None:
    given, hidden = images(name, 2), masks(family, name, [1, 2])
    for change in (lambda h: h.fill_(True), lambda h: h.fill_(False)):
        with pytest.raises(BadInput, match="some and not all"):
            family.complete(given, change(hidden.clone()), [1, 2], sampling=SAMPLING)
    with pytest.raises(BadInput, match="seed"):
        family.complete(given, hidden, [1], sampling=SAMPLING)
    with pytest.raises(BadInput, match="works on"):
        family.complete(given[:, :, 1:], hidden, [1, 2], sampling=SAMPLING)
    assert len(family.complete(given[:0], hidden[:0], [], sampling=SAMPLING)) == 0


# -------------------------------------------------------------------------------------------------------- whole runs


def job_of(root: Path, name: str, **params: object) -> Any:
    return make_job(root, family=name, method="encoder_l2", params=params_of("encoder_l2", name) | params)


@every
def test_a_run_changes_the_encoder_and_no_byte_of_anything_else(name: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, name)
    unlearn.run(job, ONE_RANK, cadence=Cadence(), stop_asked=lambda: False)
    before, after = load(name, job.base).module, load(name, job.out).module
    frozen = after.frozen()
    assert all(torch.equal(tensor, frozen[n]) for n, tensor in before.frozen().items())
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for file in job.base.rglob("*.safetensors"):
        saved, was = load_file(job.out / file.relative_to(job.base)), load_file(file)
        names = {n for n, p in before.named_parameters() if p.requires_grad}
        assert all(torch.equal(saved[n], was[n]) for n in was if n not in names)


@every
def test_a_frozen_tensor_that_was_changed_is_an_integrity_error_and_nothing_is_published(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, name)
    method = registry.methods()["encoder_l2"]
    step = method.step

    def leaking(self: Any, iteration: int) -> None:
        step(self, iteration)
        tensor = next(t for n, t in self.run.family.module.frozen().items() if self.run.family.module.half_of(n) == "decoder")
        with torch.no_grad():
            tensor.view(-1)[0] += 1

    monkeypatch.setattr(method, "step", leaking)
    with pytest.raises(Integrity, match="frozen tensors as they were"):
        unlearn.run(job, ONE_RANK, cadence=Cadence(), stop_asked=lambda: False)
    assert not job.out.exists()
    assert not job.manifest.exists()


@every
def test_the_decoder_is_not_asked_in_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method: Any = begin(job_of(tmp_path, name))

    def answered(*_: object) -> None:
        raise AssertionError("the decoder was asked")

    method.run.family.module._answer = answered
    method.step(0)
    method.step(1)
