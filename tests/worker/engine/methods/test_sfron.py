"""SFR-on's own rules: the adaptive weights, the mask, the half-steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine.errors import BadInput
from worker.engine.methods.sfron import SFRon, adaptive_weights, gamma_of, saliency
from worker.engine.optim import decayed


def job_method(root: Path, **params: object) -> SFRon:
    method = begin(make_job(root, params=params_of("sfron") | params))
    assert isinstance(method, SFRon)
    return method


def test_at_temperature_zero_all_samples_weigh_alike() -> None:
    w = adaptive_weights(torch.tensor([0.1, 5.0, 0.0, 2.0]), temperature=0.0)
    assert torch.allclose(w, torch.full((4,), 0.25))


def test_the_weights_are_the_inverse_power_of_the_loss() -> None:
    # lambda 0.5 on losses 1 and 4: powers 1 and 1/2, so 2/3 and 1/3.
    w = adaptive_weights(torch.tensor([1.0, 4.0]), temperature=0.5)
    assert torch.allclose(w, torch.tensor([2 / 3, 1 / 3]))


def test_the_weights_do_not_depend_on_the_scale_of_the_loss() -> None:
    loss = torch.tensor([0.3, 1.1, 7.0])
    assert torch.allclose(adaptive_weights(loss, temperature=1.3), adaptive_weights(loss * 1000, temperature=1.3))


def test_an_exact_zero_does_not_take_all_the_weight() -> None:
    # Mean 1/2; the floor lifts 0 to 1e-4 of it, so the relative losses are 1e-4 and 2; their inverse roots 100 and 0.7071.
    w = adaptive_weights(torch.tensor([0.0, 1.0]), temperature=0.5)
    assert w[1] == pytest.approx(0.70711 / 100.70711, rel=1e-4)
    assert torch.isfinite(adaptive_weights(torch.zeros(3), temperature=2.0)).all()


def test_no_gradient_flows_through_the_weights() -> None:
    loss = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not adaptive_weights(loss, temperature=0.5).requires_grad


def test_the_normaliser_runs_over_all_ranks() -> None:
    whole = torch.tensor([0.2, 0.9, 3.0, 1.0])
    parts = whole.chunk(2)
    # What `add` would return on each rank: the sum over both parts of the same quantity.
    powers = [(p / whole.mean()).pow(-0.5).sum() for p in parts]
    answers = iter([whole.sum(), torch.tensor(4.0), powers[0] + powers[1]])
    first = adaptive_weights(parts[0], temperature=0.5, add=lambda _: next(answers))
    assert torch.allclose(first, adaptive_weights(whole, temperature=0.5)[:2])


def test_a_coordinate_that_neither_set_moves_is_salient_up_to_gamma_one() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    assert bool(saliency([zero], [zero], gamma=1.0)[0])
    assert not bool(saliency([zero], [zero], gamma=1.1)[0])
    assert bool(saliency([one], [one], gamma=1.0)[0])
    assert not bool(saliency([zero], [one], gamma=1.0)[0])


def test_a_share_finds_the_gamma_that_leaves_so_many_weights_salient() -> None:
    # Ratios 4, 1, 3, 2: the upper half begins at 3.
    forget, remain = [torch.tensor([4.0, 1.0]), torch.tensor([3.0, 2.0])], [torch.ones(2), torch.ones(2)]
    gamma = gamma_of(forget, remain, share=0.5)
    assert gamma == pytest.approx(3.0)
    assert [m.tolist() for m in saliency(forget, remain, gamma=gamma)] == [[True, False], [True, False]]
    assert gamma_of(forget, remain, share=1e-9) == pytest.approx(4.0)  # never none


def test_the_decays_start_at_one_and_fall_as_drawn() -> None:
    assert [decayed("cosine", i, 4) for i in (0, 2)] == pytest.approx([1.0, 0.5])
    assert [decayed("linear", i, 4) for i in (0, 1, 3)] == [1.0, 0.75, 0.25]
    assert [decayed("constant", i, 4) for i in (0, 3)] == [1.0, 1.0]


@pytest.mark.parametrize("forget_loss", ["relabel", "ascent"])
def test_with_two_optimizers_a_forget_step_leaves_masked_out_weights_bit_identical(tmp_path: Path, forget_loss: str) -> None:
    method = job_method(tmp_path, forget_loss=forget_loss)
    method.step(0)  # the remain optimizer has momentum now
    before = [p.detach().clone() for p in method.run.parameters]
    method.forget_step(1)
    after = [p.detach() for p in method.run.parameters]
    assert all(torch.equal(b[~m], a[~m]) for b, a, m in zip(before, after, method.mask, strict=True))
    assert any(not torch.equal(b[m], a[m]) for b, a, m in zip(before, after, method.mask, strict=True))
    assert any(bool((~m).any()) for m in method.mask)


def test_with_a_shared_optimizer_momentum_moves_masked_out_weights(tmp_path: Path) -> None:
    method = job_method(tmp_path, optimizer="shared")
    method.step(0)
    before = [p.detach().clone() for p in method.run.parameters]
    method.forget_step(1)
    moved = zip(before, method.run.parameters, method.mask, strict=True)
    assert any(not torch.equal(b[~m], p.detach()[~m]) for b, p, m in moved)


@pytest.mark.parametrize("forget_loss", ["relabel", "ascent"])
def test_forget_steps_raise_the_loss_of_the_forgotten_class(tmp_path: Path, forget_loss: str) -> None:
    method = job_method(tmp_path, forget_loss=forget_loss, gamma=0.0, learning_rate=2e-3, iterations=20, alpha_decay="constant")

    def objective() -> float:
        batch = method.run.batch(method.run.forget, 99, 16)
        forgets, loss = method.forget_rows(batch, method.run.module)
        return float((adaptive_weights(loss, temperature=0.5) * forgets).sum().detach())

    before = objective()
    for i in range(15):
        method.forget_step(i)
    assert objective() < before


def test_a_forget_step_comes_before_every_kth_remain_step(tmp_path: Path) -> None:
    method = job_method(tmp_path, forget_every=3)
    seen: list[tuple[str, int]] = []
    method.forget_step = lambda i: seen.append(("forget", i))  # type: ignore[method-assign]
    method.remain_step = lambda i: seen.append(("remain", i))  # type: ignore[method-assign]
    for i in range(4):
        method.step(i)
    assert seen == [("forget", 0), ("remain", 0), ("remain", 1), ("remain", 2), ("forget", 3), ("remain", 3)]


def test_every_image_to_forget_is_seen_once_before_any_is_seen_twice(tmp_path: Path) -> None:
    method = job_method(tmp_path, forget_every=3, batch_size=4)
    seen: list[int] = []
    method.remain_step = lambda i: None  # type: ignore[method-assign]
    method.run.descend = lambda parts, *rest, **named: seen.extend(parts[0].batch.index_B.tolist())  # type: ignore[method-assign]
    images = len(method.run.forget.indices_N)
    for i in range(3 * (images // 4)):
        method.step(i)
    assert len(seen) == images // 4 * 4
    assert len(set(seen)) == len(seen)


def test_an_image_of_the_only_retained_class_cannot_be_pulled_to_another(tmp_path: Path) -> None:
    job = make_job(tmp_path, forget_classes=(), forget_samples=("1",), forgotten_classes=(1, 2, 3))
    with pytest.raises(BadInput, match="none"):
        begin(job)


def test_the_streams_hold_training_images_of_their_classes_only(tmp_path: Path) -> None:
    job = make_job(tmp_path, forget_classes=(1,), forgotten_classes=(3,))
    run = begin(job).run  # type: ignore[attr-defined]
    assert set(run.forget.labels_N.tolist()) == {1, 3}
    assert set(run.retain.labels_N.tolist()) == {0, 2}
    held_out = {0, 12, 24, 36}
    assert not held_out & set(torch.cat([run.forget.indices_N, run.retain.indices_N]).tolist())
