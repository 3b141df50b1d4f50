"""2 gloo ranks that each hold a part of every weight must end where 1 rank ends, and write what 1 rank would write."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.worker.engine import sharded_job
from tests.worker.engine.sharded_job import PAIRS, SETTINGS, alone, looped, params_for, state_of
from tests.worker.engine.tiny.ddpm import tiny_unet
from tests.worker.engine.tiny.dit import tiny_dit
from tests.worker.engine.unlearning_job import ONE_RANK, ROOT, begin, make_job, params_of
from worker.engine import loop, sharding
from worker.engine.errors import BadInput
from worker.engine.families.dit import tie


@dataclass(frozen=True)
class Launch:
    """One start of torchrun that did everything: importing torch takes each start seconds."""

    folder: Path
    log: str

    def read(self, *path: str) -> dict[str, Tensor]:
        file = self.folder.joinpath(*path)
        assert file.is_file(), self.log[-4000:]
        return load_file(file)


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("sharded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone(folder)
    finally:
        torch.set_num_threads(threads)
    program = str(Path(sharded_job.__file__))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    return Launch(folder, done.stdout + done.stderr)


# ------------------------------------------------------------------------------------------------------------------- the rules


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


@pytest.mark.timeout(600)
def test_every_check_of_the_launch_passed_on_both_ranks(launch: Launch) -> None:
    assert all((launch.folder / f"done-{r}").is_file() for r in range(2)), launch.log[-4000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "family"), [*PAIRS, ("sfron", "cut")], ids=["-".join(p) for p in (*PAIRS, ("sfron", "cut"))])
def test_two_sharded_ranks_agree_with_one(name: str, family: str, launch: Launch) -> None:
    folder = f"{name}-{family}"
    start, one, *ranks = (flat(launch.read(folder, f"{f}.safetensors")) for f in ("start", "one", "rank-0", "rank-1"))
    assert float((one - start).norm()) > 1e-4 * float(one.norm())  # they moved, so agreeing says something
    assert torch.equal(ranks[0], ranks[1])
    # float32 in another order of sums: how far apart that is differs between processors
    assert float((ranks[0] - one).norm() / one.norm()) < 5e-5
    assert float((launch.folder / folder / "apart-rank-0").read_text()) < 0.01


@pytest.mark.timeout(600)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_fisher_information_is_the_same_however_many_ranks_take_a_batch_together(
    family: str, settings: str, launch: Launch
) -> None:
    folder = f"fisher-{family}"
    one = launch.read(folder, f"fisher-{settings}-measured-one")
    for rank, turn in itertools.product(range(2), ("measured", "cached")):
        found = launch.read(folder, f"fisher-{settings}-{turn}-rank-{rank}")
        for part in ("forget", "retain"):
            assert float(one[part].norm()) > 0
            assert float((found[part] - one[part]).norm() / one[part].norm()) < 1e-4  # squares double a relative error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_a_sharded_run_that_was_stopped_ends_at_the_bits_of_one_that_was_not(family: str, launch: Launch) -> None:
    folders = (launch.folder / f"{name}-{family}" / "out" for name in ("unbroken", "broken"))
    unbroken, broken = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert unbroken, launch.log[-4000:]
    assert broken == unbroken


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_the_saved_folder_is_that_of_one_rank_but_for_rounding(family: str, launch: Launch) -> None:
    sharded, one = (launch.folder / f"{name}-{family}" / "out" for name in ("unbroken", "whole"))
    assert sorted(p.relative_to(sharded) for p in sharded.rglob("*")) == sorted(p.relative_to(one) for p in one.rglob("*"))
    for file in one.rglob("*.safetensors"):
        a, b = load_file(sharded / file.relative_to(one)), load_file(file)
        assert {n: (t.dtype, t.shape) for n, t in a.items()} == {n: (t.dtype, t.shape) for n, t in b.items()}
        # Each has a mask of its own here, in which a rounding may tip a weight: looser than with a mask given.
        assert float((flat(a) - flat(b)).norm() / flat(b).norm()) < 1e-3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_a_step_checkpoint_may_be_read_by_the_other_kind_of_run(family: str, launch: Launch, tmp_path: Path) -> None:
    folder = f"either-{family}"
    written = launch.read(folder, "written-by-one")
    for rank in range(2):
        read = launch.read(folder, f"read-by-rank-{rank}")
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], written[name]) for name in written)
    sharded = launch.read(folder, "written-by-rank-0")
    job = make_job(tmp_path, family=family, params=params_for("sfron"))
    ready, method = looped(job, ONE_RANK)
    (launch.folder / folder / "shared").rename(ready.steps)
    assert loop.resume(ready, method) == 2
    mine = state_of(ready, method)
    assert mine.keys() == sharded.keys()
    assert all(torch.equal(mine[name], sharded[name]) for name in sharded)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_two_ranks_hold_half_of_the_weights_each(family: str, launch: Launch) -> None:
    shares = [float((launch.folder / f"either-{family}" / f"held-rank-{r}").read_text()) for r in range(2)]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.55  # rows that do not divide by two go to the first rank


# One row takes 100 of 130 bytes and each further one 10: three more than the first fit into 30, but not into 29.
@pytest.mark.parametrize(("limit", "rows"), [(130, 4), (129, 3), (100, 1), (90, 1)])
def test_as_many_rows_fit_as_memory_has_room_for(limit: int, rows: int) -> None:
    assert sharding.rows_that_fit(100, 110, limit=limit) == rows


# ------------------------------------------------------------------------------------------------------ when, and by what units


def test_auto_shards_only_what_does_not_fit_on_accelerators() -> None:
    # 25 bytes a weight in 80 % of 100 bytes: 3 weights fit (75 <= 80), 4 do not (100 > 80).
    def auto(**changes: Any) -> bool:
        return sharding.wanted("auto", **({"world": 2, "trainable": 4, "memory": 100, "able": True} | changes))

    assert auto()
    assert not auto(trainable=3)
    assert not auto(world=1)
    assert not auto(memory=None)
    assert not auto(able=False)
    assert not sharding.wanted("replicated", world=2, trainable=4, memory=100, able=True)
    assert sharding.wanted("sharded", world=2, trainable=1, memory=None, able=True)


@pytest.mark.parametrize(("world", "able", "found"), [(1, True, "found one"), (2, False, "not built for this method")])
def test_sharding_that_cannot_be_had_is_refused(world: int, able: bool, found: str) -> None:
    with pytest.raises(BadInput, match=found):
        sharding.wanted("sharded", world=world, trainable=1, memory=None, able=able)


def test_a_job_for_one_rank_that_asks_for_shards_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, params=params_of("sfron") | {"sharding": "sharded"})
    with pytest.raises(BadInput, match="needs several ranks"):
        begin(job)


def test_units_are_blocks_and_what_blocks_share() -> None:
    dit = tiny_dit()
    tie(dit)
    embedder, *blocks = sharding.units(dit)
    assert embedder is dit.transformer_blocks[0].norm1.emb
    assert blocks == list(dit.transformer_blocks)
    unet = tiny_unet()
    assert sharding.units(unet) == [*unet.down_blocks, *unet.up_blocks, *unet.mid_block.resnets]


def test_a_parameter_shared_across_blocks_leaves_the_network_whole() -> None:
    network = nn.Module()
    network.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert sharding.units(network) == list(network.blocks)
    network.blocks[1].weight = network.blocks[0].weight
    assert sharding.units(network) == []
