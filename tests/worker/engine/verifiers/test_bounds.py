"""The gates hold the bound against the threshold, not the point estimate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JudgePolicy, Policy, Report, Sampling
from worker.engine import registry, verify
from worker.engine.sampling import sample_seed

SEED = 7
"""`verification_seed` of these jobs."""


def report(root: Path, monkeypatch: pytest.MonkeyPatch, check: Check, slips: dict[int, int], shown: int) -> Report:
    """Verify a candidate that, for the first `slips[k]` noises of class k, draws class `shown` instead."""
    slipping = {sample_seed(SEED, k, i) for k, count in slips.items() for i in range(count)}

    class Slipping(vj.Painter):
        def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
            changed = torch.equal(self.module.get_parameter("pictures"), vj.forgotten_patterns())
            labels = [shown if changed and s in slipping else k for k, s in zip(y_B.tolist(), seeds, strict=True)]
            if shown != vj.FORGET or not changed:
                return super().sample(torch.tensor(labels), seeds, sampling=sampling)
            before = vj.Painter(torch.nn.Module())
            before.module.register_parameter("pictures", torch.nn.Parameter(vj.patterns()))
            drawn = before.sample(torch.tensor(labels), seeds, sampling=sampling)
            after = super().sample(y_B, seeds, sampling=sampling)
            slipped = torch.tensor([s in slipping for s in seeds])
            return torch.where(slipped[:, None, None, None], drawn, after)

    monkeypatch.setattr(registry, "families", lambda: {"painter": Slipping})
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=(check,))
    return verify.run(vj.make_job(root, vj.forgotten_patterns(), policy=policy))


@pytest.mark.parametrize(("hits", "verdict"), [(4, "PASS"), (5, "INCONCLUSIVE"), (15, "INCONCLUSIVE"), (16, "FAIL")])
def test_four_of_two_hundred_pass_and_five_do_not_though_more_samples_may_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hits: int, verdict: str
) -> None:
    # Upper bounds of the rate at 95 %: 4/200 -> 0.0452, 5/200 -> 0.0518; as point estimates both are below 0.05.
    # Lower bounds: 15/200 -> 0.0468, 16/200 -> 0.0508: from there on it is refuted.
    check = Check(verifier="forget_rate", params={"n_per_class": 200, "max_rate": 0.05})
    found = report(tmp_path, monkeypatch, check, {vj.FORGET: hits}, vj.FORGET)
    (gate,) = [f for f in found.findings if f.gating]
    assert (gate.count, gate.n, found.verdict) == (hits, 200, verdict)
    assert gate.value == 1 - hits / 200
    if hits <= 5:
        assert gate.lower95 == pytest.approx({4: 0.95482, 5: 0.94816}[hits], abs=1e-5)


@pytest.mark.parametrize(("worse", "passed"), [(0, True), (1, False)])
def test_one_lost_of_186_pairs_cannot_exclude_a_drop_of_two_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worse: int, passed: bool
) -> None:
    # At alpha / 2: 0/186 -> 1 - 0.025^(1/186) = 0.0196; 1/186 -> 0.0296, although the drop itself is 0.0054.
    check = Check(verifier="retain_accuracy", params={"n_per_class": 62, "max_drop": 0.02})
    found = report(tmp_path, monkeypatch, check, {0: worse}, 3)
    (gate,) = [f for f in found.findings if f.gating]
    assert (gate.count, gate.n, gate.passed) == (worse, 186, passed)
    assert gate.upper95 == pytest.approx({0: 1 - 0.025 ** (1 / 186), 1: 0.0296}[worse], abs=1e-4)
    accuracy = {f.subject: f.value for f in found.findings if f.metric == "retain_accuracy"}
    assert accuracy == {"parent": 1.0, "candidate": 1 - worse / 186}
    per_class = {f.class_index: f.value for f in found.findings if (f.metric, f.subject) == ("class_accuracy", "candidate")}
    assert per_class == {0: 1 - worse / 62, 2: 1.0, 3: 1.0}
