from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.worker.engine import verification_job as vj
from worker.contract import JudgePolicy, MaskSpec
from worker.engine import corruption, judge
from worker.engine.data import Dataset, load_dataset
from worker.engine.errors import BadInput, JudgeUnfit
from worker.engine.region import Region

KINDS = ("center", "outpaint", "strip", "box", "brush", "random_patch")
CPU = torch.device("cpu")
POLICY = JudgePolicy(epochs=6)


def region(kind: str, ratio: float = 0.25, cell: int = 2) -> Region:
    return Region(MaskSpec(kind=kind, ratio=ratio), cell)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    job = vj.make_job(tmp_path_factory.mktemp("job"), vj.patterns())
    return load_dataset(job, job.read_spec())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_visible_is_seen_and_everything_hidden_is(kind: str) -> None:
    part, shape = region(kind), (3, 8, 8)
    hidden_Bhw = part.of_ids(["a", "b", "c"], shape)
    x_BCHW = torch.randn(3, *shape)
    seen = part.seen(x_BCHW, hidden_Bhw)
    assert tuple(seen.shape[1:]) == part.seen_shape(shape)
    covered = corruption.pixels(hidden_Bhw, part.cell).expand_as(x_BCHW)
    other = torch.where(covered, x_BCHW, torch.randn(3, *shape))
    assert torch.equal(part.seen(other, hidden_Bhw), seen)
    values = seen[:, :3][seen[:, 3:].bool().expand(-1, 3, -1, -1)]
    assert torch.equal(values.sort().values, x_BCHW[covered].sort().values)
    assert bool((seen[:, :3][~seen[:, 3:].bool().expand(-1, 3, -1, -1)] == 0).all())


def test_a_rectangle_is_cut_out_wherever_it_lies() -> None:
    part, shape = region("box"), (1, 8, 8)
    assert part.seen_shape(shape) == (2, 4, 4)
    hidden_Bhw = part.of_ids([str(i) for i in range(20)], shape)
    assert len({m.numpy().tobytes() for m in hidden_Bhw}) > 3
    x_BCHW = torch.arange(64.0).view(1, 1, 8, 8).expand(20, 1, 8, 8)
    for hidden_hw, seen_CHW in zip(hidden_Bhw, part.seen(x_BCHW, hidden_Bhw), strict=True):
        covered = corruption.pixels(hidden_hw[None], 2)[0, 0]
        assert torch.equal(seen_CHW[0], x_BCHW[0, 0][covered].view(4, 4))


def test_large_regions_are_averaged_down() -> None:
    part = Region(MaskSpec(kind="center", ratio=0.25), 16)
    assert part.seen_shape((3, 224, 224)) == (4, 56, 56)  # the hole is 112 pixels wide, and 2 of them are averaged
    hidden_Bhw = part.of_ids(["a"], (3, 224, 224))
    seen = part.seen(torch.ones(1, 3, 224, 224), hidden_Bhw)
    assert torch.equal(seen, torch.ones(1, 4, 56, 56))


def test_an_item_s_mask_is_its_own_and_the_same_every_time() -> None:
    part, shape = region("random_patch", 0.5), (1, 8, 8)
    one, two = part.of_ids(["a", "b"], shape)
    assert torch.equal(part.of_ids(["b", "a"], shape), torch.stack([two, one]))
    assert not torch.equal(one, two)


def test_a_mask_that_hides_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="hides none"):
        region("center", 0.01).of_ids(["a"], (1, 8, 8))


# ------------------------------------------------------------------------------------------------------------ the judge


@pytest.mark.parametrize("kind", ["center", "random_patch"])
def test_a_judge_recognises_hidden_parts_and_is_cached_by_what_is_hidden(kind: str, dataset: Dataset, tmp_path: Path) -> None:
    part = region(kind, 0.5)
    expert, origin = judge.obtain(dataset, "a" * 64, POLICY, tmp_path, CPU, part)
    assert origin.startswith("trained")
    assert expert.record.held_out_accuracy >= 0.95
    assert judge.obtain(dataset, "a" * 64, POLICY, tmp_path, CPU, part)[1].startswith("cached")
    keys = {
        judge.cache_key(dataset, "a" * 64, POLICY, r)
        for r in (None, part, region(kind, 0.25), dataclasses.replace(part, cell=1))
    }
    assert len(keys) == 4
    index_N = dataset.held_out_of([vj.FORGET])
    ids = [dataset.ids[i] for i in index_N.tolist()]
    images_NCHW, hidden_Nhw = dataset.images_NCHW[index_N], part.of_ids(ids, dataset.image_shape)
    covered = corruption.pixels(hidden_Nhw, part.cell)
    only_hidden = torch.where(covered, images_NCHW, 0)
    assert torch.equal(expert.look(only_hidden, hidden_Nhw).features_ND, expert.look(images_NCHW, hidden_Nhw).features_ND)
    only_visible = torch.where(covered, 128, images_NCHW)
    assert float((expert.look(only_visible, hidden_Nhw).predicted_N == vj.FORGET).double().mean()) in (0.0, 1.0)


def test_a_judge_that_cannot_tell_hidden_parts_is_unfit_and_says_of_what(dataset: Dataset, tmp_path: Path) -> None:
    blank = dataclasses.replace(dataset, images_NCHW=dataset.images_NCHW.clone())
    blank.images_NCHW[:, :, 2:6, 2:6] = 0  # nothing is to be seen in the middle
    with pytest.raises(JudgeUnfit, match=r"held-out real images, hidden by center 0\.25 in cells of 2, got 25\.0% of 200"):
        judge.obtain(blank, "b" * 64, JudgePolicy(epochs=1, min_accuracy=0.5), tmp_path, CPU, region("center"))
