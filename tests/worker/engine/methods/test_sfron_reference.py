"""SFR-on's published Fisher protocol gives the mask of the plain rule that the benchmarks compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks.sfron import reference
from tests.worker.engine.unlearning_job import begin, make_job, params_of
from worker.engine import fisher
from worker.engine.streams import Stream


def plainly(run: Any, stream: Stream, settings: fisher.Settings) -> dict[str, Tensor]:
    """The reference's information, on the batches and with the random numbers that the engine plans."""
    planned = [run.plain(b.index_B, b.source) for b in fisher._Task(run, stream, settings).batches()]
    draws = iter([batch.draw for batch in planned])

    def loss(module: nn.Module, x_BCHW: Tensor, y_B: Tensor) -> Tensor:
        return settings.loss_scale * run.family.loss(x_BCHW, y_B, next(draws), module=module)

    batches = [(batch.x_BCHW, batch.y_B) for batch in planned]
    return reference.fisher(run.family.module, batches, loss, settings.clip)


@pytest.mark.parametrize("clip", [None, 1e-2])
@pytest.mark.parametrize(("family", "loss_scale"), [("classifier", 1.0), ("ddpm", 64.0)])
def test_the_mask_of_the_published_protocol_is_the_plain_rule_s(
    family: str, loss_scale: float, clip: float | None, tmp_path: Path
) -> None:
    asked = {"fisher": "batch", "fisher_batch_size": 4, "fisher_samples": 1000, "fisher_clip": clip, "loss_scale": loss_scale}
    method: Any = begin(make_job(tmp_path, family=family, params=params_of("sfron", family) | asked))
    settings = fisher.Settings("batch", 4, 1000, clip, loss_scale)
    forget, remain = (plainly(method.run, stream, settings) for stream in (method.run.forget, method.run.retain))
    if clip is not None:  # every batch's gradient was cut to the same norm, so both are of the same mass
        masses = [sum(float(t.sum()) for t in f.values()) for f in (forget, remain)]
        assert masses == pytest.approx([clip**2, clip**2], rel=1e-3)
    mask = reference.saliency(forget, remain, method.params.gamma)
    names = [name for name, p in method.run.family.module.named_parameters() if p.requires_grad]
    assert all(torch.equal(mine, mask[name]) for name, mine in zip(names, method.mask, strict=True))
    share = torch.cat([m.flatten().float() for m in method.mask]).mean()
    assert 0.05 < float(share) < 0.95
