"""The verdict that findings earn, and the tier: missing evidence counts as failed, and nothing claims more than it showed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from worker.contract import Check, DatasetSpec, Finding, Policy, Spec
from worker.verdict import MEASURES_FORGETTING, OF_EACH_CLASS, SAMPLE_TIERS, TIERS, decide, tier_reached

FORGOTTEN = 1
GATE = ("integrity", "forget_rate", "retain_accuracy")


def spec(checks: Iterable[str] = GATE, **changes: Any) -> Spec:
    policy = Policy(name="test", kind="generator", checks=tuple(Check(verifier=name) for name in checks))
    fields: dict[str, Any] = {
        "request_id": "r", "family": "ddpm", "method": "sfron", "seed": 0, "verification_seed": 0,
        "class_names": ("a", "b", "c"),
        "forget_classes": (FORGOTTEN,), "base_digest": "0" * 64, "original_digest": "0" * 64,
        "dataset": DatasetSpec(format="npz", digest="0" * 64), "policy": policy,
    }  # fmt: skip
    return Spec(**(fields | changes))


def finding(check: str, **changes: Any) -> Finding:
    fields: dict[str, Any] = {"check": check, "metric": "m", "subject": "candidate", "gating": True, "passed": True}
    each = check in OF_EACH_CLASS or MEASURES_FORGETTING.get(check) == "classes"
    by_class = {"class_index": FORGOTTEN, "class_name": "b"} if each else {}
    return Finding(**(fields | by_class | changes))


def control(check: str) -> Finding:
    return finding(check, subject="original", gating=False, control=True, passed=False)


CONTROL = control("forget_rate")


def passed(checks: Iterable[str] = GATE) -> list[Finding]:
    checks = tuple(checks)
    return [*(finding(name) for name in checks), *(control(n) for n in checks if MEASURES_FORGETTING.get(n) == "classes")]


def without(findings: Iterable[Finding], check: str) -> list[Finding]:
    return [f for f in findings if f.check != check or f.control]


def test_everything_passed_is_a_pass() -> None:
    assert decide(passed(), spec()) == "PASS"


@pytest.mark.parametrize("subject", ["original", "parent", "reference"])
def test_another_models_finding_passes_nothing_for_the_candidate(subject: str) -> None:
    """That the original passes says nothing of the candidate; and a control that another model failed sees nothing."""
    assert decide([f if f.control else f.model_copy(update={"subject": subject}) for f in passed()], spec()) == "ERROR"
    weak = finding("integrity", subject=subject, gating=False, passed=None, underpowered=True)
    assert decide([*without(passed(), "integrity"), weak], spec()) == "ERROR"
    if subject != "original":
        assert decide([f.model_copy(update={"subject": subject}) if f.control else f for f in passed()], spec()) == "ERROR"


def test_a_check_without_a_gating_finding_is_an_error() -> None:
    assert decide(without(passed(), "integrity"), spec()) == "ERROR"


@pytest.mark.parametrize("check", sorted(OF_EACH_CLASS))
def test_check_of_each_class_owes_its_word_on_every_one_ever_forgotten(check: str) -> None:
    asked = spec((*GATE, check), forgotten_classes=(0,))
    there = [f.model_copy(update={"class_index": k}) if f.class_index is not None else f for f in passed() for k in (0, 1)]
    both = [finding(check, class_index=k) for k in (0, 1)]
    assert decide([*there, *both], asked) == "PASS"
    assert decide([*there, both[1]], asked) == "ERROR"


def test_an_original_that_passes_makes_the_suite_blind() -> None:
    findings = [f for f in passed() if not f.control]
    assert decide(findings, spec()) == "VOID"
    assert decide([*findings, CONTROL.model_copy(update={"passed": True})], spec()) == "VOID"


def test_what_is_not_refuted_is_inconclusive_and_what_is_refuted_fails() -> None:
    openly = finding("retain_accuracy", passed=False, open=True)
    assert decide([*without(passed(), "retain_accuracy"), openly], spec()) == "INCONCLUSIVE"
    refuted = finding("integrity", passed=False)
    assert decide([*without(passed(), "retain_accuracy"), openly, refuted], spec()) == "FAIL"


def test_what_is_open_but_blind_stays_void() -> None:
    findings = [finding("forget_rate", passed=False, open=True), *(finding(name) for name in ("integrity", "retain_accuracy"))]
    assert decide(findings, spec()) == "VOID"


def test_an_underpowered_check_gates_nothing_but_is_not_missing() -> None:
    weak = finding("retain_accuracy", gating=False, passed=None, underpowered=True)
    assert decide([*without(passed(), "retain_accuracy"), weak], spec()) == "PASS"


def test_forgetting_itself_is_never_excused() -> None:
    weak = finding("forget_rate", gating=False, passed=None, underpowered=True)
    findings = [finding("integrity"), finding("retain_accuracy"), weak, CONTROL]
    assert decide(findings, spec()) == "ERROR"


def below(tier: str) -> list[str]:
    """Checks of the generator's tiers up to this one."""
    tiers = TIERS["generator"]
    return sorted(check for name, checks in tiers.items() if name <= tier for check in checks)


@pytest.mark.parametrize("tier", ["L0", "L1", "L2", "L3"])
def test_a_tier_is_reached_by_all_checks_of_it_and_of_those_below(tier: str) -> None:
    checks = sorted({*below(tier), "forget_rate"})  # without it no verdict is a PASS
    assert tier_reached(passed(checks), spec(checks)) == tier


def test_a_tier_is_not_reached_when_one_check_is_missing_or_weak() -> None:
    checks = below("L3")
    fewer = [name for name in checks if name != "leakage"]
    assert tier_reached(passed(fewer), spec(fewer)) == "L1"
    weak = finding("compression", gating=False, passed=None, underpowered=True)
    assert tier_reached([*without(passed(checks), "compression"), weak], spec(checks)) == "L2"


def test_what_a_policy_names_beyond_a_tier_is_asked_for_as_well() -> None:
    checks = [*below("L3"), "diffusion_membership"]
    assert tier_reached(passed(checks), spec(checks)) == "L3"
    weak = finding("diffusion_membership", gating=False, passed=None, underpowered=True)
    assert tier_reached([*without(passed(checks), "diffusion_membership"), weak], spec(checks)) == "L2"


def test_no_tier_without_a_pass_or_a_kind() -> None:
    failed = [*without(passed(), "integrity"), finding("integrity", passed=False)]
    assert tier_reached(failed, spec()) is None
    nameless = spec(policy=Policy(name="test", checks=tuple(Check(verifier=name) for name in GATE)))
    assert tier_reached(passed(), nameless) is None


def test_single_samples_have_tiers_of_their_own() -> None:
    checks = sorted(check for checks in SAMPLE_TIERS.values() for check in checks)
    policy = Policy(name="test", kind="classifier", checks=tuple(Check(verifier=name) for name in checks))
    asked = spec(policy=policy, forget_classes=(), forget_samples=("7",))
    control = finding("sample_membership", subject="original", gating=False, control=True, passed=False)
    assert tier_reached([*(finding(name) for name in checks), control], asked) == "L2"
