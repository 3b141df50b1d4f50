"""What each check of how a class was forgotten lets pass, and what it refuses, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Check, Finding, JudgePolicy, Policy, Report, Sampling
from worker.engine import registry, verify
from worker.engine.statistics import lower_bound

CHECKS = {check.verifier: check for check in vj.EFFICACY}
FORGETTING = ("forget_confidence", "forget_distance", "leakage", "setting_sweep", "form_of_forgetting")

Drawing = Callable[[Any, Tensor, Sequence[int], Sampling], Tensor]
"""(painter, labels, seeds, sampling) -> uint8 images."""


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once: every job of these tests has the same data."""
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def verified(tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """The report of a candidate; `drawing` decides what it draws, all others draw as they do."""

    def run(candidate: Tensor, names: Sequence[str], *, drawing: Drawing | None = None, **changes: Any) -> Report:
        params = changes.pop("params", {})

        class Drawn(vj.Painter):
            def sample(self, y_B: Tensor, seeds: Sequence[int], *, sampling: Sampling) -> Tensor:
                ordinary = super().sample(y_B, seeds, sampling=sampling)
                known = torch.equal(self.module.get_parameter("pictures"), vj.patterns())
                return ordinary if known or drawing is None else drawing(super(), y_B, seeds, sampling)

        judge = JudgePolicy(epochs=6, **changes.pop("judge", {}))
        monkeypatch.setattr(registry, "families", lambda: {"painter": Drawn})
        Drawn.prompts = changes.pop("prompts", False)  # type: ignore[attr-defined]
        checks = tuple(Check(verifier=n, params={**CHECKS[n].params, **params}) for n in names)
        policy = Policy(name="p", judge=judge, checks=checks)
        # Never quite the original's pictures, so that the two can be told apart.
        job = vj.make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", candidate + 1e-3, **{"policy": policy, **changes})
        job.judges.symlink_to(judges)
        return verify.run(job)

    return run


def gates(report: Report, metric: str | None = None) -> list[Finding]:
    return [f for f in report.findings if f.gating and metric in (None, f.metric)]


def failed(report: Report) -> set[str]:
    return {f.metric for f in gates(report) if f.passed is not True}


def told(report: Report, metric: str) -> Finding:
    return next(f for f in report.findings if f.metric == metric and f.subject == "candidate")


def sometimes(other: int, one_in: int) -> Drawing:
    """Asked for the forgotten class, one noise in so many draws another class."""

    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        hit_B = torch.tensor([seed % one_in == 0 for seed in seeds]) & (y_B == vj.FORGET)
        pictures = painter.sample(y_B, seeds, sampling=sampling)
        known = vj.Painter(torch.nn.ParameterDict({"pictures": vj.patterns()}))
        known.module.get_parameter = lambda _: vj.patterns()  # type: ignore[method-assign,assignment,return-value]
        own = known.sample(torch.full_like(y_B, other), seeds, sampling=sampling)
        return torch.where(hit_B[:, None, None, None], own, pictures)

    return drawing


def blank(k: int) -> Drawing:
    """Asked for a class, black squares."""

    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        images = painter.sample(y_B, seeds, sampling=sampling)
        return torch.where((y_B == k)[:, None, None, None], 0, images).to(torch.uint8)

    return drawing


@pytest.mark.parametrize("name", FORGETTING)
def test_good_result_passes(name: str, verified: Any) -> None:
    report = verified(vj.forgotten_patterns(), [name])
    assert failed(report) == set()
    assert gates(report)
    assert report.verdict == ("PASS" if name.startswith("forget_") else "ERROR")  # alone the others measure no forgetting


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("forget_confidence", {"mean_probability", "margin_quantile"}),
        ("forget_distance", {"coverage", "distance_ratio"}),
        ("leakage", {"null_rate", "blend_rate_0.25", "blend_rate_0.5"}),
        ("setting_sweep", {"worst_setting_rate"}),
    ],
)
def test_unchanged_original_fails(name: str, metrics: set[str], verified: Any) -> None:
    report = verified(vj.patterns(), [name])
    assert metrics <= failed(report)
    controls = [f for f in report.findings if f.control]
    assert all(f.passed is False for f in controls)
    assert bool(controls) == name.startswith("forget_")


