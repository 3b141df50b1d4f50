"""bf16 is for forward and backward passes: what is kept stays float32, and an update goes the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine.tiny import families
from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine.fisher import Settings, forget_and_retain
from worker.engine.methods.sfron import SFRon


def stepped(root: Path, family: str, precision: str) -> tuple[Any, Tensor]:
    """SFR-on after one iteration, and how its weights moved. Plain SGD: Adam's first step has the size of no gradient."""
    asked = {"precision": precision, "algorithm": "sgd", "gamma": 0.0}
    method: Any = begin(make_job(root, family=family, params=params_of("sfron", family) | asked))
    before = torch.cat([p.detach().flatten() for p in method.run.parameters])
    method.step(0)
    return method, torch.cat([p.detach().flatten() for p in method.run.parameters]) - before


@pytest.mark.parametrize("family", sorted(set(families()) & set(SFRon.families)))
def test_in_bf16_all_that_is_kept_is_float32_and_the_update_is_nearly_that_of_fp32(family: str, tmp_path: Path) -> None:
    method, rounded = stepped(tmp_path / "bf16", family, "bf16")
    _, exact = stepped(tmp_path / "fp32", family, "fp32")
    kept = [*method.run.family.module.state_dict().values()]
    for optimizer in (method.forget_optimizer, method.remain_optimizer):
        kept += [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
    for information in forget_and_retain(method.run, Settings("batch", 4, 8)):
        kept += information
    assert {t.dtype for t in kept if t.is_floating_point()} == {torch.float32}
    assert not torch.equal(rounded, exact)  # it was not fp32 under another name
    # Measured: 0.9995 and more for generators, 0.988 for the 20 layers of the classifier, whose bf16 has 8 bits.
    assert float(torch.nn.functional.cosine_similarity(rounded, exact, dim=0)) > 0.95
