"""The benchmark of image-to-image unlearning runs, measures models by one yardstick, and trusts none it did not make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks import bench_i2i
from tests.benchmarks.i2i import rows, subjects, tasks, training
from tests.benchmarks.i2i.completions import Side, side, underpowered
from tests.benchmarks.sfron.jobs import device
from worker.engine.likeness import Likeness
from worker.engine.verifiers.retain_completion import distance_ratio


def seen(distance: float, hits: int, n: int = 40) -> Likeness:
    """Completions that are all at one distance from the truth, of which some show the class."""
    row_N = torch.full((n,), distance, dtype=torch.float64)
    return Likeness(torch.arange(n) < hits, row_N, row_N / 10, row_N, row_N)


def test_every_class_has_one_part_in_a_split() -> None:
    for splits in (subjects.CIFAR_SPLITS, subjects.DIGIT_SPLITS):
        for split in splits.values():
            assert (len(split.forget), len(split.retain), len(split.proxy)) == (4, 4, 2)
            assert sorted(split.forget + split.retain + split.proxy) == list(range(10))


def test_both_ways_of_retaining_are_verified_on_the_same_classes() -> None:
    split = subjects.CIFAR_SPLITS["interleaved"]
    assert split.real.real == 1
    assert split.stand_in.real == 0
    assert split.real.proxy_classes == split.stand_in.proxy_classes == split.proxy


def test_a_never_seen_model_is_trained_on_no_forgotten_image() -> None:
    images = subjects.random_images(8, 1, train=3, held_out=2)
    left = images.training(without=(1, 4))
    assert set(left.labels.tolist()) == set(range(10)) - {1, 4}
    assert not left.held_out.any()
    assert len(left.ids) == 8 * 3


def test_more_digits_are_held_out_of_every_class_alike() -> None:
    images = subjects.digit_images()
    held = [int((images.held_out & (images.labels == k)).sum()) for k in range(10)]
    assert min(held) >= 0.39 * 174  # the rarest digit has 174 scans
    assert max(held) <= 0.41 * 183


def test_the_ratio_weighs_classes_alike() -> None:
    # Means over classes: before (2 + 4) / 2 = 3, after (3 + 3) / 2 = 3, though one class has four times the images.
    before, after = {0: seen(2, 0, 10), 1: seen(4, 0, 40)}, {0: seen(3, 0, 10), 1: seen(3, 0, 40)}
    value, _, upper = distance_ratio(before, after, resamples=1000, rng=np.random.default_rng(0))
    assert value == pytest.approx(1.0)
    assert upper == pytest.approx(1.0)  # all images of a class are alike: resampling changes nothing
    assert side(after, (0, 1)).n == 50


def test_power_is_asked_of_the_lower_bound() -> None:
    # 32 of 160 never seen: .2. The original at .4 is bounded from below by .335, above .3; at .35 by .288.
    never = Side(32, 160, *[0.0] * 4)
    assert not underpowered(Side(64, 160, *[0.0] * 4), never)
    assert underpowered(Side(56, 160, *[0.0] * 4), never)


def _score(ratio: float, above: float) -> Mapping[str, float]:
    return {"retain_distance_ratio": ratio, "above_never_seen": above}


def test_no_credit_for_less_than_never_seen() -> None:
    assert rows._as_good(_score(1.01, -0.05), _score(1.02, -0.3))
    assert not rows._as_good(_score(1.01, 0.02), _score(1.02, -0.3))
    assert not rows._as_good(_score(1.03, -0.05), _score(1.02, 0.1))
    assert rows._as_good(_score(0.9, 0.0), _score(0.8, 0.0))  # nor for retaining more than there was


def test_a_kept_model_is_made_again_when_it_is_not_what_was_kept(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "weights").write_text("as trained")

    first = training.kept(tmp_path, {"seed": 1}, make)
    again = training.kept(tmp_path, {"seed": 1}, make)
    assert (first.kept, again.kept, len(made)) == (False, True, 1)
    assert not training.kept(tmp_path, {"seed": 2}, make).kept
    (first.folder / "weights").write_text("another")
    assert not training.kept(tmp_path, {"seed": 1}, make).kept
    assert (first.folder / "weights").read_text() == "as trained"


def test_a_family_without_its_data_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    found = bench_i2i.of_family("mae", "quick", ["quality"], tmp_path, device())
    assert "EXPUNGE_DATA" in found["not_measured"]
    assert [found[key] for key in bench_i2i.KEYS] == [None] * len(bench_i2i.KEYS)
    assert {word for _, _, word in bench_i2i.verdicts("mae", found)} == {"not measured"}


@pytest.mark.slow
@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_the_smallest_size_measures_all_there_is(family: str, tmp_path: Path) -> None:
    found = bench_i2i.of_family(family, "smoke", bench_i2i.PARTS, tmp_path, device())
    assert all(found[key] is not None for key in bench_i2i.KEYS)
    assert found["frozen_unchanged"] is True
    assert found["loss_difference"] <= 1e-3
    assert set(found["rows"]) == {*tasks.METHODS, rows.NEVER}
    assert found["plain_peak_memory_mb"] > found["peak_memory_mb"] > 0
