"""The example that is shipped: small, whole, honest about what it held out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.worker.engine.unlearning_job import ROOT
from worker.contract import Sampling
from worker.engine.families.ddpm import DDPM
from worker.examples.digits import train
from worker.examples.digits.__main__ import lay_out
from worker.examples.digits.data import held_out_indices, scans

DIGITS = ROOT / "worker" / "examples" / "digits"


def test_one_command_lays_it_out_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys, runpy; sys.argv = ['x', sys.argv[1]]; runpy.run_module('worker.examples.digits', run_name='__main__');"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["family"] == "ddpm"
    assert len(answer["class_names"]) == 10
    assert Path(answer["dataset"], "digits.npz").is_file()
    assert Path(answer["model"], "config.json").is_file()


def test_the_data_are_the_scans_in_full_range_with_every_held_out_id(tmp_path: Path) -> None:
    answer = lay_out(tmp_path)
    with np.load(tmp_path / "dataset" / "digits.npz", allow_pickle=False) as arrays:
        images, labels, ids = arrays["images"], arrays["labels"], arrays["ids"]
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    held_out = answer["held_out_ids"]
    assert isinstance(held_out, list)
    assert set(held_out) <= set(ids.tolist())
    assert len(held_out) == 360  # a fifth of 1797, rounded up
    counts = np.bincount(labels[np.isin(ids, held_out)], minlength=10)
    # Stratified: a class has 174 to 183 scans, a fifth of which is 34.8 to 36.6.
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_the_shipped_ids_are_those_that_training_leaves_out() -> None:
    ids = scans()[2]
    shipped = json.loads((DIGITS / "held_out_ids.json").read_text())
    assert shipped == ids[held_out_indices()].tolist()
    assert len(train.training_scans()[0]) == 1797 - 360


def test_the_weights_are_small_float32_and_the_ones_that_the_script_builds() -> None:
    assert sum(p.stat().st_size for p in (DIGITS / "model").iterdir()) <= 3_000_000
    weights = load_file(next((DIGITS / "model").glob("*.safetensors")))
    assert {t.dtype for t in weights.values()} == {torch.float32}
    built = train.build().state_dict()
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in built.items()}


def test_its_samples_look_like_their_class() -> None:
    """Nearest mean training image: a plain judge that recognises 90 % of the held-out scans themselves."""
    family = DDPM.load(DIGITS / "model", labels=[str(k) for k in range(10)], device=torch.device("cpu"))
    x, y = train.training_scans()
    means = torch.stack([x[y == k].mean(0).flatten() for k in range(10)])
    labels = torch.arange(10).repeat_interleave(10)
    images = family.sample(labels, list(range(100)), sampling=Sampling())
    nearest = torch.cdist(images.float().div(127.5).sub(1).flatten(1), means).argmin(1)
    assert float((nearest == labels).float().mean()) >= 0.85
