"""Two judges: an image shows a class if either says so, is recognised if both do; and their false alarms lift the threshold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine import verification_job as vj
from worker.contract import Finding, JudgePolicy, Policy, Report
from worker.engine import judge as judges
from worker.engine import panel, registry, verify
from worker.engine.data import load_dataset
from worker.engine.events import Events
from worker.engine.judge import Judge, Judged
from worker.engine.judge_networks import FIRST, SECOND
from worker.engine.panel import Panel
from worker.engine.rates import loosened
from worker.engine.verifier import Env

CHECKS = vj.CHECKS[1:3]
"""The two that ask every judge: forget_rate and retain_accuracy."""
LABELS = torch.arange(vj.K)

Says = Callable[[Tensor], Tensor]


def saying(predicted_N: Tensor) -> Judged:
    return Judged(torch.nn.functional.one_hot(predicted_N, vj.K).double(), torch.zeros(len(predicted_N), 1).double())


def test_either_shows_and_both_recognise() -> None:
    first, second = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    both = (saying(first), saying(second))
    assert panel.shows(both, 1).tolist() == [True, True, True, False]
    assert panel.recognised(both, 1).tolist() == [True, False, False, False]
    alone = (saying(first),)
    assert panel.shows(alone, 1).tolist() == panel.recognised(alone, 1).tolist() == [True, True, False, False]


class Told:
    """A judge that answers as it is told, by the grey level of an image."""

    def __init__(self, says: Says) -> None:
        self._says = says

    def look(self, images_NCHW: Tensor) -> Judged:
        return saying(self._says(images_NCHW))


def test_false_alarms_of_either_judge_count_on_images_of_all_other_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = vj.make_job(tmp_path, vj.patterns())
    spec = job.read_spec()
    data = load_dataset(job, spec)
    of = {image.numpy().tobytes(): i for i, image in enumerate(data.images_NCHW)}

    def answers(wrong: set[int]) -> Says:
        def say(images_NCHW: Tensor) -> Tensor:
            found = [of[image.numpy().tobytes()] for image in images_NCHW]
            return torch.tensor([vj.FORGET if i in wrong else int(data.labels_N[i]) for i in found])

        return say

    rows, blank = data.held_out_of([0]).tolist(), data.held_out_of([3]).tolist()
    told = {FIRST: Told(answers(set(rows[:4]))), SECOND: Told(answers({*rows[2:6], *blank[:3]}))}
    monkeypatch.setattr(Panel, "of", lambda self, seat, region=None: told[seat])
    events = Events(job.events, "test", speaks=False)

    def rate(count: Any) -> float:
        policy = JudgePolicy(judges=count)
        return Panel(data, "a" * 64, policy, job.judges, torch.device("cpu"), events).false_positive_rate(vj.FORGET)

    assert rate(1) == 4 / 150  # of 50 held-out images of each of the 3 other classes
    assert rate(2) == (6 + 3) / 150  # two are counted once


@pytest.mark.parametrize(
    ("slack", "rate", "threshold"),
    [(None, 0.0, 0.05), (None, 0.02, 0.05), (None, 0.04, 0.07), (0.01, 0.04, 0.05), (0, 0.06, 0.06)],
)
def test_the_threshold_is_never_below_the_false_alarms_and_the_policys_slack(
    slack: float | None, rate: float, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    env: Any = object.__new__(Env)
    env._panel = object.__new__(Panel)
    env._panel._policy = JudgePolicy(slack=slack)
    monkeypatch.setattr(Env, "false_positive_rate", lambda self, k: rate)
    assert env.forget_threshold(vj.FORGET, 0.05) == pytest.approx(threshold)
    said = loosened(env, vj.FORGET, 0.05, threshold)
    assert said == (
        ""
        if threshold == 0.05
        else f"; effective threshold {threshold:g}, not 0.05: false alarms {rate:g}, slack {env.slack:g}"
    )


# ---------------------------------------------------------------------------------------------------------- whole reports


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judges of these data, trained once."""
    return tmp_path_factory.mktemp("judges")


