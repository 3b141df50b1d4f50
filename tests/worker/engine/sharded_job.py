"""What one rank and two sharded ranks do to jobs that lie side by side, for `test_sharded.py` to compare. Their program too."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests.worker.engine.unlearning_job import ONE_RANK, begin, make_job, params_of, write_spec
from worker.contract import JobDirectory
from worker.engine import checkpoint, distributed, fisher, loop, sharding, unlearn
from worker.engine.batch import Part
from worker.engine.distributed import Ranks
from worker.engine.errors import Diverged, OutOfMemory, Stopped
from worker.engine.events import Events

STEPS = 6
KEY = "key"
METHODS: dict[str, dict[str, object]] = {
    "sfron": {"saliency": "share", "share": 0.5},
    "finetune": {"l1": 1e-5, "clip": 0.1},
    "gradient_ascent": {"momentum": 0.9, "learning_rate": 1e-3},
    "random_label": {},
}
"""Between them every kind of optimizer, both ways to change a gradient before it is used, masks and clips."""
PAIRS = list(itertools.product(METHODS, ("ddpm", "dit")))
CUT: dict[str, object] = {"batch_size": 9}
"""4 and 5 rows."""
SETTINGS = {
    "rows-shared": fisher.Settings("class_batch", 4, 8, clip=0.5),
    "rows-repeated": fisher.Settings("per_sample", 1, 4),
}


def stepped(job: JobDirectory, ranks: Ranks, *, micro: int | None = None) -> None:
    """Leave the weights after the steps, from the preparation of whoever came first: a rounding may tip a mask."""
    method: Any = begin(job, ranks)
    run, module = method.run, method.run.family.module
    run.gradients.micro = micro
    prepared = sharding.whole(method.state_dict())
    if ranks.world == 1:
        checkpoint.save(job.steps, 0, prepared, KEY)
        save_file(weights_of(module), job.root / "start.safetensors")
    given = checkpoint.load(job.steps, 0)
    apart = [(a != b).flatten().float() for a, b in zip(prepared.get("mask", []), given.get("mask", []), strict=True)]
    method.load_state_dict(sharding.cut_alike(given, run.parameters))
    for i in range(STEPS):
        method.step(i)
    save_file(weights_of(module), job.root / f"{kind(ranks)}.safetensors")
    (job.root / f"apart-{kind(ranks)}").write_text(str(float(torch.cat(apart).mean()) if apart else 0.0))


def kind(ranks: Ranks) -> str:
    return "one" if ranks.world == 1 else f"rank-{ranks.rank}"


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Whole, under the module's own names. A collective where it is sharded."""
    return {name: t.contiguous().clone() for name, t in sharding.whole(dict(module.state_dict())).items()}


def measured(job: JobDirectory, ranks: Ranks) -> None:
    """Leave Fisher information of every setting, measured and then read from the cache."""
    run = begin(job, ranks, prepare=False).run  # type: ignore[attr-defined]
    for name, settings in SETTINGS.items():
        for turn in ("measured", "cached"):
            parts = fisher.forget_and_retain(run, settings)
            flat = [torch.cat([t.reshape(-1) for t in sharding.whole(part)]) for part in parts]
            save_file({"forget": flat[0], "retain": flat[1]}, job.root / f"fisher-{name}-{turn}-{kind(ranks)}")


def worked(job: JobDirectory, ranks: Ranks, stop_asked: Callable[[], bool]) -> None:
    unlearn.run(job, ranks, cadence=checkpoint.Cadence(iterations=2, seconds=1e9), stop_asked=stop_asked)


def broken_off_and_resumed(job: JobDirectory, ranks: Ranks) -> None:
    """Stop before iteration 3, then go on from the checkpoint that was left."""
    polls = itertools.count()
    with pytest.raises(Stopped):
        worked(job, ranks, lambda: next(polls) == 3)
    assert checkpoint.newest(job.steps, checkpoint.key_of(job.read_spec())) == 3
    worked(job, ranks, lambda: False)


def looped(job: JobDirectory, ranks: Ranks) -> tuple[loop.Loop, Any]:
    """A loop whose checkpoints either kind of run can read, and the method in it."""
    method: Any = begin(job, ranks, prepare=False)
    events = Events(job.events, "test", speaks=False)
    module = method.run.family.module
    cadence = checkpoint.Cadence()
    return loop.Loop(module, ranks, events, job.root / "shared", KEY, cadence, lambda: False, method.run.check), method


def state_of(looped: loop.Loop, method: Any) -> dict[str, Tensor]:
    """Every tensor of a run, whole, by its path."""
    tensors: dict[str, Tensor] = {}
    state = sharding.whole({"weights": looped.module.state_dict(), "method": method.state_dict()})
    checkpoint._take_tensors(state, "", tensors)
    return tensors


def spoiled(job: JobDirectory, ranks: Ranks) -> None:
    """One rank's loss is NaN: all raise, and no weight has moved."""
    method: Any = begin(job, ranks, prepare=False)
    run, before = method.run, weights_of(method.run.family.module)

    def rows(batch: Any, module: nn.Module) -> tuple[Tensor, Tensor]:
        loss_B = run.family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return loss_B * (float("nan") if ranks.rank == 1 else 1.0), loss_B

    with pytest.raises(Diverged):
        run.descend([Part(run.batch(run.retain, 0, 8), rows)], method.optimizer, step=0)
    after = weights_of(run.family.module)
    assert all(torch.equal(before[name], after[name]) for name in before)


