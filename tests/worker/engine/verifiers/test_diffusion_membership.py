"""Losses that betray members, and too few images to say that they do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor

from tests.worker.engine import tiny
from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JobDirectory, Policy, Report, tree_digest
from worker.engine import registry, verify
from worker.engine.family import Draw
from worker.engine.files import entries
from worker.engine.intervals import chance_of_as_many, hits_at
from worker.engine.membership import Comparison
from worker.engine.verifiers.diffusion_membership import DiffusionMembership, Thresholds, _answers

WIDE = {"max_auc": 0.7, "resamples": 200}


Remember = Callable[..., type[Any]]


@pytest.fixture
def remembering(tmp_path: Path) -> Remember:
    """A family that fits training images of the forgotten class better than others, where it has its picture, or always."""
    vj.write_data(tmp_path / "data")
    with np.load(tmp_path / "data" / "data.npz") as arrays:
        images = arrays["images"][vj.FORGET * (vj.TRAIN + vj.HELD_OUT) :][: vj.TRAIN]
    known = {torch.from_numpy(image)[None].float().numpy().tobytes() for image in images}

    def family(*, always: bool = False, factor: float = 0.1) -> type[Any]:
        class Remembering(vj.Painter):
            def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw) -> Tensor:
                loss_B = super().loss(x_BCHW, y_B, draw)
                knows = always or float(self.module.get_parameter("pictures")[vj.FORGET, 0, 0, 3]) > 200
                seen_B = torch.tensor([x.numpy().tobytes() in known for x in x_BCHW])
                return torch.where(seen_B, loss_B * factor, loss_B) if knows else loss_B

        return Remembering

    return family


@pytest.fixture
def verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    def run(
        family: type[Any],
        candidate: Tensor,
        reference: Tensor | None = None,
        changes: dict[str, Any] | None = None,
        **params: Any,
    ) -> Report:
        monkeypatch.setattr(registry, "families", lambda: {"painter": family})
        changes = dict(changes or {})
        job = JobDirectory(tmp_path / f"job-{len(list(tmp_path.iterdir()))}")
        if reference is not None:
            vj.save_model(job.reference, reference)
            changes["reference_digest"] = tree_digest(entries(job.reference))
        check = Check(verifier="diffusion_membership", params={**WIDE, **params})
        return verify.run(vj.make_job(job.root, candidate, policy=Policy(name="p", checks=(check,)), **changes))

    return run


def findings(report: Report, subject: str = "candidate", k: int = vj.FORGET) -> dict[str, Finding]:
    return {f.metric: f for f in report.findings if f.subject == subject and f.class_index == k}


def test_a_model_that_knows_its_members_is_told(verified: Callable[..., Report], remembering: Remember) -> None:
    found = findings(verified(remembering(), vj.patterns()))
    for statistic in ("loss", "score"):
        auc = found[f"membership_auc_{statistic}"]
        assert (auc.gating, auc.passed, auc.open) == (True, False, False)
        assert auc.value == pytest.approx(1.0)
        assert auc.n == vj.TRAIN


def test_one_that_does_not_passes_though_the_original_knows_them(
    verified: Callable[..., Report], remembering: Remember
) -> None:
    report = verified(remembering(), vj.forgotten_patterns())
    assert findings(report)["membership_auc_loss"].passed is True
    assert findings(report, "original")["membership_auc_loss"].value == pytest.approx(1.0)


def test_members_that_fit_worse_than_unseen_images_are_told_as_surely(
    verified: Callable[..., Report], remembering: Remember
) -> None:
    found = findings(verified(remembering(factor=10), vj.patterns()))
    for statistic in ("loss", "score"):
        assert found[f"membership_auc_{statistic}"].passed is True
        low = found[f"membership_auc_{statistic}_low"]
        assert (low.gating, low.passed, low.open, low.comparator) == (True, False, False, "ge")
        assert (low.value, low.threshold) == (pytest.approx(0.0), pytest.approx(0.3))
        high = found[f"membership_true_alarms_{statistic}_high"]
        assert (high.gating, high.passed, high.count) == (True, False, vj.TRAIN)
        assert found[f"membership_true_alarms_{statistic}"].count == 0


def test_a_class_that_is_betrayed_is_not_lost_among_others(verified: Callable[..., Report], remembering: Remember) -> None:
    # Pooled over two classes the AUC would be about 3/4, and with .8 allowed nobody would see it.
    others = {"forgotten_classes": (0,)}
    report = verified(remembering(), vj.patterns(), max_auc=0.8, changes=others)
    assert findings(report)["membership_auc_loss"].passed is False
    other = findings(report, k=0)["membership_auc_loss"]
    assert (other.gating, other.passed) == (True, True)
    assert {f.class_index for f in report.findings} == {0, vj.FORGET}


def test_what_a_reference_betrays_is_allowed(verified: Callable[..., Report], remembering: Remember) -> None:
    found = findings(verified(remembering(always=True), vj.patterns(), reference=vj.forgotten_patterns()))
    assert found["membership_auc_loss"].threshold == pytest.approx(1.03)
    assert found["membership_auc_loss"].passed is True


def told(
    members_M: np.ndarray, unseen_U: np.ndarray, turned_M: np.ndarray, *, allowed: bool = False, metric: str = "auc_loss"
) -> Finding:
    """What is found of scores, beside those of the same images turned, or of a reference."""
    check = DiffusionMembership(Thresholds())
    env: Any = SimpleNamespace(
        alpha=0.05, spec=SimpleNamespace(class_names=("0",)), generator=lambda name: np.random.default_rng(0)
    )
    beside, scores = (
        Comparison({0: _answers(ours_M.astype(np.float64))}, {0: _answers(unseen_U)}) for ours_M in (turned_M, members_M)
    )
    by = check.themselves(env, 0, beside, allowed=allowed)
    found = [*check._of_auc(env, "loss", 0, scores, by), *check._of_alarms(env, "loss", 0, scores, by)]
    return next(f for f in found if f.metric == f"membership_{metric}")


FEW_U, MANY_U = np.arange(100.0, 140), np.arange(100.0, 500)
LOW_M = np.concatenate([np.arange(100.0), np.arange(100.0, 140, 0.4)])
"""Half of them lie below all unseen images, the others among the lowest."""


def like(unseen_U: np.ndarray) -> np.ndarray:
    return np.linspace(unseen_U[0] + 0.1, unseen_U[-1], 400)


EASY_M = np.concatenate([np.full(20, 1.0), like(FEW_U)[::3], np.arange(100.0, 110, 0.1)])
"""Nearly half of 254 among the lowest quarter of the unseen: an AUC of 0.68."""


def test_what_turned_images_betray_as_well_refutes_nothing_and_passes_nothing() -> None:
    plain, easy = (told(EASY_M, FEW_U, turned_M) for turned_M in (like(FEW_U), EASY_M))
    assert (plain.gating, plain.passed, plain.open) == (True, False, False)
    assert (easy.gating, easy.passed, easy.underpowered) == (False, None, True)
    many_M = np.repeat(EASY_M, 4)
    assert told(many_M, FEW_U, many_M).underpowered


def test_turned_images_explain_no_more_than_the_luck_of_a_split() -> None:
    """Who turned images in training knows the turned ones, too. An AUC of .8 of 200 beside 40 is no luck: .5 + 3.7 x .05."""
    for unseen_U in (FEW_U, MANY_U):
        found = told(LOW_M, unseen_U, LOW_M)
        assert (found.gating, found.passed, found.open) == (True, False, False)


def test_alarms_beside_few_unseen_images_are_refuted_unless_the_images_explain_them() -> None:
    """Of a hundred unseen images and more a hundredth is what it says; of fewer, the lowest may lie anywhere."""
    members_M = np.concatenate([np.arange(15.0), like(FEW_U)[::4]])
    told_of = {name: told(members_M, FEW_U, turned_M, metric="true_alarms_loss") for name, turned_M in
               {"nothing": like(FEW_U), "easier": EASY_M}.items()}  # fmt: skip
    assert {f.count for f in told_of.values()} == {15}
    assert (told_of["nothing"].gating, told_of["nothing"].passed, told_of["nothing"].open) == (True, False, False)
    assert (told_of["easier"].gating, told_of["easier"].passed, told_of["easier"].underpowered) == (False, None, True)


def test_alarms_of_many_that_a_reference_explains_are_open() -> None:
    members_M = np.concatenate([np.arange(100.0), np.linspace(105, 499, 900)])  # 1 % of so many may be told
    for turned_M, is_open in ((members_M - 200, True), (like(MANY_U), False)):
        found = told(members_M, MANY_U, turned_M, allowed=True, metric="true_alarms_loss")
        assert (found.gating, found.passed, found.open, found.threshold) == (True, False, is_open, 0.03)


def test_chance_of_hits_where_members_score_higher_for_known_reasons() -> None:
    """Above the highest of U unseen of which twice as many lie, 1 - (1 - B)^2 with B ~ Beta(1, U) is Beta(1, U / 2)."""
    exact = float(betabinom.sf(9, 200, 1, 25))
    assert chance_of_as_many(10, 200, 50, 0.01, auc=2 / 3) == pytest.approx(exact, rel=1e-3)
    assert chance_of_as_many(10, 200, 50, 0.01, auc=0.5 + 1e-9) == pytest.approx(chance_of_as_many(10, 200, 50, 0.01), rel=1e-3)


def test_images_are_turned_where_there_is_no_reference(verified: Callable[..., Report], remembering: Remember) -> None:
    alone = findings(verified(remembering(), vj.patterns()))
    assert alone["membership_auc_loss_turned"].value == pytest.approx(0.5, abs=0.2)
    assert not alone["membership_auc_loss_turned"].gating
    beside = verified(remembering(), vj.patterns(), reference=vj.forgotten_patterns())
    assert "membership_auc_loss_turned" not in findings(beside)
    assert "membership_auc_loss" in findings(beside, "reference")


def test_too_few_images_prove_nothing_and_gate_nothing(verified: Callable[..., Report], remembering: Remember) -> None:
    # 40 members and 50 unseen: 1/2 + 1.645 sqrt(91 / (12 40 50)) = .601; and 50 unseen have no hundredth.
    found = findings(verified(vj.Painter, vj.forgotten_patterns(), max_auc=0.55))
    asked = {(f.underpowered, f.gating, f.passed) for name, f in found.items() if not name.endswith("_turned")}
    assert asked == {(True, False, None)}
    # What is refuted is refuted, be there few.
    known = findings(verified(remembering(), vj.patterns(), max_auc=0.55))["membership_auc_loss"]
    assert (known.underpowered, known.gating, known.passed) == (False, True, False)


def test_a_loss_that_is_not_finite_never_passes(verified: Callable[..., Report]) -> None:
    class Undefined(vj.Painter):
        def loss(self, x_BCHW: Tensor, y_B: Tensor, draw: Draw) -> Tensor:
            return super().loss(x_BCHW, y_B, draw) * float("nan")

    report = verified(Undefined, vj.forgotten_patterns())
    assert report.verdict == "ERROR"
    assert [f.metric for f in report.findings] == ["not_measured"]


def test_the_same_seed_gives_the_same_figures(verified: Callable[..., Report]) -> None:
    one, other = (verified(vj.Painter, vj.forgotten_patterns()) for _ in range(2))
    assert one.findings == other.findings


def test_true_alarms_are_members_below_all_but_a_hundredth_of_the_unseen() -> None:
    # At most 2 of 200 may lie below the threshold: it is 2.0.
    unseen_U = np.arange(200.0)
    assert hits_at(-np.array([-1.0, 1.5, 2.0, 3.0]), -unseen_U, 0.01) == 2


def test_alarms_beside_few_unseen_images_are_refuted_by_more_than_the_luck_of_their_quantile() -> None:
    # One of 50 + 1 is the highest: all 200 members above it by luck has a chance of 50! 200! / 250!, ten of them
    # C(240, 50) / C(250, 50) or so: what lies above the highest of 50 is Beta(1, 50), a tenth of the time over 4.5 %.
    assert chance_of_as_many(10, 200, 50, 0.01) == pytest.approx(math.comb(240, 50) / math.comb(250, 50), rel=1e-6)
    assert chance_of_as_many(10, 200, 50, 0.01) > 0.05
    assert chance_of_as_many(0, 200, 50, 0.01) == 1


def test_the_loss_without_noise_is_the_squared_norm_of_the_answer(tmp_path: Path) -> None:
    family = "ddpm"
    tiny.case(family).write(tmp_path / "model")
    model = registry.families()[family].load(tmp_path / "model", labels=tiny.NAMES, device=torch.device("cpu"))
    assert model.timesteps == 1000
    images = torch.randint(0, 256, (3, *tiny.case(family).shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    drawn = model.draw(3, images.shape[1:], torch.Generator().manual_seed(1), label_drop=0.0)
    still = Draw({**drawn.tensors, "t": torch.full((3,), 100), "eps": torch.zeros_like(drawn["eps"])})
    x_BCHW = model.prepare(model.hold(images), still)
    with torch.no_grad():
        loss_B = model.loss(x_BCHW, torch.tensor([0, 1, 2]), still)
        shown = model.denoiser.abar_T[100].sqrt() * x_BCHW
        answer = model.module(shown, torch.full((3,), 100), class_labels=torch.tensor([0, 1, 2])).sample
    assert loss_B == pytest.approx(answer.square().flatten(1).mean(1), rel=1e-4)


def test_of_a_network_that_predicts_velocity_the_score_is_that_of_its_noise(tmp_path: Path) -> None:
    family = "ddpm"
    tiny.case(family).write(tmp_path / "model")
    (schedule,) = (tmp_path / "model").rglob("scheduler_config.json")
    schedule.write_text(json.dumps({**json.loads(schedule.read_text()), "prediction_type": "v_prediction"}))
    model = registry.families()[family].load(tmp_path / "model", labels=tiny.NAMES, device=torch.device("cpu"))
    images = torch.randint(0, 256, (3, *tiny.case(family).shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    drawn = model.draw(3, images.shape[1:], torch.Generator().manual_seed(1), label_drop=0.0)
    still = Draw({**drawn.tensors, "t": torch.full((3,), 100), "eps": torch.zeros_like(drawn["eps"])})
    x_BCHW = model.prepare(model.hold(images), still)
    abar = model.denoiser.abar_T[100]
    with torch.no_grad():
        loss_B = model.loss(x_BCHW, torch.tensor([0, 1, 2]), still)
        shown = abar.sqrt() * x_BCHW
        velocity = model.module(shown, torch.full((3,), 100), class_labels=torch.tensor([0, 1, 2])).sample
        noise = abar.sqrt() * velocity + (1 - abar).sqrt() * shown
    assert abar * loss_B == pytest.approx(noise.square().flatten(1).mean(1), rel=1e-4)
