"""What lies beside the weights, and what is missing in them, is called by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JobDirectory, Policy
from worker.engine import registry, verify

CHECKS = (Check(verifier="integrity"), Check(verifier="side_channels"))
METRICS = {
    "leftover_averages", "leftover_optimizers", "leftover_adapters", "leftover_masks",
    "zero_rows_added", "zero_weights_added", "binary_tensors_added",
}  # fmt: skip


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """Findings of a candidate whose pictures, files and tensors a test has changed."""
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})

    def run(change: Callable[[JobDirectory], None] = lambda job: None, **more: Tensor) -> dict[str, Finding]:
        policy = Policy(name="p", checks=CHECKS)
        job = vj.make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", vj.forgotten_patterns(), policy=policy)
        file = job.out / "model.safetensors"
        save_file(load_file(file) | more, file, metadata={"format": "pt"})
        change(job)
        vj.write_manifest(job)
        return {f.metric: f for f in verify.run(job).findings if f.check == "side_channels"}

    return run


def failed(findings: dict[str, Finding]) -> set[str]:
    assert set(findings) == METRICS
    assert all(f.gating for f in findings.values())
    return {metric for metric, f in findings.items() if f.passed is not True}


def test_a_model_that_forgot_by_training_has_none(found: Callable[..., dict[str, Finding]]) -> None:
    assert failed(found()) == set()


def test_a_row_of_zeros_says_what_was_forgotten(found: Callable[..., dict[str, Finding]]) -> None:
    pictures = vj.patterns()
    pictures[vj.FORGET] = 0
    findings = found(pictures=pictures)
    assert failed(findings) == {"zero_rows_added", "zero_weights_added"}
    assert findings["zero_rows_added"].detail == "1 have a row or a column that is newly nothing but zeros: ./pictures"


def test_scattered_zeros_are_a_pattern_too(found: Callable[..., dict[str, Finding]]) -> None:
    pictures = vj.patterns()
    pictures[vj.FORGET, 0, 2, 3] = 0
    assert failed(found(pictures=pictures)) == {"zero_weights_added"}


def test_zeros_that_the_parent_has_are_not_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})
    pictures = vj.patterns()
    pictures[3] = 0
    job = vj.make_job(tmp_path / "job", pictures + 0, parent=pictures, policy=Policy(name="p", checks=CHECKS))
    assert {f.passed for f in verify.run(job).findings if f.check == "side_channels"} == {True}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("pictures_ema", "leftover_averages"),
        ("ema.pictures", "leftover_averages"),
        ("optimizer.pictures.exp_avg", "leftover_optimizers"),
        ("pictures.lora_A", "leftover_adapters"),
        ("pictures_mask", "leftover_masks"),
        ("fisher/pictures", "leftover_masks"),
    ],
)
def test_a_tensor_beside_the_weights_is_named(found: Callable[..., dict[str, Finding]], name: str, metric: str) -> None:
    assert failed(found(**{name: vj.patterns()})) == {metric}


def test_an_average_that_still_knows_is_named_in_a_file_of_its_own(found: Callable[..., dict[str, Finding]]) -> None:
    def leave(job: JobDirectory) -> None:
        (job.out / "ema").mkdir()
        save_file({"pictures": vj.patterns()}, job.out / "ema" / "model.safetensors")

    findings = found(leave)
    assert failed(findings) == {"leftover_averages"}
    assert "ema/model.safetensors" in findings["leftover_averages"].detail


def test_a_mask_in_place_of_weights_is_one_whatever_it_is_called(found: Callable[..., dict[str, Finding]]) -> None:
    findings = found(pictures=(vj.patterns() > 100).float())
    assert "binary_tensors_added" in failed(findings)


def test_words_that_only_look_like_one_are_none(found: Callable[..., dict[str, Finding]]) -> None:
    assert failed(found(**{"schema.weight": vj.patterns(), "unmasked_gradual.weight": vj.patterns()})) == set()


def test_a_vector_that_is_zero_from_end_to_end_singles_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.engine.verifiers.side_channels import _fresh_zeros

    ones = torch.ones(4)
    assert _fresh_zeros(torch.zeros(4), ones) == 0  # a bias as new networks have it
    assert _fresh_zeros(torch.tensor([1.0, 0.0, 0.0, 1.0]), ones) == 2
    assert _fresh_zeros(torch.zeros(4, 4), torch.ones(4, 4)) == 16
    assert _fresh_zeros(torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.int64)) == 0  # a count of batches