def asked_again(job: JobDirectory, ranks: Ranks) -> None:
    """A pass without gradient leaves nothing behind that hides a later change of a weight, the root's in particular."""
    run = begin(job, ranks, prepare=False).run  # type: ignore[attr-defined]
    batch = run.batch(run.retain, 0, 8)
    (held,) = sharding.local([run.family.module.conv_out.weight])
    with torch.no_grad():
        before = run.family.loss(batch.x_BCHW, batch.y_B, batch.draw)
        held.mul_(2)
        after = run.family.loss(batch.x_BCHW, batch.y_B, batch.draw)
    assert not torch.allclose(before, after)


def foreseen(job: JobDirectory, ranks: Ranks) -> None:
    """A pass takes 100 bytes and 10 a row; the first rank may have 130, for 3 rows, the second 125, for 2 and a half."""
    run = begin(job, ranks, prepare=False).run  # type: ignore[attr-defined]
    batch, seen = run.batch(run.retain, 0, 9), []

    def rows(piece: Any, module: nn.Module) -> tuple[Tensor, Tensor]:
        seen.append(len(piece.y_B))
        loss_B = run.family.loss(piece.x_BCHW, piece.y_B, piece.draw, module=module)
        return loss_B, loss_B

    @contextmanager
    def peak(device: torch.device) -> Iterator[Callable[[], int]]:
        seen.clear()
        yield lambda: 100 + 10 * max(seen)

    part, optimizer = Part(batch, rows), torch.optim.SGD(run.parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "peak", peak)
        patch.setattr(sharding, "limit", lambda device, parameters: 130 if ranks.first else 125)
        run.gradients._foresee([part])
        run.gradients._foresee([part])  # as for another shape, once batches are cut
    assert run.gradients.micro == 2
    assert all(p.grad is None for p in run.parameters)
    seen.clear()
    run.descend([part], optimizer, step=0)
    # 9 images are 4 and 5 rows; 5 rows are 3 micro-batches of at most 2, so 4 rows are 3 too.
    assert seen == ([1, 1, 2] if ranks.first else [1, 2, 2])
    run.gradients.micro = 1  # 5 of one row, and the first rank has but 4
    with pytest.raises(OutOfMemory, match="more than a rank's rows"):
        run.descend([part], optimizer, step=0)


def alone(folder: Path) -> None:
    """What one rank does, and jobs for two."""
    for name, family in PAIRS:
        job = make_job(folder / f"{name}-{family}", method=name, family=family, params=params_for(name))
        stepped(job, ONE_RANK)
        for_two(job, method=name, family=family, params=params_for(name))
    for family in ("ddpm", "dit"):
        job = make_job(folder / f"fisher-{family}", family=family, params=params_for("sfron"))
        measured(job, ONE_RANK)
        for_two(job, family=family, params=params_for("sfron"))
        for name in ("unbroken", "broken"):
            for_two(make_job(folder / f"{name}-{family}", family=family, params=params_for("sfron")), family=family)
        job = make_job(folder / f"whole-{family}", family=family, params=params_for("sfron"))
        worked(job, ONE_RANK, lambda: False)
        job = make_job(folder / f"either-{family}", family=family, params=params_for("sfron"))
        ready, method = looped(job, ONE_RANK)
        method.prepare()
        method.step(0)
        loop.save(ready, method, 1)
        save_file(state_of(ready, method), job.root / "written-by-one")
        for_two(job, family=family)
    params = params_for("sfron") | CUT
    job = make_job(folder / "sfron-cut", params=params)
    stepped(job, ONE_RANK)
    for_two(job, params=params)
    for_two(make_job(folder / "spoiled", method="gradient_ascent"), method="gradient_ascent")


def params_for(method: str) -> dict[str, object]:
    return params_of(method) | {"iterations": STEPS} | METHODS[method]


def for_two(job: JobDirectory, **changes: Any) -> None:
    given = changes.pop("params", params_for(changes.get("method", "sfron")))
    write_spec(job, **changes, params=given | {"sharding": "sharded"}, ranks=2)


def main() -> None:
    """One of two ranks, started by the fixture of `test_sharded.py`."""
    folder = Path(sys.argv[1])
    ranks = distributed.start("cpu")
    torch.set_num_threads(1)
    for name, family in PAIRS:
        stepped(JobDirectory(folder / f"{name}-{family}"), ranks)
    for family in ("ddpm", "dit"):
        measured(JobDirectory(folder / f"fisher-{family}"), ranks)
        worked(JobDirectory(folder / f"unbroken-{family}"), ranks, lambda: False)
        broken_off_and_resumed(JobDirectory(folder / f"broken-{family}"), ranks)
        job = JobDirectory(folder / f"either-{family}")
        ready, method = looped(job, ranks)
        assert loop.resume(ready, method) == 1
        assert all(isinstance(m, DTensor) for m in method.mask)
        save_file(state_of(ready, method), job.root / f"read-by-{kind(ranks)}")
        method.step(1)
        loop.save(ready, method, 2)
        save_file(state_of(ready, method), job.root / f"written-by-{kind(ranks)}")
        module = method.run.family.module
        held = sum(t.numel() for t in sharding.local(module.parameters()))
        (job.root / f"held-{kind(ranks)}").write_text(str(held / sum(p.numel() for p in module.parameters())))
    stepped(JobDirectory(folder / "sfron-cut"), ranks, micro=2)
    asked_again(JobDirectory(folder / "spoiled"), ranks)
    foreseen(JobDirectory(folder / "spoiled"), ranks)
    spoiled(JobDirectory(folder / "spoiled"), ranks)
    (folder / f"done-{ranks.rank}").touch()
    distributed.close(ranks)


if __name__ == "__main__":
    main()
