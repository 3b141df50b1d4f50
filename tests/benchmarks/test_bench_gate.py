"""The matrix: every fake is what it says, and a row is right only for the reason that it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.benchmarks import bench_gate
from tests.benchmarks.gate import fakes, matrix
from tests.benchmarks.gate.fakes import Fake, Setting
from tests.benchmarks.gate.matrix import Row
from tests.worker.engine.tiny import NAMES
from tests.worker.engine.tiny import classifier as tiny_classifier
from tests.worker.engine.tiny import ddpm as tiny_ddpm
from worker.contract import Environment, Finding, Report

FORGOTTEN, LOST = 1, 2


@pytest.fixture
def drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(fakes, "DISTILLED_STEPS", 2)
    return _setting("ddpm", tiny_ddpm, tmp_path, channels=1)


@pytest.fixture
def naming(tmp_path: Path) -> Setting:
    return _setting("classifier", tiny_classifier, tmp_path, channels=1)


def _setting(family: str, tiny: Any, root: Path, channels: int) -> Setting:
    tiny.write_model(root / "original")
    images_NCHW = torch.randint(0, 256, (12, channels, tiny.SIDE, tiny.SIDE), dtype=torch.uint8)
    labels_N = torch.arange(12) % len(NAMES)
    return Setting(family, tuple(NAMES), FORGOTTEN, LOST, root / "original", images_NCHW, labels_N)


def _made(fake: Fake, setting: Setting, root: Path) -> Path:
    fake.make(setting.retrained, root / "fake", setting)
    return root / "fake"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.rglob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("fake", fakes.generator_fakes(), ids=lambda fake: fake.name)
def test_a_fake_generator_is_a_model_that_differs_from_the_original_unless_it_is_that(
    fake: Fake, drawing: Setting, tmp_path: Path
) -> None:
    _differs(fake, drawing, tmp_path)


@pytest.mark.parametrize("fake", fakes.classifier_fakes(), ids=lambda fake: fake.name)
def test_a_fake_classifier_is_a_model_that_differs_from_the_original_unless_it_is_that(
    fake: Fake, naming: Setting, tmp_path: Path
) -> None:
    _differs(fake, naming, tmp_path)


def _differs(fake: Fake, setting: Setting, root: Path) -> None:
    folder = _made(fake, setting, root)
    before, after = _weights(setting.retrained), _weights(folder)
    if "EMA" in fake.name:
        assert {f"ema.{name}" for name in before} == after.keys() - before.keys()
        return
    setting.load(folder)  # whole and finite
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) == (fake.name == "original unchanged")


def test_every_fake_names_checks_that_the_policy_asks_for() -> None:
    for kind, some in (("generator", fakes.generator_fakes()), ("classifier", fakes.classifier_fakes())):
        asked = {check.verifier for check in matrix.policy("fast-v1", kind).checks}
        for fake in some:
            assert fake.caught_by
            assert fake.caught_by <= asked, fake.name


def _row(verdict: str, *failed: str, due: bool = False, caught_by: frozenset[str] = frozenset({"leakage"})) -> Row:
    findings = tuple(
        Finding(check=name, metric="m", subject="candidate", gating=True, passed=name not in failed)
        for name in ("forget_rate", "leakage", "relearning")
    )
    report = Report(
        spec_digest="0" * 64, policy_digest="0" * 64, candidate_digest="0" * 64, verdict=verdict, summary="", findings=findings,  # type: ignore[arg-type]
        seconds_verify=3, seconds_by_check={"forget_rate": 1, "leakage": 1, "relearning": 4}, peak_memory_mb=1,
        environment=Environment(code_version="0", python="3", torch="2", device="cpu", ranks=1, threads=1),
    )  # fmt: skip
    return Row("ddpm", "some", due, caught_by, report, 1.0)


def test_a_fake_that_is_refused_for_another_reason_is_not_seen_through() -> None:
    assert _row("FAIL", "leakage", "forget_rate").right
    assert not _row("FAIL", "forget_rate").right
    assert not _row("PASS").right
    assert not _row("VOID", "leakage").right


def test_a_retrain_has_to_pass() -> None:
    assert _row("PASS", due=True).right
    assert not _row("INCONCLUSIVE", "leakage", due=True).right


def test_the_figures_count_what_went_the_wrong_way() -> None:
    rows = [_row("FAIL", "leakage"), _row("FAIL", "forget_rate"), _row("PASS", due=True), _row("FAIL", "leakage", due=True)]
    found = bench_gate.figures(rows)
    assert (found["fakes"], found["false_passes"], found["retrains"], found["false_fails"]) == (2, 1, 2, 1)
    assert (found["seconds_l2"], found["seconds_l3"]) == (2.0, 4.0)


def test_the_table_marks_what_refused_and_what_should_have() -> None:
    line = matrix.table([_row("FAIL", "forget_rate")]).splitlines()[1]
    assert " X  [.]  . " in line
