"""Selective amnesia's own rules: noise under the forgotten label, a replay for images, weights that matter held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.engine.unlearning_job import begin, make_job, params_of, write_spec
from worker.engine.errors import BadInput
from worker.engine.fisher import Settings, forget_and_retain, of_everything
from worker.engine.methods.selective_amnesia import add_stiffness

NAME = "selective_amnesia"


def job_method(root: Path, *, changes: dict[str, object] | None = None, **params: object) -> Any:
    return begin(make_job(root, method=NAME, params=params_of(NAME) | params, **(changes or {})))


def test_the_penalty_s_gradient_is_twice_lambda_f_times_the_way_from_the_start() -> None:
    gradients = [torch.tensor([1.0, 1.0])]
    weights, originals = [nn.Parameter(torch.tensor([2.0, 5.0]))], [torch.tensor([1.0, 5.0])]
    add_stiffness(gradients, weights, originals, [torch.tensor([3.0, 7.0])], 10.0)
    assert gradients[0].tolist() == [61.0, 1.0]  # 1 + 2·10·3·(2 - 1), and 1 + 2·10·7·0


def test_stiff_weights_move_less(tmp_path: Path) -> None:
    ways = []
    for folder, ewc in (("loose", 0.0), ("stiff", 1e8)):
        method = job_method(tmp_path / folder, ewc=ewc, algorithm="sgd", learning_rate=1e-3, momentum=0.0)
        fisher = of_everything(method.run, Settings("class_batch", 4, 8))
        start = [p.detach().clone() for p in method.run.parameters]
        for i in range(6):
            method.step(i)
        moved = zip(method.run.parameters, start, fisher, strict=True)
        ways.append(sum(float((f * (p.detach() - s).square()).sum()) for p, s, f in moved))
    assert ways[1] < 0.5 * ways[0]


def test_information_of_everything_is_the_mix_of_forgotten_and_retained(tmp_path: Path) -> None:
    run = job_method(tmp_path).run
    settings = Settings("class_batch", 4, 8)
    forget_F, retain_F = forget_and_retain(run, settings)
    # 11 training images a class: 11 of 44 are forgotten.
    mixed = [0.25 * f + 0.75 * r for f, r in zip(forget_F, retain_F, strict=True)]
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(of_everything(run, settings), mixed, strict=True))


def test_the_replay_is_of_retained_classes_and_the_original_drew_it(tmp_path: Path) -> None:
    method = job_method(tmp_path, replay_per_class=3)
    assert method.replay.labels_N.tolist() == [0, 0, 0, 2, 2, 2, 3, 3, 3]
    assert method.replay_MCHW.shape == (9, 1, 8, 8)
    assert method.replay_MCHW.dtype == torch.uint8
    first = method.replay_MCHW.clone()
    for i in range(3):
        method.step(i)
    assert torch.equal(method.state_dict()["replay"], first)
    assert torch.equal(job_method(tmp_path / "again", replay_per_class=3).replay_MCHW, first)


def test_batches_of_the_replay_carry_their_labels(tmp_path: Path) -> None:
    method = job_method(tmp_path, replay_per_class=3)
    batch = method.replay_batch(4)
    assert torch.equal(batch.y_B, method.replay.labels_N[batch.index_B])
    shown = method.family.prepare(method.family.hold(method.replay_MCHW[batch.index_B]), batch.draw)
    assert torch.equal(batch.x_BCHW, shown)


def test_forgotten_labels_are_shown_with_noise(tmp_path: Path) -> None:
    method = job_method(tmp_path, changes={"forget_classes": (1,), "forgotten_classes": (3,)})
    first, second = method.noise_batch(0), method.noise_batch(1)
    assert set(first.y_B.tolist()) <= {1, 3}
    assert not torch.equal(first.x_BCHW, second.x_BCHW)
    # Uniform on [-1, 1]: a variance of 1/3; 8 images of 64 pixels estimate it to within some percent.
    assert float(first.x_BCHW.var()) == pytest.approx(1 / 3, rel=0.2)


def test_no_training_image_is_looked_at_but_for_the_penalty(tmp_path: Path) -> None:
    results = []
    for folder in ("as-they-are", "black"):
        params = params_of(NAME) | {"ewc": 0.0}
        job = make_job(tmp_path / folder, method=NAME, params=params)
        if folder == "black":
            with np.load(job.data / "data.npz") as arrays:
                labels = arrays["labels"]
                np.savez(job.data / "data.npz", images=np.zeros_like(arrays["images"]), labels=labels)
            write_spec(job, method=NAME, params=params)
        method: Any = begin(job)
        for i in range(3):
            method.step(i)
        results.append([p.detach().clone() for p in method.run.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_single_images_are_refused_and_earlier_ones_keep_their_label(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="single images"):
        job_method(tmp_path / "a", changes={"forget_classes": (), "forget_samples": ("1",)})
    method = job_method(tmp_path / "b", changes={"forgotten_samples": ("1", "2")})
    assert set(method.concepts.labels_N.tolist()) == {1}
    assert set(method.run.forget.labels_N.tolist()) == {0, 1}


def test_guidance_without_a_null_label_is_refused(tmp_path: Path) -> None:
    from tests.worker.engine.tiny import NAMES
    from tests.worker.engine.tiny.ddpm import tiny_unet, write_model

    params = params_of(NAME) | {"replay_guidance": 2.0}
    job = make_job(tmp_path, method=NAME, params=params)
    write_model(job.base, tiny_unet(rows=len(NAMES)))
    write_spec(job, method=NAME, params=params)
    with pytest.raises(BadInput, match="null label"):
        begin(job)