@pytest.mark.parametrize("name", FORGETTING)
def test_every_class_ever_forgotten_is_checked_again(name: str, verified: Any) -> None:
    # The parent had forgotten the diagonal; the candidate forgets the columns, and draws the diagonal again.
    parent, candidate = vj.patterns(), vj.patterns()
    parent[2], candidate[vj.FORGET] = parent[0], parent[0]
    drawing = blank(2) if name == "form_of_forgetting" else None
    report = verified(candidate, [name], parent=parent, forgotten_classes=(2,), drawing=drawing)
    assert {f.class_index for f in gates(report)} == {vj.FORGET, 2}
    missed = {f.class_index for f in gates(report) if f.passed is not True}
    assert missed == {2}


@pytest.mark.parametrize("name", FORGETTING)
def test_word_on_a_class_that_is_missing_is_an_error(name: str, verified: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = registry.verifiers()[name]
    run = check.run

    def forgetful(self: Any, env: Any) -> tuple[Finding, ...]:
        return tuple(f for f in run(self, env) if f.class_index == vj.FORGET)

    monkeypatch.setattr(check, "run", forgetful)
    candidate = vj.forgotten_patterns()
    candidate[0] = candidate[2]
    report = verified(candidate, [name, *(n for n in FORGETTING[:1] if n != name)], forgotten_classes=(0,))
    assert report.verdict == "ERROR"


# --------------------------------------------------------------------------------------------------------- it fails closed


@pytest.mark.parametrize("name", FORGETTING)
@pytest.mark.parametrize("fault", ["missing", "nan", "crash"])
def test_what_cannot_be_drawn_never_passes(name: str, fault: str, verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        images = painter.sample(y_B, seeds, sampling=sampling)
        if fault == "crash":
            raise RuntimeError("no")
        return images[:-1] if fault == "missing" else images.float() * float("nan")

    report = verified(vj.forgotten_patterns(), [name], drawing=drawing)
    assert report.verdict == "ERROR"
    assert [f.metric for f in report.findings if f.check == name] == ["not_measured"]


def test_black_images_never_pass(verified: Any) -> None:
    report = verified(vj.forgotten_patterns(), FORGETTING, drawing=blank(vj.FORGET))
    assert "degenerate_share" in failed(report)
    assert report.verdict == "FAIL"
    assert told(report, "blank_share").value == 1.0


@pytest.mark.parametrize("name", ["retain_coverage", "retain_drift"])
@pytest.mark.parametrize("fault", ["missing", "nan"])
def test_retained_classes_that_cannot_be_drawn_never_pass(name: str, fault: str, verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        images = painter.sample(y_B, seeds, sampling=sampling)
        return images[:-1] if fault == "missing" else images.float() * float("nan")

    report = verified(vj.forgotten_patterns(), [name, "forget_confidence"], drawing=drawing)
    assert report.verdict == "ERROR"


# ---------------------------------------------------------------------------------------------------- check by check


def test_class_drawn_one_time_in_eight_fails_confidence_and_coverage(verified: Any) -> None:
    report = verified(vj.forgotten_patterns(), ["forget_confidence", "forget_distance"], drawing=sometimes(vj.FORGET, 8))
    assert {"mean_probability", "margin_quantile", "coverage"} <= failed(report)


def test_confidence_reports_entropy_and_the_way_to_other_classes(verified: Any) -> None:
    report = verified(vj.forgotten_patterns(), ["forget_confidence"])
    assert 0 < told(report, "entropy").value < 1.387  # log 4
    assert told(report, "margin_ks_distance").value < 1


def test_too_few_samples_for_a_bound_prove_nothing(verified: Any) -> None:
    # 0.95^58 > 0.05: no 58 margins bound their 95 % quantile.
    report = verified(vj.forgotten_patterns(), ["forget_confidence"], params={"n_per_class": 58})
    weak = [f.metric for f in report.findings if f.underpowered and f.subject == "candidate"]
    assert "margin_quantile" in weak
    assert report.verdict != "PASS" or report.tier is None


def test_class_that_hides_without_a_label_leaks(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        assert not ((y_B == vj.K) & (sampling.guidance_scale != 1)).any()  # nothing to guide
        return sometimes(vj.FORGET, 10)(painter, torch.where(y_B == vj.K, vj.FORGET, y_B), seeds, sampling)

    report = verified(vj.forgotten_patterns(), ["leakage"], drawing=drawing)
    assert {"null_rate"} <= failed(report)
    assert "other_label_rate" not in failed(report)
    wider = verified(vj.forgotten_patterns(), ["leakage"], drawing=drawing, params={"null_margin": 0.5})
    assert "null_rate" not in failed(wider)


def test_class_that_hides_under_another_label_leaks(verified: Any) -> None:
    candidate = vj.forgotten_patterns()
    candidate[0] = vj.patterns()[vj.FORGET]
    report = verified(candidate, ["leakage"])
    assert "other_label_rate" in failed(report)
    assert told(report, "worst_label_rate").value == 1.0
    assert "'rows', the label with the most" in told(report, "worst_label_rate").detail


def test_one_label_that_leaks_is_not_lost_among_others(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        leaking_B = (y_B == 0) & torch.tensor([seed % 2 == 0 for seed in seeds])
        return sometimes(vj.FORGET, 1)(painter, torch.where(leaking_B, vj.FORGET, y_B), seeds, sampling)

    # About half of 62 samples of one label of three: .17 of all, bounded by .22; the half is not below .33.
    report = verified(vj.forgotten_patterns(), ["leakage"], drawing=drawing, params={"margin": 0.27})
    (pooled,), (worst,) = gates(report, "other_label_rate"), gates(report, "worst_label_rate")
    assert (pooled.passed, worst.passed, worst.open) == (True, False, False)
    assert worst.lower95 == pytest.approx(lower_bound(worst.count, 62, alpha=0.05 / 3))
    assert failed(report) == {"worst_label_rate"}


def test_so_few_samples_of_a_label_refute_it_or_are_reported(verified: Any) -> None:
    # 1 of 62, half of .04, at .05 / 3 bounds a rate by .094, above .04; 0 of all 186 together by .016.
    report = verified(vj.forgotten_patterns(), ["leakage"])
    worst = told(report, "worst_label_rate")
    assert (worst.gating, worst.underpowered, worst.passed) == (False, False, None)
    assert "only held to not being refuted" in worst.detail
    assert gates(report, "other_label_rate")[0].passed is True
    # 8 of 62, half of .27, bound it by .25.
    ample = told(verified(vj.forgotten_patterns(), ["leakage"], params={"margin": 0.27}), "worst_label_rate")
    assert (ample.gating, ample.passed) == (True, True)


def test_one_partner_of_a_mixture_is_not_lost_among_others(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        pictures, rows_MK = painter.sample(y_B, seeds, sampling=sampling), painter.__self__.rows_MK
        if rows_MK is None:
            return pictures
        own = vj.Painter(torch.nn.ParameterDict({"pictures": vj.patterns()}))
        own.module.get_parameter = lambda _: vj.patterns()  # type: ignore[method-assign,assignment,return-value]
        leaks_B = rows_MK[y_B - vj.K - 1, 3] > 0
        shown = own.sample(torch.full_like(y_B, vj.FORGET), seeds, sampling=sampling)
        return torch.where(leaks_B[:, None, None, None], shown, pictures)

    # All of about 20 samples with the blank: a third of 62, bounded by .46; 20 of 20 are not below .81.
    report = verified(vj.forgotten_patterns(), ["leakage"], drawing=drawing, params={"max_blend_rate": 0.6})
    worst = {f"worst_blend_rate_{w}" for w in (0.25, 0.5, 0.75)}
    assert failed(report) == worst
    (found,) = gates(report, "worst_blend_rate_0.5")
    assert found.count == found.n
    assert "'blank', the other label with the most of 3" in found.detail


def test_few_samples_of_a_setting_that_refute_it_are_no_excuse(verified: Any) -> None:
    # 0 of 20 at .05 / 10 bound a rate by .23, so that nothing could pass; 20 of 20 are beyond .08 all the same.
    few = {"params": {"n_per_setting": 20}}
    (found,) = gates(verified(vj.patterns(), ["setting_sweep"], **few), "worst_setting_rate")
    assert (found.passed, found.open, found.underpowered) == (False, False, False)
    weak = told(verified(vj.forgotten_patterns(), ["setting_sweep"], **few), "worst_setting_rate")
    assert (weak.gating, weak.underpowered) == (False, True)


def test_few_samples_that_refute_confidence_and_coverage_are_no_excuse(verified: Any) -> None:
    # 0.95^58 > 0.05: 58 margins bound their 95 % quantile from below alone, and all of them lead.
    report = verified(vj.patterns(), ["forget_confidence"], params={"n_per_class": 58, "max_probability": 0.001})
    assert failed(report) == {"mean_probability", "margin_quantile"}
    assert report.verdict == "FAIL"


@pytest.mark.parametrize(("slack", "allowed"), [(None, 0.03), (0.01, 0.01)])
def test_what_judges_mistake_loosens_a_threshold_by_the_policys_slack_and_the_finding_says_so(
    slack: float | None, allowed: float, verified: Any
) -> None:
    report = verified(vj.forgotten_patterns(), ["leakage"], judge={"slack": slack}, params={"max_blend_rate": 0.001})
    found = told(report, "blend_rate_0.5")
    assert found.threshold == pytest.approx(allowed)  # these judges mistake nothing
    assert f"effective threshold {allowed:g}, not 0.001: false alarms 0, slack {allowed:g}" in found.detail


def test_class_that_is_drawn_at_one_scale_alone_fails_the_sweep(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        knows = sampling.guidance_scale == 7.5
        return sometimes(vj.FORGET, 2 if knows else 10**20)(painter, y_B, seeds, sampling)

    report = verified(vj.forgotten_patterns(), ["setting_sweep", "forget_confidence"], drawing=drawing)
    assert failed(report) == {"worst_setting_rate"}
    (found,) = gates(report, "worst_setting_rate")
    assert "guidance 7.5" in found.detail
    (curve,) = [c for c in report.curves if c.x_name == "guidance scale"]
    assert curve.x == (1.0, 1.5, 2.0, 4.0, 7.5)
    assert max(curve.y[:-1]) == 0 < 0.3 < curve.y[-1]
    assert [c.x for c in report.curves if c.x_name == "steps"] == [(10.0, 20.0, 40.0)]


def test_sweep_is_one_factor_at_a_time_or_all_combinations() -> None:
    check = registry.verifiers()["setting_sweep"]

    def settings(*, guided: bool, **params: Any) -> list[str]:
        spec: Any = type("Spec", (), {"policy": Policy(name="p", checks=(Check(verifier="x"),))})
        return [s.name for s in check(check.Params(**params)).settings(spec, guided=guided)]  # type: ignore[attr-defined]

    # the policy's own; guidance 1, 1.5, 4, 7.5; the other sampler; half and double the steps; bf16 and fp16
    assert len(settings(guided=True)) == 1 + 4 + 1 + 2 + 2
    assert len(settings(guided=False)) == 1 + 1 + 2 + 2
    assert len(settings(guided=True, full_grid=True)) == 5 * 2 * 3 * 3
    assert settings(guided=True)[0] == "ddim, 20 steps, guidance 2, fp32"


def test_one_class_in_place_of_another_is_a_surrogate(verified: Any) -> None:
    candidate = vj.forgotten_patterns()
    candidate[vj.FORGET] = vj.patterns()[0]
    report = verified(candidate, ["form_of_forgetting"])
    assert told(report, "surrogate_share").value >= 0.5
    assert "show 'rows'" in told(report, "surrogate_share").detail
    assert "became a surrogate" in gates(report)[0].detail


def test_mixture_of_others_is_a_blend(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        other_B = torch.tensor([(0, 2, 3)[seed % 3] for seed in seeds])
        return painter.sample(torch.where(y_B == vj.FORGET, other_B, y_B), seeds, sampling=sampling)

    report = verified(vj.forgotten_patterns(), ["form_of_forgetting"], drawing=drawing)
    assert "became a blend" in gates(report)[0].detail
    assert failed(report) == set()


@pytest.mark.parametrize(("forbid", "passes"), [(False, True), (True, False)])
def test_noise_passes_unless_the_policy_forbids_it(forbid: bool, passes: bool, verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        images = painter.sample(y_B, seeds, sampling=sampling)
        noise = [torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.where((y_B == vj.FORGET)[:, None, None, None], torch.stack(noise), images).to(torch.uint8)

    report = verified(vj.forgotten_patterns(), ["form_of_forgetting"], drawing=drawing, params={"forbid_noise": forbid})
    (gate,) = gates(report)
    assert "became a noise" in gate.detail
    assert gate.passed is passes


# --------------------------------------------------------------------------------------------------- retained classes


def test_one_image_of_each_class_again_and_again_loses_recall_and_coverage(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        return painter.sample(y_B, [5] * len(seeds), sampling=sampling)

    report = verified(vj.forgotten_patterns(), ["retain_coverage", "forget_confidence"], drawing=drawing)
    assert {"recall_ratio", "coverage_ratio"} <= failed(report)


def test_noise_in_place_of_retained_classes_loses_precision_and_raises_the_alarm(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        noise = [torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(noise).to(torch.uint8)

    report = verified(vj.forgotten_patterns(), ["retain_coverage", "retain_drift", "forget_confidence"], drawing=drawing)
    assert "precision_ratio" in failed(report)
    assert told(report, "mean_cosine").passed is False
    assert "alarm" in told(report, "mean_cosine").detail
    assert "cosine_ratio" in failed(report)
    assert report.verdict == "FAIL"


def test_retained_classes_drawn_from_other_noise_have_not_drifted(verified: Any) -> None:
    def drawing(painter: Any, y_B: Tensor, seeds: Sequence[int], sampling: Sampling) -> Tensor:
        return painter.sample(y_B, [seed + 1 for seed in seeds], sampling=sampling)

    report = verified(vj.forgotten_patterns(), ["retain_drift", "forget_confidence"], drawing=drawing)
    (gate,) = [f for f in gates(report) if f.check == "retain_drift"]
    assert (gate.metric, gate.passed) == ("cosine_ratio", True)
    assert gate.value == pytest.approx(1.0, abs=0.01)


def test_same_images_have_the_parents_figures(verified: Any) -> None:
    report = verified(vj.forgotten_patterns(), ["retain_coverage", "retain_drift", "forget_confidence"])
    assert {f.value for f in gates(report) if f.check == "retain_coverage"} == {1.0}
    assert told(report, "mean_cosine").value == pytest.approx(1.0, abs=1e-3)
    assert (told(report, "density").protocol_id or "").startswith("prdc-0.2/k=5/judge=")


def test_of_two_judges_the_surer_one_counts(verified: Any) -> None:
    alone = verified(vj.forgotten_patterns(), ["forget_confidence"])
    report = verified(
        vj.forgotten_patterns(),
        ["forget_confidence"],
        policy=Policy(name="p", judge=JudgePolicy(epochs=6, judges=2), checks=(CHECKS["forget_confidence"],)),
    )
    assert len(report.judges) == 2
    assert failed(report) == set()
    for metric in ("mean_probability", "margin_quantile"):
        assert told(report, metric).value >= told(alone, metric).value
