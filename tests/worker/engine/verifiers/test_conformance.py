"""What every check promises, for every file in `verifiers/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.worker.engine import verification_job as vj
from worker.contract import Check, JudgePolicy, Policy, Report
from worker.engine import registry, verifiers, verify

NAMES = sorted(registry.verifiers())
SHIPPED = Path(__file__).parents[4] / "service" / "policies"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """One report with every check, of a good result and of the unchanged original."""
    known = {c.verifier: c for c in vj.CHECKS}
    checks = tuple(known.get(name, Check(verifier=name)) for name in NAMES)
    policy = Policy(name="all", judge=JudgePolicy(epochs=6), checks=checks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "families", lambda: {"painter": vj.Painter})
        made = {}
        for name, pictures in (("good", vj.forgotten_patterns()), ("unchanged", vj.patterns())):
            made[name] = verify.run(vj.make_job(tmp_path_factory.mktemp(name), pictures, policy=policy))
        return made


def test_every_file_is_a_check() -> None:
    folder = Path(verifiers.__file__).parent
    assert sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__") == NAMES
    assert {"integrity", "forget_rate", "retain_accuracy", "feature_distance"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_check_describes_itself(name: str) -> None:
    kind = registry.verifiers()[name]
    assert kind.name == name
    assert kind.title
    assert kind.tier in ("L0", "L1", "L2")
    assert kind.__doc__
    schema = kind.Params.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema.get("properties", {}).values())
    json.dumps(kind.Params().model_dump(mode="json"))  # defaults are valid and are JSON


@pytest.mark.parametrize("name", NAMES)
def test_unknown_threshold_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        registry.verifiers()[name].Params.model_validate({"no_such_threshold": 1})


@pytest.mark.parametrize("name", NAMES)
def test_check_gates_says_why_and_passes_a_good_result(name: str, reports: dict[str, Report]) -> None:
    findings = [f for f in reports["good"].findings if f.check == name]
    assert any(f.gating for f in findings)
    assert all(f.passed is True for f in findings if f.gating)
    for finding in findings:
        assert finding.detail
        assert len(finding.detail) <= 400
        assert not (finding.gating and finding.control)
        if finding.passed is not None:
            assert finding.threshold is not None
            assert finding.comparator is not None


@pytest.mark.parametrize("name", NAMES)
def test_gating_verdict_follows_from_the_numbers_in_the_finding(name: str, reports: dict[str, Report]) -> None:
    for report in reports.values():
        for f in (f for f in report.findings if f.check == name and f.passed is not None):
            bound = {"ge": f.lower95, "le": f.upper95, "eq": f.value}[f.comparator]
            holds = {"ge": bound >= f.threshold, "le": bound <= f.threshold, "eq": bound == f.threshold}[f.comparator]
            assert f.passed is holds


def test_suite_as_a_whole_refuses_the_unchanged_original(reports: dict[str, Report]) -> None:
    assert (reports["good"].verdict, reports["unchanged"].verdict) == ("PASS", "FAIL")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_policy_can_be_run(path: Path) -> None:
    policy = Policy.model_validate_json(path.read_bytes())
    assert policy.name == path.stem
    for check in policy.checks:
        registry.verifiers()[check.verifier].Params.model_validate(check.params)
