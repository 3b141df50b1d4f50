"""One guarded update: micro-batches when memory runs out, and no update at all when a number is not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worker.engine import optim
from worker.engine.batch import Batch, Part
from worker.engine.errors import BadInput, Diverged, OutOfMemory
from worker.engine.events import Events
from worker.engine.family import Draw
from worker.engine.method import Params
from worker.engine.methods.sfron import adaptive_weights
from worker.engine.run import Run

FEATURES, ROWS = 6, 10


class Device:
    """Memory for so many rows of a forward pass, and a record of those that fitted."""

    def __init__(self, rows: int, error: Exception | None = None) -> None:
        self.rows, self.seen = rows, []  # type: ignore[var-annotated]
        self.error = error or torch.OutOfMemoryError("no memory for so many rows")

    def squared_error(self, batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        """A rows function whose loss is strictly positive, as the adaptive weights need it."""
        if len(batch.y_B) > self.rows:
            raise self.error
        self.seen.append(len(batch.y_B))
        loss_B = (module(batch.x_BCHW).squeeze(1) - batch.y_B).square()
        return loss_B, loss_B


def make_run(root: Path, *, world: int = 1, module: nn.Module | None = None, **params: Any) -> Run:
    """A run of a linear network; only what `descend` touches is real."""
    torch.manual_seed(1)
    network = module or nn.Linear(FEATURES, 1)
    nothing: Any = None
    return Run(
        spec=nothing,
        params=Params.model_validate({"precision": "fp32", **params}),
        family=SimpleNamespace(module=network),  # type: ignore[arg-type]
        dataset=nothing,
        ranks=SimpleNamespace(world=world, device=torch.device("cpu"), max_=lambda t: t, sum_=lambda t: t),  # type: ignore[arg-type]
        forget=nothing,
        retain=nothing,
        module=network,
        held_N=nothing,
        labels_N=nothing,
        events=Events(root / "events.jsonl", "test", speaks=True),
        cache=root,
    )


def batch_of(count: int, seed: int = 2) -> Batch:
    source = torch.Generator().manual_seed(seed)
    x_BF, y_B = torch.randn(count, FEATURES, generator=source), torch.randn(count, generator=source) + 3
    return Batch(x_BF, y_B, Draw({"row": torch.arange(count)}), torch.arange(count), count)


def adaptive(loss_B: Tensor) -> Tensor:
    return adaptive_weights(loss_B, temperature=1.0)


def updated(run: Run, parts: list[Part], **options: Any) -> Tensor:
    """All weights, flat, after one update by plain SGD."""
    optimizer = optim.make("sgd", run.parameters, learning_rate=0.05, momentum=0.0)
    run.descend(parts, optimizer, step=0, **options)
    return torch.cat([p.detach().flatten() for p in run.parameters])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------------------------------------------------ out of memory


@pytest.mark.parametrize("weigh", [None, adaptive], ids=["mean", "adaptive"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_update_is_the_same(
    weigh: Callable[[Tensor], Tensor] | None, tmp_path: Path
) -> None:
    small, large = Device(3), Device(ROWS)
    run = make_run(tmp_path)
    cut = updated(run, [Part(batch_of(ROWS), small.squared_error, weigh, 2.0)], clip=1.0)
    whole = updated(make_run(tmp_path), [Part(batch_of(ROWS), large.squared_error, weigh, 2.0)], clip=1.0)
    assert run.gradients.micro == 3  # 10 -> 5 -> 3 (halves are rounded up)
    assert max(small.seen) == 3
    assert large.seen == [ROWS]
    assert relative(cut, whole) < 1e-6


CPU_WORDS = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(CPU_WORDS)], ids=["host", "cpu"])
def test_a_cpu_that_runs_out_of_memory_halves_the_batch_too(error: Exception, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    updated(run, [Part(batch_of(ROWS), Device(5, error).squared_error)])
    assert run.gradients.micro == 5


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        updated(
            make_run(tmp_path), [Part(batch_of(ROWS), Device(5, RuntimeError("shapes cannot be multiplied")).squared_error)]
        )


def test_weights_of_a_micro_batch_alone_would_give_another_update(tmp_path: Path) -> None:
    # What the normaliser over the whole batch is for: without it each cut of three rows would get a weight of 1.
    losses = Device(ROWS).squared_error(batch_of(ROWS), make_run(tmp_path).module)[1]
    cuts = torch.cat([adaptive(part) for part in losses.split(3)])
    assert relative(cuts / cuts.sum(), adaptive(losses)) > 0.01


def test_parts_of_different_sizes_are_cut_alike(tmp_path: Path) -> None:
    def parts(device: Device) -> list[Part]:
        return [Part(batch_of(8), device.squared_error, adaptive), Part(batch_of(3, seed=4), device.squared_error, scale=0.5)]

    cut = updated(make_run(tmp_path), parts(Device(4)))
    whole = updated(make_run(tmp_path), parts(Device(8)))
    assert relative(cut, whole) < 1e-6


def test_later_updates_keep_the_size_that_fitted_and_it_is_told_once(tmp_path: Path) -> None:
    device, run = Device(5), make_run(tmp_path)
    part = Part(batch_of(ROWS), device.squared_error)
    for _ in range(3):
        updated(run, [part])
    assert device.seen == [5, 5] * 3
    assert (tmp_path / "events.jsonl").read_text().count('"micro_batch":5') == 1


def test_masks_edits_and_clips_see_the_whole_batch_s_gradient(tmp_path: Path) -> None:
    def gradient(device: Device) -> Tensor:
        seen: list[Tensor] = []
        updated(
            make_run(tmp_path),
            [Part(batch_of(ROWS), device.squared_error)],
            edit=lambda gradients: seen.extend(g.clone().flatten() for g in gradients),
        )
        return torch.cat(seen)

    assert relative(gradient(Device(2)), gradient(Device(ROWS))) < 1e-6


def test_a_single_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = [p.detach().clone() for p in run.parameters]
    with pytest.raises(OutOfMemory, match="single image"):
        updated(run, [Part(batch_of(ROWS), Device(0).squared_error)])
    assert all(torch.equal(b, p) for b, p in zip(before, run.parameters, strict=True))


def test_one_of_several_ranks_does_not_cut_on_its_own(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="one of 2 ranks"):
        updated(make_run(tmp_path, world=2), [Part(batch_of(ROWS), Device(4).squared_error)])


# --------------------------------------------------------------------------------------------------------------- not finite


def test_a_nan_in_one_micro_batch_stops_the_whole_update(tmp_path: Path) -> None:
    run, batch = make_run(tmp_path), batch_of(ROWS)
    run.gradients.micro = 3
    batch.y_B[4] = float("nan")  # in the second of four
    before = [p.detach().clone() for p in run.parameters]
    optimizer = optim.make("adam", run.parameters, learning_rate=0.1)
    with pytest.raises(Diverged) as caught:
        run.descend([Part(batch, Device(3).squared_error)], optimizer, step=7)
    assert caught.value.step == 7
    assert all(torch.equal(b, p) for b, p in zip(before, run.parameters, strict=True))


def test_once_spoiled_no_later_update_moves_a_weight_and_the_first_step_is_told(tmp_path: Path) -> None:
    # An accelerator does not wait: updates after the failed one are queued before anybody looks.
    run, batch = make_run(tmp_path), batch_of(ROWS)
    run.check = lambda: None  # type: ignore[method-assign]
    batch.y_B[0] = float("inf")
    before = [p.detach().clone() for p in run.parameters]
    optimizer = optim.make("sgd", run.parameters, learning_rate=0.1)
    for step, dealt in ((3, batch), (4, batch_of(ROWS)), (5, batch)):
        run.descend([Part(dealt, Device(ROWS).squared_error)], optimizer, step=step)
    assert all(torch.equal(b, p) for b, p in zip(before, run.parameters, strict=True))
    with pytest.raises(Diverged) as caught:
        Run.check(run)
    assert caught.value.step == 3


def test_a_nan_behind_the_mask_is_seen(tmp_path: Path) -> None:
    run, batch = make_run(tmp_path), batch_of(ROWS)
    batch.x_BCHW[0, 2] = float("nan")
    mask = [torch.zeros_like(p, dtype=torch.bool) for p in run.parameters]
    with pytest.raises(Diverged):
        updated(run, [Part(batch, Device(ROWS).squared_error)], mask=mask)


def test_an_edit_that_is_not_finite_stops_the_update(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = [p.detach().clone() for p in run.parameters]

    def spoil(gradients: list[Tensor]) -> None:
        gradients[0][0] = float("inf")

    with pytest.raises(Diverged):
        updated(run, [Part(batch_of(ROWS), Device(ROWS).squared_error)], edit=spoil)
    assert all(torch.equal(b, p) for b, p in zip(before, run.parameters, strict=True))


# --------------------------------------------------------------------------------------------------------------- BatchNorm


def test_statistics_of_its_own_for_every_rank_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 ranks"):
        make_run(tmp_path, world=2, module=nn.BatchNorm1d(FEATURES), batch_norm="train")
    make_run(tmp_path, world=2, batch_norm="train")  # a network without BatchNorm has none to disagree about
    make_run(tmp_path, world=2, module=nn.BatchNorm1d(FEATURES), batch_norm="frozen")


class Normalised(nn.Module):
    """One output of normalised features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        result: Tensor = self.out(self.norm(x_BF))
        return result