def verified(root: Path, kept: Path, candidate: Tensor, monkeypatch: pytest.MonkeyPatch, *, count: Any = 2) -> Report:
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})
    policy = Policy(name="p", judge=JudgePolicy(epochs=6, judges=count), checks=CHECKS)
    job = vj.make_job(root, candidate, policy=policy)
    job.judges.symlink_to(kept)
    return verify.run(job)


def second_only(monkeypatch: pytest.MonkeyPatch, changed: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change what the second judge says of images."""
    look = Judge.look

    def told(self: Judge, images_NCHW: Tensor, hidden_Nhw: Tensor | None = None) -> Judged:
        judged = look(self, images_NCHW, hidden_Nhw)
        return judged if self.record.name != SECOND.recipe else saying(changed(images_NCHW, judged.predicted_N))

    monkeypatch.setattr(Judge, "look", told)


def gate(report: Report, check: str) -> Finding:
    (found,) = [f for f in report.findings if f.gating and f.check == check]
    return found


def test_a_good_result_passes_both_judges_and_the_report_names_them(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verified(tmp_path, kept, vj.forgotten_patterns(), monkeypatch)
    assert report.verdict == "PASS", report.summary
    assert [record.name for record in report.judges] == [FIRST.recipe, SECOND.recipe]
    assert len({record.sha256 for record in report.judges} | {record.cache_key for record in report.judges}) == 4
    assert all(record.held_out_accuracy >= 0.95 for record in report.judges)
    assert len(list(kept.iterdir())) == 2


def test_what_only_the_second_judge_sees_fails_forget_rate(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate draws diagonals for the class, and to the second judge every diagonal is the class."""
    second_only(monkeypatch, lambda images, says: torch.where(says == 2, vj.FORGET, says))
    report = verified(tmp_path, kept, vj.forgotten_patterns(), monkeypatch)
    found = gate(report, "forget_rate")
    assert (found.count, found.passed, report.verdict) == (59, False, "FAIL")
    assert found.threshold == pytest.approx(1 - (50 / 150 + 0.03))  # and every real diagonal is a false alarm, which is allowed


def test_the_first_judge_alone_would_have_passed_it(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_only(monkeypatch, lambda images, says: torch.where(says == 2, vj.FORGET, says))
    report = verified(tmp_path, kept, vj.forgotten_patterns(), monkeypatch, count=1)
    assert report.verdict == "PASS"
    assert gate(report, "forget_rate").threshold == 0.95
    assert [record.name for record in report.judges] == [FIRST.recipe]


def test_what_the_second_judge_no_longer_recognises_fails_retain_accuracy(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are drawn paler than before: to the first judge they are rows still."""
    candidate = vj.forgotten_patterns()
    candidate[0] = 128 + 0.7 * (candidate[0] - 128)

    def strict(images_NCHW: Tensor, says: Tensor) -> Tensor:
        pale = images_NCHW.float().flatten(1).std(dim=1) < 85
        return torch.where(pale & (says == 0), 3, says)

    second_only(monkeypatch, strict)
    report = verified(tmp_path, kept, candidate, monkeypatch)
    found = gate(report, "retain_accuracy")
    assert (found.count, found.passed) == (62, False)
    assert gate(report, "forget_rate").passed


def test_a_second_judge_that_is_unfit_is_an_error(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = judges.accuracy

    def measured(network: Any, *rest: Any) -> tuple[float, int]:
        return (0.5, 200) if isinstance(network, SECOND.build) else real(network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(judges, "accuracy", measured)
    policy_judges = tmp_path / "none"
    policy_judges.mkdir()
    report = verified(tmp_path / "job", policy_judges, vj.forgotten_patterns(), monkeypatch)
    assert report.verdict == "ERROR"
    (finding,) = [f for f in report.findings if f.check == "forget_rate"]
    assert finding.detail.startswith("judge_unfit: expected a judge (judge-convnext/1)")
