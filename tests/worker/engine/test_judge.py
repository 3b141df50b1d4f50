from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JudgePolicy, Policy, document_digest
from worker.engine import judge
from worker.engine.data import Dataset, load_dataset
from worker.engine.errors import JudgeUnfit
from worker.engine.judge_networks import FIRST, SECOND, WATCHER, Seat

POLICY = JudgePolicy(epochs=6)
CPU = torch.device("cpu")
DIGEST = "a" * 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    job = vj.make_job(tmp_path_factory.mktemp("job"), vj.patterns())
    return load_dataset(job, job.read_spec())


@pytest.fixture(scope="module")
def cached(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    judges = tmp_path_factory.mktemp("judges")
    judge.obtain(dataset, DIGEST, POLICY, judges, CPU)
    return judges


def files(judges: Path) -> tuple[Path, Path]:
    (folder,) = judges.iterdir()
    return folder / "judge.safetensors", folder / "judge.json"


def copy_of(judges: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(judges, tmp_path / "judges"))


def weights_of(network: nn.Module) -> bytes:
    return safetensors.torch.save({k: v.contiguous() for k, v in network.state_dict().items()})


def test_judge_recognises_held_out_images_it_never_saw(dataset: Dataset, cached: Path) -> None:
    expert, origin = judge.obtain(dataset, DIGEST, POLICY, cached, CPU)
    assert expert.record.held_out_accuracy >= 0.97
    assert expert.record.held_out_n == vj.K * vj.HELD_OUT
    assert origin.startswith("cached")


def test_held_out_images_and_labels_do_not_touch_the_weights(dataset: Dataset) -> None:
    images, labels = dataset.images_NCHW.clone(), dataset.labels_N.clone()
    images[dataset.held_out_N] = 255 - images[dataset.held_out_N]
    labels[dataset.held_out_N] = (labels[dataset.held_out_N] + 1) % vj.K
    poisoned = dataclasses.replace(dataset, images_NCHW=images, labels_N=labels)
    policy = JudgePolicy(epochs=1)
    assert weights_of(judge.train(dataset, policy, CPU)) == weights_of(judge.train(poisoned, policy, CPU))
    # The same poison in the training part does: the comparison can fail.
    labels = dataset.labels_N.clone()
    labels[~dataset.held_out_N] = (labels[~dataset.held_out_N] + 1) % vj.K
    other = dataclasses.replace(dataset, labels_N=labels)
    assert weights_of(judge.train(dataset, policy, CPU)) != weights_of(judge.train(other, policy, CPU))


def test_cache_key_names_everything_that_decides_the_weights(dataset: Dataset) -> None:
    held = dataset.held_out_N.clone()
    held[0] = True
    keys = {
        judge.cache_key(dataset, DIGEST, POLICY),
        judge.cache_key(dataset, "b" * 64, POLICY),
        judge.cache_key(dataset, DIGEST, JudgePolicy(epochs=7)),
        judge.cache_key(dataclasses.replace(dataset, held_out_N=held), DIGEST, POLICY),
        judge.cache_key(dataclasses.replace(dataset, class_names=vj.NAMES[::-1]), DIGEST, POLICY),
        judge.cache_key(dataclasses.replace(dataset, images_NCHW=dataset.images_NCHW[:, :, :4]), DIGEST, POLICY),
    }
    assert len(keys) == 6


def test_cached_judge_with_changed_weights_is_refused_and_trained_again(dataset: Dataset, cached: Path, tmp_path: Path) -> None:
    honest, _ = judge.obtain(dataset, DIGEST, POLICY, cached, CPU)
    judges = copy_of(cached, tmp_path)
    weights, _ = files(judges)
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    expert, origin = judge.obtain(dataset, DIGEST, POLICY, judges, CPU)
    assert "does not match its record" in origin
    assert expert.record == honest.record
    assert weights.read_bytes() == files(cached)[0].read_bytes()


def test_cached_judge_that_lies_with_a_matching_digest_is_refused(dataset: Dataset, cached: Path, tmp_path: Path) -> None:
    # The poisoner rewrites the record too; only measuring again shows that this judge never says "columns".
    import hashlib

    judges = copy_of(cached, tmp_path)
    weights, record = files(judges)
    tensors = safetensors.torch.load(weights.read_bytes())
    tensors["classes.bias"][vj.FORGET] = -1e4
    poisoned = safetensors.torch.save(tensors)
    weights.write_bytes(poisoned)
    told = json.loads(record.read_text()) | {"sha256": hashlib.sha256(poisoned).hexdigest()}
    record.write_text(json.dumps(told))
    expert, origin = judge.obtain(dataset, DIGEST, POLICY, judges, CPU)
    assert "right on 75.0%" in origin  # one class of four is lost
    assert expert.record.held_out_accuracy >= 0.97


@pytest.mark.parametrize("content", [b"", b"not json", b"{}"])
def test_cached_record_that_is_no_record_is_refused(dataset: Dataset, cached: Path, tmp_path: Path, content: bytes) -> None:
    judges = copy_of(cached, tmp_path)
    files(judges)[1].write_bytes(content)
    _, origin = judge.obtain(dataset, DIGEST, POLICY, judges, CPU)
    assert "malformed" in origin


def test_judge_below_the_required_accuracy_is_unfit(dataset: Dataset, tmp_path: Path) -> None:
    labels = torch.randint(0, vj.K, dataset.labels_N.shape, generator=torch.Generator().manual_seed(0))
    unlearnable = dataclasses.replace(dataset, labels_N=labels)
    with pytest.raises(JudgeUnfit, match=r"at least 95\.0%"):
        judge.obtain(unlearnable, DIGEST, JudgePolicy(epochs=1), tmp_path, CPU)


def test_judge_without_held_out_images_of_a_class_is_unfit(dataset: Dataset, tmp_path: Path) -> None:
    held = dataset.held_out_N & (dataset.labels_N != 2)
    with pytest.raises(JudgeUnfit, match="none of 'diagonal'"):
        judge.obtain(dataclasses.replace(dataset, held_out_N=held), DIGEST, JudgePolicy(epochs=1), tmp_path, CPU)


@pytest.mark.parametrize("seat", [FIRST, SECOND])
@pytest.mark.parametrize(
    ("channels", "side", "wide"), [(1, 8, 8), (3, 9, 9), (1, 28, 28), (3, 64, 64), (3, 8, 64), (1, 33, 17)]
)
def test_judge_takes_any_supported_image_size(channels: int, side: int, wide: int, seat: Seat) -> None:
    images = torch.randint(0, 256, (6, channels, side, wide), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    held = torch.tensor([False, False, False, False, True, True])
    data = Dataset(images, torch.tensor([0, 1, 0, 1, 0, 1]), tuple("abcdef"), ("x", "y"), held)
    network = judge.train(data, JudgePolicy(epochs=1), CPU, None, seat)
    assert judge.accuracy(network, data, CPU)[1] == 2
    _, features_BF = network(torch.zeros(2, channels, side, wide))
    assert features_BF.shape == (2, judge.FEATURES)


def test_judge_refuses_sizes_it_was_not_made_for() -> None:
    data = Dataset(
        torch.zeros(2, 1, 7, 7, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), ("x", "y"), torch.tensor([False, False])
    )
    with pytest.raises(JudgeUnfit, match="sides of 8-64"):
        judge.train(data, JudgePolicy(epochs=1), CPU)


def test_policies_that_ask_for_one_judge_keep_their_digests_and_its_cached_weights() -> None:
    """Both digests were computed before there was a second judge."""
    data = Dataset(
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), ("x", "y"), torch.tensor([False, True])
    )
    key = "e6fbf64be3edd70df7d8fceb7652319c99305b62699d8cbcf2b87990904c3c0a"
    assert judge.cache_key(data, DIGEST, JudgePolicy()) == key
    assert judge.cache_key(data, DIGEST, JudgePolicy(judges=2)) == key  # beside another it learns what it would alone
    assert judge.cache_key(data, DIGEST, JudgePolicy(slack=0.01)) == key  # and whatever is thought of its mistakes
    policy = Policy(name="p", checks=(Check(verifier="integrity"),))
    assert document_digest(policy) == "971b1c6572b26730e8e9e1b11242509ece605a59583920b159bae9918fb3b8f5"
    assert document_digest(policy.model_copy(update={"judge": JudgePolicy(judges=2)})) != document_digest(policy)


def test_every_seat_has_a_seed_and_a_cache_entry_of_its_own(dataset: Dataset) -> None:
    seats = (FIRST, SECOND, WATCHER)
    assert len({judge.cache_key(dataset, DIGEST, POLICY, None, seat) for seat in seats}) == 3
    assert len({seat.seed(9_001) for seat in seats}) == 3
    assert FIRST.seed(9_001) == 9_001
    assert all(0 <= seat.seed(policy) < 2**56 for seat in seats for policy in (0, 1, 2**53))


def test_the_second_judge_learns_another_way_as_well_and_the_same_every_time(dataset: Dataset, tmp_path: Path) -> None:
    expert, origin = judge.obtain(dataset, DIGEST, POLICY, tmp_path, CPU, seat=SECOND)
    assert origin.startswith("trained")
    assert expert.record.held_out_accuracy >= 0.97
    assert weights_of(judge.train(dataset, POLICY, CPU, None, SECOND)) == weights_of(expert.network)
    again, origin = judge.obtain(dataset, DIGEST, POLICY, tmp_path, CPU, seat=SECOND)
    assert origin.startswith("cached")
    assert again.record == expert.record
    assert not {type(m) for m in expert.network.modules()} & {torch.nn.BatchNorm2d, torch.nn.MaxPool2d}  # no copy of the first
