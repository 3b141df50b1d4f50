"""1 rank and 2 gloo ranks must end at the same weights for the same global batch and the same preparation."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.unlearning_job import ITERATIONS, ONE_RANK, ROOT, RUNS, begin, make_job, write_spec
from worker.contract import JobDirectory
from worker.engine import checkpoint, distributed
from worker.engine.distributed import Ranks

KEY = "key"


def stepped(job: JobDirectory, ranks: Ranks) -> tuple[Any, float]:
    """The method after its steps, and how much of its preparation differs from the first run's: that one is kept and taken.

    Sums over ranks round differently, and a rounding may decide on which side of a threshold a weight falls.
    """
    method: Any = begin(job, ranks)
    mine, apart = method.state_dict(), 0.0
    if checkpoint.newest(job.steps, KEY) is None:
        checkpoint.save(job.steps, 0, mine, KEY)
        save_file(weights_of(method), job.root / "start.safetensors")
    else:
        given = checkpoint.load(job.steps, 0)
        apart = share_apart(mine, given)
        method.load_state_dict(given)
    for i in range(ITERATIONS):
        method.step(i)
    return method, apart


def share_apart(mine: dict[str, Any], given: dict[str, Any]) -> float:
    """The largest share of a prepared tensor's values that differ by more than rounding: masks, replayed images, Fisher."""
    shares = [0.0]
    for name in mine.keys() & {"mask", "replay", "fisher"}:
        a, b = (torch.cat([t.flatten().float().cpu() for t in tensors_in(state[name])]) for state in (mine, given))
        near = torch.isclose(a, b, rtol=1e-3, atol=1.0 if name == "replay" else 1e-9)
        shares.append(float((~near).float().mean()))
    return max(shares)


def tensors_in(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def weights_of(method: Any) -> dict[str, torch.Tensor]:
    return {name: t.contiguous().clone() for name, t in method.run.family.module.state_dict().items()}


@dataclass(frozen=True)
class Launch:
    """One start of torchrun that worked on every run: importing torch takes each start seconds."""

    folder: Path
    log: str


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("two-ranks")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for asked in RUNS:
            one_rank(folder / asked, asked)
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    return Launch(folder, done.stdout + done.stderr)


def one_rank(folder: Path, asked: str) -> None:
    """Leave the weights before and after the steps, the preparation, and a spec for two ranks."""
    job = make_job(folder, **RUNS[asked])
    method, _ = stepped(job, ONE_RANK)
    save_file(weights_of(method), folder / "one.safetensors")
    write_spec(job, **RUNS[asked], ranks=2)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("asked", RUNS)
def test_two_ranks_agree_with_one(asked: str, launch: Launch) -> None:
    folder = launch.folder / asked
    files = [folder / f"rank-{r}.safetensors" for r in range(2)]
    assert all(f.is_file() for f in files), launch.log[-4000:]
    start, one, *ranks = (flat(load_file(f)) for f in (folder / "start.safetensors", folder / "one.safetensors", *files))
    assert float((one - start).norm()) > 1e-4 * float(one.norm())  # they moved, so agreeing says something
    assert torch.equal(ranks[0], ranks[1])
    assert float((ranks[0] - one).norm() / one.norm()) < 1e-5
    assert all(float((folder / f"apart-{r}").read_text()) < 0.01 for r in range(2))


def test_the_ranks_share_every_row_of_a_batch_once() -> None:
    for world, count in ((1, 7), (2, 7), (3, 8), (4, 4)):
        parts = [Ranks(r, world, torch.device("cpu")).rows(count) for r in range(world)]
        assert [i for p in parts for i in range(p.start, p.stop)] == list(range(count))
        assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1


def test_without_torchrun_there_is_one_rank_and_no_group() -> None:
    ranks = distributed.start("cpu", env={"OMP_NUM_THREADS": "1"})
    assert (ranks.rank, ranks.world, ranks.device.type) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()
    assert ranks.any(True)
    assert not ranks.any(torch.tensor(False))


def main() -> None:
    """One of two ranks, started by the fixture above."""
    folder = Path(sys.argv[1])
    ranks = distributed.start("cpu")
    torch.set_num_threads(1)
    for asked in RUNS:
        job = JobDirectory(folder / asked)
        method, apart = stepped(job, ranks)
        save_file(weights_of(method), job.root / f"rank-{ranks.rank}.safetensors")
        (job.root / f"apart-{ranks.rank}").write_text(str(apart))
    distributed.close(ranks)


if __name__ == "__main__":
    main()
