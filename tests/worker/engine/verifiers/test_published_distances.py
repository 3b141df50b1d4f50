"""FID, KID and PRDC of drawn images: reported where weights are mounted, owed where a policy asks, under names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import metrics
from worker.contract import Check, Finding, JobDirectory, JudgePolicy, Policy, Report
from worker.engine import metric_networks as networks
from worker.engine import protocols, registry, statistics, verify
from worker.engine.sampling import sample_seed
from worker.verdict import decide

FIGURES = {"fid", "kid", "precision", "recall", "density", "coverage"}
RATE = Check(verifier="forget_rate", params={"n_per_class": 59})
N = 40


@pytest.fixture(autouse=True)
def painters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metrics.write_inception(tmp_path_factory.mktemp("mounted"))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def make(tmp_path: Path, judges: Path) -> Any:
    def job(candidate: torch.Tensor, *checks: Check, **changes: Any) -> JobDirectory:
        policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=checks or (RATE,))
        made = vj.make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", candidate, policy=policy, **changes)
        made.judges.symlink_to(judges)
        return made

    return job


def asking(**params: Any) -> tuple[Check, Check]:
    return RATE, Check(verifier="published_distances", params={"n_per_class": N, **params})


def published(report: Report) -> dict[tuple[str, str], Finding]:
    return {(f.metric, f.subject): f for f in report.findings if f.check == "published_distances"}


def pale() -> torch.Tensor:
    """Two retained classes are drawn with a third of their contrast."""
    pictures = vj.forgotten_patterns()
    pictures[[0, 2]] = 128 + (pictures[[0, 2]] - 128) / 3
    return pictures


def test_figures_of_retained_classes_are_reported_and_decide_nothing(make: Any, mounted: Path) -> None:
    job = make(vj.forgotten_patterns(), mounted=mounted)
    report = verify.run(job)
    assert report.verdict == "PASS", report.summary
    found = published(report)
    assert set(found) == {(f"retain_{name}", s) for name in FIGURES for s in ("candidate", "parent")}
    assert not any(f.gating or f.control or f.passed is not None for f in found.values())
    assert {f.n for f in found.values()} == {3 * 100}
    assert decide(report.findings, job.read_spec()) == "PASS"


def test_as_many_samples_as_other_checks_draw_of_retained_classes(make: Any, mounted: Path) -> None:
    few = Check(verifier="retain_accuracy", params={"n_per_class": 62})
    found = published(verify.run(make(vj.forgotten_patterns(), RATE, few, mounted=mounted)))
    assert {f.n for f in found.values()} == {3 * 62}


def test_without_mounted_weights_nothing_is_said_and_a_policy_that_asks_is_not_answered(make: Any, tmp_path: Path) -> None:
    assert published(verify.run(make(vj.forgotten_patterns()))) == {}
    report = verify.run(make(vj.forgotten_patterns(), *asking()))
    assert report.verdict == "ERROR"
    assert "published_distances could not be measured (expected weights of metric networks to be mounted" in report.summary
    (tmp_path / "empty").mkdir()
    report = verify.run(make(vj.forgotten_patterns(), *asking(), mounted=tmp_path / "empty"))
    assert report.verdict == "ERROR"
    assert "expected inception.pt among the mounted weights" in report.summary


def test_figures_are_those_of_the_textbook_and_the_authors_on_the_images_that_the_checks_score(
    make: Any, mounted: Path
) -> None:
    job = make(vj.forgotten_patterns(), *asking(), mounted=mounted)
    found = published(verify.run(job))
    spec = job.read_spec()
    with torch.no_grad():  # the same by hand: draw, and take held-out images, 50 of each retained class
        model = vj.Painter.load(job.out, labels=vj.NAMES, device=torch.device("cpu"))
        drawn = torch.cat(
            [
                model.sample(
                    torch.full((N,), k),
                    [sample_seed(spec.verification_seed, k, i) for i in range(N)],
                    sampling=spec.policy.sampling,
                )
                for k in spec.retain_classes
            ]
        )
    data = np.load(job.data / "data.npz")
    held = [int(i) for i in spec.dataset.held_out_ids if data["labels"][int(i)] != vj.FORGET]
    real = torch.from_numpy(data["images"][held])[:, None]
    network = networks.Inception(mounted, torch.device("cpu"))
    a, b = (network.features(images, lambda: None).numpy() for images in (real, drawn))
    assert found["retain_fid", "candidate"].value == pytest.approx(statistics.frechet_distance_of_rows(a, b), rel=1e-6)
    # All 120 samples, and 120 of 150 images at a time: near the estimate of every pair of different images.
    assert found["retain_kid", "candidate"].value == pytest.approx(every_pair(a, b), rel=0.2)
    for name, value in compute_prdc(a, b, nearest_k=5).items():
        assert found[f"retain_{name}", "candidate"].value == pytest.approx(value)


def every_pair(a: Any, b: Any) -> float:
    """The unbiased estimate of the squared MMD of two sets of any sizes, Gretton et al. 2012, eq. (3)."""

    def kernel(x: Any, y: Any) -> Any:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Any) -> float:
        k = kernel(x, x)
        return float((k.sum() - k.trace()) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def test_every_figure_names_its_protocol_and_a_judge_s_distance_is_no_fid(make: Any, mounted: Path) -> None:
    distance = Check(verifier="feature_distance", params={"n_per_class": 62, "resamples": 100})
    coverage = Check(verifier="retain_coverage", params={"n_per_class": 62})
    report = verify.run(make(vj.forgotten_patterns(), *asking(), distance, coverage, mounted=mounted))
    inception = networks.Inception(mounted, torch.device("cpu")).protocol_id
    names = {m.removeprefix("retain_"): f.protocol_id for (m, s), f in published(report).items() if s == "candidate"}
    assert names.pop("figures_measured") is None
    assert names["fid"] == f"fid/float64/{inception}"
    assert names["kid"].startswith("kid/float64/cubic/subsets=100x120/torchmetrics-1.")
    assert {names[m] for m in ("precision", "recall", "density", "coverage")} == {protocols.prdc(5, inception)}
    (judge,) = report.judges
    by_judge = {f.protocol_id for f in report.findings if f.check in ("feature_distance", "retain_coverage")}
    seen_by = f"judge={judge.sha256[:16]}"
    assert by_judge == {f"judge-distance/float64/{seen_by}", f"prdc-0.2/k=5/{seen_by}"}
    assert not any("fid" in (f.protocol_id or f.metric) for f in report.findings if f.check == "feature_distance")


def test_a_policy_without_a_threshold_gates_on_every_figure_being_there(make: Any, mounted: Path) -> None:
    report = verify.run(make(pale(), *asking(), mounted=mounted))
    assert report.verdict == "PASS", report.summary
    gate = published(report)["figures_measured", "candidate"]
    assert (gate.gating, gate.value, gate.threshold) == (True, 12, 12)  # 6 figures, 2 subjects


def test_a_threshold_holds_retained_classes_at_a_bound(make: Any, mounted: Path) -> None:
    good = published(verify.run(make(vj.forgotten_patterns(), *asking(max_fid_ratio=1.1), mounted=mounted)))
    ratio = good["retain_fid_ratio", "candidate"]  # the same samples of retained classes: nothing is lost
    assert (ratio.value, ratio.upper95, ratio.passed) == (pytest.approx(1), pytest.approx(1), True)
    report = verify.run(make(pale(), *asking(max_fid_ratio=1.1), mounted=mounted))
    bad = published(report)["retain_fid_ratio", "candidate"]
    assert (report.verdict, bad.passed, bad.open) == ("FAIL", False, False)
    assert bad.upper95 > bad.value > 1.1
    found = published(report)
    assert bad.value == pytest.approx(found["retain_fid", "candidate"].value / found["retain_fid", "parent"].value)


def test_more_looks_or_attempts_widen_the_bound(make: Any, mounted: Path) -> None:
    job = make(pale(), *asking(max_fid_ratio=50), mounted=mounted)
    once = published(verify.run(job))["retain_fid_ratio", "candidate"]
    spec = job.read_spec()
    policy = spec.policy.model_copy(update={"attempts": 4})
    job.spec.write_text(spec.model_copy(update={"policy": policy}).model_dump_json())
    vj.write_manifest(job)
    assert published(verify.run(job))["retain_fid_ratio", "candidate"].upper95 > once.upper95


def test_figures_are_the_same_for_the_same_spec(make: Any, mounted: Path) -> None:
    one, other = (
        [(f.metric, f.value, f.upper95) for f in verify.run(make(pale(), *asking(max_fid_ratio=2), mounted=mounted)).findings]
        for _ in range(2)
    )
    assert one == other
