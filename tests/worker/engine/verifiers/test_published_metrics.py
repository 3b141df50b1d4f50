"""FID, KID, IS and CLIP similarity in the verification stage: reported where weights are mounted, owed where a policy asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tests.worker.engine import completing_job as cj
from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import metrics
from worker.contract import Check, Finding, JobDirectory, Report
from worker.engine import metric_networks as networks
from worker.engine import verify
from worker.engine.errors import Integrity
from worker.engine.sampling import completion_seed
from worker.engine.verifiers import published_metrics

FIGURES = {"fid", "kid", "inception_score", "clip_similarity"}


@pytest.fixture(autouse=True)
def completers(monkeypatch: pytest.MonkeyPatch) -> None:
    cj.pretend(monkeypatch)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return metrics.write_clip(metrics.write_inception(tmp_path_factory.mktemp("mounted")))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture
def make(tmp_path: Path, judges: Path) -> Any:
    def job(candidate: dict[str, torch.Tensor], **changes: Any) -> JobDirectory:
        made = cj.make_job(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", candidate, **changes)
        made.judges.symlink_to(judges)
        return made

    return job


def published(report: Report) -> dict[tuple[str, str], Finding]:
    return {(f.metric, f.subject): f for f in report.findings if f.check == "published_metrics"}


def asking(**params: Any) -> Any:
    return cj.policy(*cj.CHECKS, Check(verifier="published_metrics", params=params))


def only(**params: Any) -> Any:
    """Nothing of a judge: what is asked for is all that is run."""
    return cj.policy(Check(verifier="published_metrics", params={"n_per_class": 30, **params}))


# --------------------------------------------------------------------------------------------------- where nobody asks


def test_figures_are_reported_of_both_sides_and_decide_nothing(make: Any, mounted: Path) -> None:
    job = make(cj.without_class(), mounted=mounted)
    report = verify.run(job)
    assert report.verdict == "PASS", report.summary
    found = published(report)
    expected = {(f"{side}_{name}", s) for side in ("forget", "retain") for name in FIGURES for s in ("candidate", "original")}
    assert set(found) == expected
    assert not any(f.gating or f.control or f.passed is not None for f in found.values())
    assert {f.corruption for f in found.values()} == {cj.HOLE}
    assert {m: f.n for (m, s), f in found.items() if s == "candidate"} == {
        f"{side}_{name}": n for side, n in (("forget", 50), ("retain", 150)) for name in FIGURES
    }
    assert [e.path for e in report.evidence] == ["before_after.png"]


def test_forgotten_classes_moved_away_from_the_truth_and_retained_ones_did_not(make: Any, mounted: Path) -> None:
    found = published(verify.run(make(cj.without_class(), mounted=mounted)))
    for name, away in (("fid", 1), ("kid", 1), ("clip_similarity", -1)):
        before, after = (found[f"forget_{name}", s].value for s in ("original", "candidate"))
        assert away * after > away * before
        assert found[f"retain_{name}", "candidate"].value == found[f"retain_{name}", "original"].value
    for (metric, _), finding in found.items():
        if metric.endswith("inception_score"):
            assert 1 <= finding.value <= metrics.CLASSES


def test_fid_is_that_of_the_textbook_on_the_images_that_the_checks_score(make: Any, mounted: Path) -> None:
    job = make(cj.knowing(), mounted=mounted, policy=only(n_per_class=vj.HELD_OUT))
    found = published(verify.run(job))
    # The same by hand: complete the class's held-out images, ask the network, take scipy's matrix square root.
    spec, data = job.read_spec(), np.load(job.data / "data.npz")
    held = [int(i) for i in spec.dataset.held_out_ids if data["labels"][int(i)] == vj.FORGET]
    truth = torch.from_numpy(data["images"][held])[:, None]
    hidden = torch.zeros(len(held), 4, 4, dtype=torch.bool)
    hidden[:, 1:3, 1:3] = True
    seeds = [completion_seed(spec.verification_seed, cj.HOLE, str(i)) for i in held]
    model = cj.Completer.load(job.original, labels=vj.NAMES, device=torch.device("cpu"))
    completed = model.complete(truth, hidden, seeds, sampling=spec.policy.sampling)
    inception = networks.Inception(mounted, torch.device("cpu"))
    a, b = (inception.look(x, lambda: None)[0].numpy() for x in (completed, truth))
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(covariance_a @ covariance_b))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariance_a + covariance_b - 2 * root)
    assert found["forget_fid", "candidate"].value == pytest.approx(expected, rel=1e-3)


def test_the_protocol_is_named(make: Any, mounted: Path) -> None:
    found = published(verify.run(make(cj.without_class(), mounted=mounted, policy=only())))
    inception, clip = networks.Inception(mounted, torch.device("cpu")), networks.Clip(mounted, torch.device("cpu"))
    for (metric, _), finding in found.items():
        if metric == "figures_measured":
            continue
        assert "whole completed images" in finding.detail
        assert (finding.protocol_id or "").endswith((clip if metric.endswith("clip_similarity") else inception).protocol_id)
        assert "/299-bicubic-antialias/" in finding.protocol_id or metric.endswith("clip_similarity")
    assert "n = 30 images for 64 features: singular covariances, biased upwards" in found["forget_fid", "candidate"].detail
    assert "n = 90 images for 64 features: biased upwards" in found["retain_fid", "candidate"].detail
    names = {metric.removeprefix("retain_"): f.protocol_id.split("/")[0] for (metric, _), f in found.items() if f.protocol_id}
    assert {names[name] for name in FIGURES} == {"fid", "kid", "inception-score", "clip-similarity"}
    assert found["retain_fid", "candidate"].protocol_id == found["forget_fid", "original"].protocol_id
    assert inception.protocol_id.endswith(inception.sha256)
    assert clip.protocol_id.endswith(clip.sha256)


def test_without_mounted_weights_nothing_is_said(make: Any) -> None:
    report = verify.run(make(cj.without_class()))
    assert report.verdict == "PASS", report.summary
    assert published(report) == {}


def test_weights_that_cannot_be_used_are_named_and_cost_no_verdict_nor_picture(make: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "inception.pt").write_bytes(b"nothing")
    report = verify.run(make(cj.without_class(), mounted=tmp_path / "broken"))
    assert report.verdict == "PASS", report.summary
    (finding,) = published(report).values()
    assert (finding.metric, finding.gating) == ("not_measured", False)
    assert "expected a TorchScript module in inception.pt" in finding.detail
    assert report.evidence


def test_too_small_a_device_for_the_networks_alone_costs_no_verdict(
    make: Any, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(networks.Inception, "look", full)
    report = verify.run(make(cj.without_class(), mounted=mounted))
    assert report.verdict == "PASS", report.summary
    (finding,) = published(report).values()
    assert finding.detail == "the device ran out of memory"


def test_weights_that_changed_since_the_plan_are_refused(make: Any, tmp_path: Path, mounted: Path) -> None:
    folder = metrics.write_inception(tmp_path / "mounted")
    job = make(cj.without_class(), mounted=folder)
    (folder / "inception.pt").write_bytes(b"others")
    with pytest.raises(Integrity, match="weights of metric networks"):
        verify.run(job)


# --------------------------------------------------------------------------------------------------- where a policy asks


@pytest.mark.parametrize("params", [{}, {"max_fid_ratio": 1.1}, {"max_clip_drop": 0.05}, {"networks": ["clip"]}])
def test_a_policy_that_asks_is_not_answered_without_weights(make: Any, params: dict[str, Any]) -> None:
    report = verify.run(make(cj.without_class(), policy=asking(**params)))
    assert report.verdict == "ERROR"
    assert "published_metrics could not be measured (expected weights of metric networks to be mounted" in report.summary


@pytest.mark.parametrize(
    ("params", "missing"),
    [({"max_clip_drop": 0.05}, "clip"), ({"networks": ["inception", "clip"]}, "clip")],
)
def test_nor_without_the_network_that_it_asks_for(make: Any, tmp_path: Path, params: dict[str, Any], missing: str) -> None:
    folder = metrics.write_inception(tmp_path / "mounted")
    report = verify.run(make(cj.without_class(), mounted=folder, policy=only(**params)))
    assert report.verdict == "ERROR"
    assert f"expected {missing} among the mounted weights" in published(report)["not_measured", "candidate"].detail


def test_an_empty_folder_is_no_answer(make: Any, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    report = verify.run(make(cj.without_class(), mounted=tmp_path / "mounted", policy=only()))
    assert report.verdict == "ERROR"
    assert "expected inception.pt or clip among" in published(report)["not_measured", "candidate"].detail


def test_a_policy_without_a_threshold_gates_on_every_figure_being_there(make: Any, mounted: Path) -> None:
    report = verify.run(make(cj.without_class(), mounted=mounted, policy=asking()))
    assert report.verdict == "PASS", report.summary
    gate = published(report)["figures_measured", "candidate"]
    assert (gate.gating, gate.value, gate.threshold) == (True, 16, 16)  # 4 figures, 2 sides, 2 subjects


def test_thresholds_hold_retained_classes_at_a_bound(make: Any, mounted: Path) -> None:
    policy = only(n_per_class=20, max_fid_ratio=1.1, max_clip_drop=0.05)
    good = published(verify.run(make(cj.without_class(), mounted=mounted, policy=policy)))
    # The same completions of retained classes: nothing is lost, whatever is left out.
    ratio, drop = (good[m, "candidate"] for m in ("retain_fid_ratio", "retain_clip_drop"))
    assert (ratio.value, ratio.upper95, ratio.passed) == (pytest.approx(1), pytest.approx(1), True)
    assert (drop.value, drop.upper95, drop.passed) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12), True)

    pictures = vj.forgotten_patterns()
    pictures[0] = 255 - pictures[0]
    report = verify.run(make(cj.knowing(pictures=pictures), mounted=mounted, policy=policy))
    bad = published(report)["retain_fid_ratio", "candidate"]
    assert bad.passed is False
    assert bad.upper95 > bad.value > 1.1


def test_completions_that_are_the_images_themselves_are_at_no_distance(mounted: Path) -> None:
    images = torch.randint(0, 256, (20, 1, vj.SIDE, vj.SIDE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    network = networks.Inception(mounted, torch.device("cpu"))
    features, probabilities = (x.numpy() for x in network.look(images, lambda: None))
    embeddings = networks.Clip(mounted, torch.device("cpu")).look(images, lambda: None).numpy()
    seen = published_metrics.Seen(features, probabilities, embeddings)
    pair = published_metrics.Pair(seen, seen)
    assert pair.frechet() == pytest.approx(0, abs=1e-5)
    assert pair.cosine_N == pytest.approx(np.ones(20))


def test_as_many_images_as_other_checks_complete(make: Any, mounted: Path) -> None:
    few = Check(verifier="retain_completion", params={"n_per_class": 20})
    report = verify.run(make(cj.without_class(), mounted=mounted, policy=cj.policy(few)))
    assert published(report)["forget_fid", "candidate"].n == 20
    report = verify.run(make(cj.without_class(), mounted=mounted, policy=only(n_per_class=12, max_fid_ratio=1.1)))
    assert "at least 40 held-out images of retained classes for a bound, got 36" in report.summary


def test_figures_are_the_same_for_the_same_spec(make: Any, mounted: Path) -> None:
    reports = [
        verify.run(make(cj.without_class(), mounted=mounted, policy=only(n_per_class=14, max_fid_ratio=2))) for _ in range(2)
    ]
    one, other = ([(f.metric, f.value, f.upper95) for f in r.findings] for r in reports)
    assert one == other