def test_a_batch_whose_statistics_are_taken_is_not_halved(tmp_path: Path) -> None:
    # Pieces have other statistics than the whole, and would move the running ones once each.
    part = Part(batch_of(ROWS), Device(5).squared_error)
    trained = make_run(tmp_path, module=Normalised().eval(), batch_norm="train")
    with pytest.raises(OutOfMemory, match=r"batch of 10 images.* expected a smaller batch_size, or batch_norm 'frozen'"):
        updated(trained, [part])
    frozen = make_run(tmp_path, module=Normalised().eval())
    updated(frozen, [part])
    assert frozen.gradients.micro == 5
    plain = make_run(tmp_path, batch_norm="train")  # without BatchNorm there is nothing to spoil
    updated(plain, [part])
    assert plain.gradients.micro == 5


def test_an_update_moves_the_running_statistics_once_a_batch(tmp_path: Path) -> None:
    network = Normalised().eval()
    run, batch = make_run(tmp_path, module=network, batch_norm="train"), batch_of(ROWS)
    updated(run, [Part(batch, Device(ROWS).squared_error, adaptive)])
    assert network.norm.num_batches_tracked == 1
    assert torch.allclose(network.norm.running_mean, 0.1 * batch.x_BCHW.mean(0))  # from 0, at momentum 0.1
    assert not network.norm.training
