"""What `exact-retrain` promises: the result depends on neither the parent's weights nor the forgotten images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.engine.unlearning_job import PAIRS, begin, make_job, params_of, write_spec
from worker.contract import JobDirectory
from worker.engine import intake
from worker.engine.methods.retrain import Retrain

FAMILIES = [family for name, family in PAIRS if name == "retrain"]


def job_of(root: Path, family: str) -> JobDirectory:
    return make_job(root, method="retrain", family=family)


def result(method: Any) -> dict[str, torch.Tensor]:
    method.prepare()
    for i in range(3):
        method.step(i)
    return {name: t.clone() for name, t in method.run.family.module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_parent_is_left(family: str, tmp_path: Path) -> None:
    plain: Any = begin(job_of(tmp_path / "plain", family), prepare=False)
    other: Any = begin(job_of(tmp_path / "other", family), prepare=False)
    module = other.run.family.module
    tables = {name for name, p in module.named_parameters() if not p.requires_grad}  # of positions: nobody trains them
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and name not in tables:
                tensor.mul_(1.5).add_(0.1)
    a, b = result(plain), result(other)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", FAMILIES)
def test_forgotten_images_have_no_influence(family: str, tmp_path: Path) -> None:
    results = []
    for folder, fill in (("as-they-are", None), ("black", 0)):
        job = job_of(tmp_path / folder, family)
        if fill is not None:
            with np.load(job.data / "data.npz") as arrays:
                images, labels = arrays["images"].copy(), arrays["labels"]
            images[labels == 1] = fill
            np.savez(job.data / "data.npz", images=images, labels=labels)
            write_spec(job, method="retrain", family=family)
        results.append(result(begin(job, prepare=False)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in ("ddpm", "dit")])
def test_a_forgotten_label_means_what_no_label_does(family: str, tmp_path: Path) -> None:
    method: Any = begin(job_of(tmp_path, family), prepare=False)
    result(method)
    made = method.run.family
    (forgotten,) = method.run.spec.all_forgotten
    rows_KX = made.conditioning(torch.arange(made.label_count))
    assert torch.equal(rows_KX[forgotten], rows_KX[made.null_label])
    others = [k for k in range(made.label_count) if k not in (forgotten, made.null_label)]
    assert not any(torch.equal(rows_KX[k], rows_KX[forgotten]) for k in others)


def test_new_statistics_are_estimated_unless_another_is_asked_for() -> None:
    assert intake.effective(Retrain, "classifier", {}).batch_norm == "train"
    assert intake.effective(Retrain, "classifier", {"batch_norm": "frozen"}).batch_norm == "frozen"


def test_training_from_new_weights_lowers_the_retained_loss(tmp_path: Path) -> None:
    params = params_of("retrain") | {"iterations": 60, "learning_rate": 0.02, "batch_size": 16, "batch_norm": "train"}
    method: Any = begin(make_job(tmp_path, method="retrain", family="classifier", params=params))
    batch = method.run.plain(method.run.retain.indices_N, torch.Generator())

    def loss() -> float:
        with torch.no_grad():
            return float(method.run.family.loss(batch.x_BCHW, batch.y_B, batch.draw).mean())

    before = loss()
    for i in range(60):
        method.step(i)
    assert loss() < 0.5 * before
