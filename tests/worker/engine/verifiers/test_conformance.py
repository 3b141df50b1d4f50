"""What every check promises, for every file in `verifiers/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.worker.engine import completing_job as cj
from tests.worker.engine import learning_job as lj
from tests.worker.engine import naming_job as nj
from tests.worker.engine import probing_job as pj
from tests.worker.engine import verification_job as vj
from tests.worker.engine.tiny import metrics
from worker.contract import Check, DatasetSpec, Policy, Report, Spec
from worker.engine import registry, verifiers, verify

NAMES = sorted(registry.verifiers())
SHIPPED = Path(__file__).parents[4] / "service" / "policies"
FAMILIES = {"painter": vj.Painter, "namer": nj.Namer, "perceptron": pj.Perceptron, "completer": cj.Completer, **lj.FAMILIES}
METHODS = {"still": cj.Still}

Reports = dict[tuple[str, str], Report]
"""By what was asked for and whether the result is good or unchanged."""


def policy(checks: tuple[Check, ...], kind: str) -> Policy:
    """The known thresholds, and every other check of this kind with its defaults; not those that need another request."""
    painted = (*vj.CHECKS, *vj.PROBES, *vj.EFFICACY, *lj.CHECKS)
    named = (*nj.CLASS_CHECKS, *nj.SAMPLE_CHECKS, *pj.CHECKS, *pj.BY_REFERENCE)
    known = {c.verifier for c in (*painted, *named, *cj.CHECKS)}
    others = tuple(Check(verifier=n) for n in NAMES if kind in registry.verifiers()[n].kinds and n not in known)
    return cj.policy(*checks, *others, corruptions=(cj.HOLE, cj.PATCHES) if kind == "i2i" else ())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """A report of a good result and of the unchanged original, for each kind of request; together they use every check."""

    def root() -> Path:
        return tmp_path_factory.mktemp("job")

    data = root()
    vj.write_data(data)
    classes = {"policy": policy(nj.CLASS_CHECKS, "classifier")}
    samples = {"policy": policy(nj.SAMPLE_CHECKS, "classifier"), "samples": True}
    mounted = metrics.write_clip(metrics.write_inception(root()))
    drawing = {"policy": policy((*vj.CHECKS, *vj.PROBES, *vj.EFFICACY), "generator"), "mounted": mounted}
    completing = {"policy": policy(cj.CHECKS, "i2i"), "mounted": mounted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "families", lambda: FAMILIES)
        patch.setattr(registry, "methods", lambda: METHODS)
        return {
            ("drawing", "good"): verify.run(vj.make_job(root(), vj.forgotten_patterns(), **drawing)),
            ("drawing", "unchanged"): verify.run(vj.make_job(root(), vj.patterns(), **drawing)),
            ("classes", "good"): verify.run(nj.make_job(root(), nj.without_class(), **classes)),
            ("classes", "unchanged"): verify.run(nj.make_job(root(), nj.knowing(), **classes)),
            ("probing", "good"): verify.run(pj.make_job(root(), pj.trained(2, vj.FORGET), reference=pj.trained(3, vj.FORGET))),
            ("probing", "unchanged"): verify.run(pj.make_job(root(), pj.trained(1), reference=pj.trained(3, vj.FORGET))),
            ("samples", "good"): verify.run(nj.make_job(root(), nj.knowing(), **samples)),
            ("samples", "unchanged"): verify.run(nj.make_job(root(), nj.remembering(data), **samples)),
            ("teaching", "good"): verify.run(lj.make_job(root(), lj.without_class(), *vj.CHECKS, *lj.CHECKS)),
            ("teaching", "unchanged"): verify.run(lj.make_job(root(), lj.knowing(), *vj.CHECKS, *lj.CHECKS)),
            ("completing", "good"): verify.run(cj.make_job(root(), cj.without_class(), **completing)),
            ("completing", "unchanged"): verify.run(cj.make_job(root(), cj.knowing(), **completing)),
        }


def test_every_file_is_a_check() -> None:
    folder = Path(verifiers.__file__).parent
    assert sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__") == NAMES
    assert {"integrity", "forget_rate", "retain_accuracy", "feature_distance"} <= set(NAMES)
    assert {"forget_accuracy", "retain_test_accuracy", "sample_membership"} <= set(NAMES)
    assert {"forget_completion", "retain_completion", "frozen_decoder", "published_metrics", "published_distances"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_check_describes_itself(name: str) -> None:
    kind = registry.verifiers()[name]
    assert kind.name == name
    assert kind.title
    assert kind.tier in ("L0", "L1", "L2", "L3")
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
def test_check_gates_says_why_and_passes_a_good_result(name: str, reports: Reports) -> None:
    findings = [f for (_, result), r in reports.items() for f in r.findings if result == "good" and f.check == name]
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
def test_gating_verdict_follows_from_the_numbers_in_the_finding(name: str, reports: Reports) -> None:
    for report in reports.values():
        for f in (f for f in report.findings if f.check == name and f.passed is not None):
            # A control without an upper bound claims that chance is not excluded: its lower bound is not above it.
            upper = f.lower95 if f.control and f.upper95 is None else f.upper95
            bound = {"ge": f.lower95, "le": upper, "eq": f.value}[f.comparator]
            holds = {"ge": bound >= f.threshold, "le": bound <= f.threshold, "eq": bound == f.threshold}[f.comparator]
            assert f.passed is holds


def test_suite_as_a_whole_refuses_the_unchanged_original(reports: Reports) -> None:
    expected = {key: "PASS" if key[1] == "good" else "FAIL" for key in reports}
    assert {key: report.verdict for key, report in reports.items()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_check_of_the_other_kind_is_not_measured_and_never_passes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "families", lambda: FAMILIES)
    kinds = registry.verifiers()[name].kinds
    wish = {"policy": Policy(name="p", checks=(Check(verifier=name),)), "forgotten_samples": ("0",)}  # classes and samples
    jobs = {
        "generator": lambda: vj.make_job(tmp_path / "g", vj.forgotten_patterns(), **wish),
        "classifier": lambda: nj.make_job(tmp_path / "c", nj.without_class(), **wish),
        "i2i": lambda: cj.make_job(tmp_path / "i", cj.without_class(), **wish),
    }
    for kind in jobs.keys() - set(kinds):
        report = verify.run(jobs[kind]())
        assert report.verdict == "ERROR"
        (finding,) = report.findings
        assert (finding.metric, finding.gating) == ("not_measured", False)
        assert finding.detail == f"measures {' and '.join(kinds)} models, expected one for a {kind}"


def shipped(path: Path) -> list[Policy]:
    """The policies in a file, as requests on models of each kind get them."""
    document = json.loads(path.read_text())
    parts = document.get("kinds", {None: document}).items()
    known = Policy.model_fields.keys()
    return [
        Policy.model_validate({**{key: value for key, value in part.items() if key in known}, "name": document["name"], **more})
        for kind, part in parts
        for more in [{"kind": kind} if kind else {}]
    ]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_policy_can_be_run_at_its_own_level(path: Path) -> None:
    """Every check of it takes its thresholds, and could pass with so many samples, looks and attempts."""
    names = tuple(map(str, range(10)))
    for policy in shipped(path):
        assert policy.name == path.stem
        spec = Spec(
            request_id="r", family="mae" if policy.sampling.corruptions else "ddpm", method="none", seed=1, verification_seed=7,
            class_names=names, forget_classes=(3,), forgotten_samples=("0",), base_digest="0" * 64, original_digest="0" * 64,
            dataset=DatasetSpec(format="npz", digest="0" * 64), policy=policy,
        )  # fmt: skip
        for check in policy.checks:
            planned = verify.plan(check, spec, policy.kind or registry.verifiers()[check.verifier].kinds[0])
            assert planned.verifier is not None, f"{check.verifier}: {planned.trouble}"


@pytest.mark.parametrize("name", NAMES)
def test_check_is_explained_where_people_look(name: str) -> None:
    assert f"`{name}`" in (SHIPPED.parents[1] / "docs" / "reference" / "checks.md").read_text()
