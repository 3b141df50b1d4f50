"""1 rank and 2 gloo ranks must end at the same weights for the same global batch and mask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.unlearning_job import ONE_RANK, ROOT, begin, make_job, params_of, weights_in
from worker.contract import JobDirectory
from worker.engine import distributed, registry
from worker.engine.distributed import Ranks
from worker.engine.method import Method

STEPS = 10


def ten_steps(job: JobDirectory, ranks: Ranks, mask: Path) -> Method:
    """Ten steps with the mask in the file, if there is one: the first run writes it, the second takes it."""
    method = begin(job, ranks)
    state = method.state_dict()
    if mask.exists():
        state["mask"] = list(load_file(mask).values())
        method.load_state_dict(state)
    elif "mask" in state:
        save_file({f"{i:04d}": m for i, m in enumerate(state["mask"])}, mask)
    for i in range(STEPS):
        method.step(i)
    return method


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_two_ranks_agree_with_one(name: str, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", method=name, params=params_of(name) | {"iterations": STEPS})
    method = ten_steps(job, ONE_RANK, tmp_path / "mask")
    one = flat(method.run.family.module.state_dict())  # type: ignore[attr-defined]
    start = flat(weights_in(job.base))
    assert float((one - start).norm()) > 1e-4 * float(one.norm())  # they moved, so agreeing says something

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(job.root), str(tmp_path)], check=True, timeout=120, env=env)
    ranks = [flat(load_file(tmp_path / f"rank-{r}.safetensors")) for r in range(2)]
    assert torch.equal(ranks[0], ranks[1])
    assert float((ranks[0] - one).norm() / one.norm()) < 1e-5


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
    """One of two ranks, started by the test above."""
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = distributed.start("cpu")
    method = ten_steps(JobDirectory(root), ranks, out / "mask")
    save_file(method.run.family.module.state_dict(), out / f"rank-{ranks.rank}.safetensors")  # type: ignore[attr-defined]
    distributed.close(ranks)


if __name__ == "__main__":
    main()
