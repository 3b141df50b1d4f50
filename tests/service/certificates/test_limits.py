"""A limit is said where it holds, and only there."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from service.certificates import limits
from service.certificates.limits import known_limits
from tests.service.certificates.doubles import a_statement
from worker import verdict
from worker.contract import Report


def _said(*checks: str, **more: Any) -> list[str]:
    findings = [{"check": c, "metric": "m", "subject": "candidate"} for c in checks]
    return known_limits(**{"kind": "generator", "findings": findings, "judged": True, **more})


ROBUSTNESS = {"relearning", "resurgence", "compression", "side_channels"}


@pytest.mark.parametrize("kind", sorted(verdict.TIERS))
def test_the_wanted_checks_are_those_of_the_tiers_and_more_where_a_kind_has_no_third_one(kind: Any) -> None:
    assert set(limits.WANTED[kind]) - ROBUSTNESS <= set().union(*verdict.TIERS[kind].values())
    assert set(limits.WANTED[kind]) >= set().union(*verdict.TIERS[kind].values())
    assert set(limits.WANTED["samples"]) == set().union(*verdict.SAMPLE_TIERS.values())


def test_every_wanted_check_has_its_sentence_and_every_tier_its_meaning() -> None:
    assert {check for checks in limits.WANTED.values() for check in checks} == set(limits.NOT_RUN)
    assert set(limits.TIERS) == {"L0", "L1", "L2", "L3"}
    assert all(sentence.endswith(".") for sentence in limits.NOT_RUN.values())
    assert get_args(Report.model_fields["tier"].annotation) != ()


def test_what_was_run_is_not_said_to_be_missing() -> None:
    assert limits.NOT_RUN["sdedit"] in _said("forget_rate")
    assert limits.NOT_RUN["sdedit"] not in _said("sdedit")
    assert limits.NOT_RUN["forget_rate"] not in _said("forget_rate")


def test_what_could_not_be_measured_was_not_run() -> None:
    tried = [{"check": "sdedit", "metric": "not_measured", "subject": "candidate"}]
    assert limits.NOT_RUN["sdedit"] in known_limits(kind="generator", findings=tried, judged=True)


def test_population_tests_of_membership_are_said_to_overstate() -> None:
    assert limits.POPULATION in _said("class_membership", kind="classifier")
    assert limits.POPULATION not in _said("forget_accuracy", kind="classifier")


def test_what_was_completed_was_completed_in_one_way() -> None:
    assert limits.AS_HIDDEN in _said("forget_completion", kind="i2i")
    assert limits.AS_HIDDEN not in _said("retain_completion", kind="i2i")


def test_an_underpowered_check_is_named() -> None:
    weak = [{"check": "linear_probe", "metric": "recall", "subject": "candidate", "underpowered": True}]
    assert any("linear probe had so little" in s for s in known_limits(kind="classifier", findings=weak, judged=False))


def test_provider_reference_and_certificate() -> None:
    assert limits.OWN_TESTS[1] in _said("forget_rate")
    assert limits.NO_REFERENCE in _said("forget_rate")
    with_reference = [{"check": "relearning", "metric": "m", "subject": "reference"}]
    assert limits.NO_REFERENCE not in known_limits(kind="generator", findings=with_reference, judged=True)
    assert limits.SCOPE[0] not in _said("forget_rate")
    assert limits.SCOPE[0] in _said("forget_rate", guarantee="empirical")
    assert limits.NO_REFERENCE not in _said("forget_rate", guarantee="exact-retrain")


def test_where_only_samples_were_forgotten_nothing_is_missed_about_classes() -> None:
    said = _said(kind="classifier", units=["samples"])
    assert limits.NOT_RUN["sample_membership"] in said
    assert limits.NOT_RUN["linear_probe"] not in said


def test_the_certificate_carries_the_same_sentences() -> None:
    said = a_statement()["predicate"]["limits"]
    assert set(limits.SCOPE) | set(limits.OWN_TESTS) <= set(said)


def test_asking_anew_after_a_rejection_is_said_with_its_number() -> None:
    assert _said("forget_rate", rejected_before=2).count(limits.asked_before(2)) == 1
    assert "2 earlier requests" in limits.asked_before(2)
    assert "one of these 3 passes by luck may be 3 times" in limits.asked_before(2)
    assert "1 earlier request to" in limits.asked_before(1)
    assert not any("earlier request" in sentence for sentence in _said("forget_rate"))


def test_a_certificate_under_a_policy_that_names_no_kind_says_what_was_not_tested() -> None:
    """The kind is the family's: the old policies, such as basic-v1, name none."""
    said = a_statement(kind="generator")["predicate"]["limits"]
    assert limits.NOT_RUN["relearning"] in said
    assert limits.NOT_RUN["forget_rate"] not in said


def test_the_certificate_counts_rejected_requests() -> None:
    predicate = a_statement(rejected_before=3)["predicate"]
    assert predicate["attempts"]["rejectedRequests"] == 3
    assert limits.asked_before(3) in predicate["limits"]


@pytest.mark.parametrize("state", ["withdrawn", "quarantined", "destroyed"])
def test_a_parent_that_its_operator_took_out_of_use_is_named(state: str) -> None:
    told = {"findings": [], "judged": False, "kind": None}
    said = limits.known_limits(**told, parent={"certificate": None, "disposition": {"state": state}})  # type: ignore[arg-type]
    assert limits.taken_out_of_use(state) in said
    served = limits.known_limits(**told, parent={"disposition": {"state": "still-served"}})  # type: ignore[arg-type]
    assert served == limits.known_limits(**told)  # type: ignore[arg-type]
