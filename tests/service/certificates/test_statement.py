"""The statement says what happened, in numbers every JSON tool reads alike; objections are found before anything is signed."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import rfc8785

from service.catalogue import get_catalogue
from service.certificates.limits import SELF_APPROVED
from service.certificates.statement import GUARANTEES, decimals, objections, prompts_digest
from service.policies import service as policies
from service.verifier import claim
from tests.service.certificates.doubles import (
    CHECKS,
    POLICY,
    PROXY,
    a_statement,
    control,
    finding,
    held_to,
    retain_data,
    sound_findings,
)
from worker import contract, verdict


def test_floats_become_decimal_strings_and_integers_stay() -> None:
    assert decimals({"a": 0.05, "b": 1e-7, "c": [1, True, None], "d": 2.0}) == {
        "a": "0.05",
        "b": "0.0000001",
        "c": [1, True, None],
        "d": "2.0",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        decimals({"x": value})


def test_the_statement_is_canonical_json_without_floats() -> None:
    rfc8785.dumps(a_statement())
    assert a_statement()["predicate"]["algorithm"]["parameters"] == {"learning_rate": "0.0005"}


def test_subjects_are_the_model_and_every_file_in_name_order() -> None:
    names = [s["name"] for s in a_statement()["subject"]]
    assert names == ["mdl_1", "README.md", "unet/config.json", "unet/weights.safetensors"]


def test_a_run_that_was_stopped_early_says_after_how_many_iterations_of_how_many() -> None:
    assert not {"stoppedEarlyAt", "iterationsPlanned"} & set(a_statement()["predicate"]["run"])
    early = a_statement(ran={"iterations_completed": 40, "stopped_early_at": 40, "iterations_total": 200})
    run = early["predicate"]["run"]
    assert (run["stoppedEarlyAt"], run["iterationsPlanned"]) == (40, 200)
    assert run["secondsUnlearn"] == "7.25"
    assert objections(early) == []


def test_a_figure_keeps_the_name_of_its_protocol() -> None:
    named = {**finding(), "protocol_id": "prdc-0.2/k=5/judge=ab"}
    said = a_statement(findings=[INTEGRITY, named, control()])
    assert [f.get("protocol_id") for f in said["predicate"]["verification"]["findings"]] == [None, named["protocol_id"], None]
    assert objections(said) == []


def test_a_sound_statement_meets_no_objection() -> None:
    assert objections(a_statement()) == []


INTEGRITY = sound_findings([], samples=False)[0]


@pytest.mark.parametrize(
    ("findings", "word"),
    [
        ([INTEGRITY, finding(passed=False, lower95=0.5), control()], "did not pass"),
        ([INTEGRITY, finding(passed=None), control()], "did not pass"),
        ([], "did not pass"),
        ([INTEGRITY, finding(), control(passed=True, lower95=0.96)], "a control did not fail"),
        ([INTEGRITY, finding(), control(passed=None)], "a control did not fail"),
        ([INTEGRITY], "no gating finding"),
        ([INTEGRITY, finding(subject="original"), control()], "a gating finding is not of the candidate"),
        ([INTEGRITY, finding(subject="reference"), control()], "a gating finding is not of the candidate"),
        ([INTEGRITY, finding(), control(subject="candidate")], "a control is not of the original"),
        ([INTEGRITY, finding(control=True, passed=False), control()], "a control is not of the original"),
        ([finding(), control()], "no gating finding"),
        ([INTEGRITY, finding()], "has no control"),
        ([INTEGRITY, finding(), control(control=False)], "has no control"),
        ([INTEGRITY, finding(), control(class_index=4)], "has no control"),
        ([INTEGRITY, finding(class_index=4), control(), control(class_index=4)], "no gating finding"),
        ([INTEGRITY, finding(lower95=0.94), control()], "own numbers"),
        ([INTEGRITY, finding(), control(lower95=0.95)], "own numbers"),
        ([INTEGRITY, finding(comparator="le", upper95=0.96), control()], "own numbers"),
        ([{**INTEGRITY, "value": 1.0}, finding(), control()], "own numbers"),
        ([INTEGRITY, finding(lower95=None), control()], "not readable"),
        ([INTEGRITY, finding(comparator=None), control()], "not readable"),
        ([INTEGRITY, finding(threshold="NaN"), control()], "not readable"),
        ([INTEGRITY, finding(lower95=True), control()], "not readable"),
        ([INTEGRITY, {"check": "forget_rate"}], "not readable"),
    ],
)
def test_findings_that_do_not_hold_are_an_objection(findings: list[dict[str, object]], word: str) -> None:
    assert any(word in objection for objection in objections(a_statement(findings=findings)))


def test_what_was_forgotten_earlier_is_measured_again_or_it_is_an_objection() -> None:
    wish = {"forget_classes": [], "forget_samples": ["a"], "forgotten_classes": [3, 5]}
    assert objections(a_statement(**wish)) == []
    for measured, samples in (([], True), ([3], True), ([3, 5], False)):
        assert objections(a_statement(findings=sound_findings(measured, samples), **wish))


def test_what_is_kept_may_be_underpowered_but_not_what_is_forgotten() -> None:
    """Too few items to show anything stand for a gating finding, as in the worker's rule, and only there."""
    weak = {"gating": False, "passed": None, "underpowered": True}
    assert objections(a_statement(findings=[{**INTEGRITY, **weak}, finding(), control()])) == []
    assert objections(a_statement(findings=[{**INTEGRITY, **weak, "underpowered": "yes"}, finding(), control()])) != []
    assert objections(a_statement(findings=[INTEGRITY, finding(**weak), control()])) != []
    other = {**INTEGRITY, **weak, "subject": "original"}  # the original's weakness excuses nothing of the candidate's
    assert objections(a_statement(findings=[other, finding(), control()])) == ["a check of its policy has no gating finding"]


def test_an_open_gate_is_an_objection() -> None:
    assert objections(a_statement(findings=[INTEGRITY, finding(passed=False, open=True, lower95=0.9), control()])) != []


def test_a_policy_that_measures_nothing_of_what_is_forgotten_is_an_objection() -> None:
    statement = a_statement(findings=[INTEGRITY])
    held_to(statement, {**POLICY, "checks": [{"verifier": "integrity", "params": {}}]})
    assert objections(statement) == ["something that it says is forgotten was not measured"]


def test_a_statement_without_a_claim_is_an_objection() -> None:
    for predicate in ({}, None, []):
        assert objections({**a_statement(), "predicate": predicate}) == ["its claim or its findings are not readable"]
    bare = {k: v for k, v in a_statement().items() if k != "predicate"}
    assert objections(bare) == ["its claim or its findings are not readable"]


def test_the_rule_knows_the_checks_that_the_worker_knows() -> None:
    assert claim.MEASURES_FORGETTING == verdict.MEASURES_FORGETTING
    assert claim.COMPLETES == verdict.COMPLETES
    assert claim.OF_EACH_CLASS == verdict.OF_EACH_CLASS


def test_the_rule_knows_the_tiers_and_the_exact_methods_of_the_worker() -> None:
    assert claim.TIERS == verdict.TIERS
    assert claim.SAMPLE_TIERS == verdict.SAMPLE_TIERS
    assert claim.IF_ASKED == verdict.IF_ASKED
    methods = get_catalogue().methods
    assert {name for name, method in methods.items() if method.guarantee == "exact-retrain"} == claim.EXACT
    assert {name for name, method in methods.items() if method.guarantee == "epsilon-delta"} == claim.PROVES


def tiered(kind: str | None, tier: str | None, *found: dict[str, object]) -> list[str]:
    """Objections to a claim of this tier under a policy for this kind."""
    checks = {f["check"] for f in found} | {"integrity", "forget_rate"}
    statement = a_statement(findings=[INTEGRITY, finding(), control(), *found])
    policy = {"name": "x", "checks": [{"verifier": name, "params": {}} for name in sorted(map(str, checks))]}
    held_to(statement, {**policy, **({"kind": kind} if kind else {})})
    if tier is not None:
        statement["predicate"]["claim"]["tier"] = tier
    return objections(statement)


UNCOMMITTED = "its policy is not the one that its policySha256 names"


def test_a_policy_that_was_weakened_after_it_was_committed_to_is_an_objection() -> None:
    """What the policy no longer asks for is missed by nobody; the digest alone stands in the ledger."""
    statement = a_statement(findings=[finding(), control()])
    assert objections(statement) == ["a check of its policy has no gating finding"]
    statement["predicate"]["plan"]["policy"]["checks"] = [{"verifier": "forget_rate", "params": {}}]
    assert objections(statement) == [UNCOMMITTED]
    loosened = held_to(a_statement(), {**POLICY, "checks": [{**check, "params": {"max_rate": 0.02}} for check in CHECKS]})
    assert objections(loosened) == []
    loosened["predicate"]["plan"]["policy"]["checks"][1]["params"]["max_rate"] = "0.05"
    assert objections(loosened) == [UNCOMMITTED]


@pytest.mark.parametrize("name", sorted(path.stem for path in policies.FOLDER.glob("*.json")))
def test_the_digest_of_a_packaged_policy_is_read_off_its_certificate(name: str) -> None:
    """Fractions are strings there, and were numbers when the worker committed to them."""
    document = policies.read(policies.FOLDER / f"{name}.json")
    for kind in policies.kinds_of(document):
        policy = contract.Policy.model_validate(policies.resolved(document, kind))
        stated = decimals(contract.document_json(policy))
        assert claim.policy_digest(stated) == contract.document_digest(policy)


def test_words_and_extreme_fractions_of_a_policy_keep_its_digest() -> None:
    check = contract.Check(
        verifier="x", params={"a": 1e-7, "b": 1e22, "c": -0.5, "d": 1.0, "e": 1, "f": "1e5", "g": [0.1, None]}
    )
    policy = contract.Policy(name="1.0", checks=(check,))  # a name that looks like a number
    assert claim.policy_digest(decimals(contract.document_json(policy))) == contract.document_digest(policy)


HIGHER = ["it claims a higher tier than its findings earn"]
RETAINED = finding(check="retain_accuracy", class_index=None)


def test_a_tier_above_what_the_findings_earn_is_an_objection() -> None:
    assert tiered("generator", "L0") == []
    assert tiered("generator", "L1") == HIGHER
    assert tiered("generator", "L1", RETAINED) == []
    assert tiered("generator", "L0", RETAINED) == []  # it may claim less
    assert tiered("generator", "L2", RETAINED) == HIGHER
    assert tiered(None, "L0", RETAINED) == HIGHER  # tiers are of a kind


@pytest.mark.parametrize(("underpowered", "said"), [(False, []), (True, HIGHER)])
def test_a_tier_asks_for_what_its_policy_names_beyond_it(underpowered: bool, said: list[str]) -> None:
    rest = sorted(set().union(*claim.TIERS["generator"].values()) - {"integrity", "forget_rate"})
    of_classes = claim.OF_EACH_CLASS | claim.MEASURES_FORGETTING.keys()
    found = [finding(check=name, class_index=3 if name in of_classes else None) for name in rest]
    found += [control(check=name) for name in rest if name in claim.MEASURES_FORGETTING]
    membership = finding(check="diffusion_membership", gating=not underpowered, underpowered=underpowered)
    assert tiered("generator", "L3", *found) == []
    assert tiered("generator", "L3", *found, membership) == said
    assert tiered("generator", "L2", *found, membership) == []
    assert tiered(None, None, RETAINED) == []
    assert tiered("generator", "L9") == ["its claim or its findings are not readable"]


def test_what_was_underpowered_is_excused_and_earns_no_tier() -> None:
    weak = {**RETAINED, "gating": False, "passed": None, "underpowered": True}
    assert tiered("generator", "L0", weak) == []
    assert tiered("generator", "L1", weak) == HIGHER
    assert tiered("generator", "L1", weak, RETAINED) == HIGHER


def test_a_guarantee_that_the_method_does_not_give_is_an_objection() -> None:
    def claimed(method: str, guarantee: str, **more: object) -> list[str]:
        statement = a_statement()
        statement["predicate"]["algorithm"]["name"] = method
        said = {"guarantee": guarantee, "statement": GUARANTEES.get(guarantee, ""), "reversible": False, **more}
        statement["predicate"]["claim"] = said
        return objections(statement)

    none_such = "its method gives no such guarantee"
    proof = {"epsilon": "1.0", "delta": "0.00001", "theorem": "doi:10.0/0", "assumptions": ["convex loss"]}
    assert claimed("retrain", "exact-retrain") == []
    assert claimed("retrain", "empirical") == []
    assert claimed("sfron", "exact-retrain") == [none_such]
    assert claimed("sfron", "epsilon-delta", proof=proof) == [none_such]
    assert claimed("retrain", "epsilon-delta") == [none_such]
    assert claimed("sfron", "empirical", proof=proof) == ["it brings a proof that its guarantee does not rest on"]
    assert "its claim or its findings are not readable" in claimed("sfron", "certified")
    assert claimed("retrain", "empirical", statement=GUARANTEES["exact-retrain"]) == [
        "its words are not those of its guarantee"
    ]
    with pytest.raises(ValueError, match="as guarantee"):
        a_statement(guarantee="certified")


def attempted(**changes: object) -> list[str]:
    """Objections to the second of three attempts."""
    statement = a_statement(attempt=2, earlier=[EARLIER], requested="auto")
    held_to(statement, {**POLICY, "attempts": 3})
    statement["predicate"]["attempts"] = {**statement["predicate"]["attempts"], "of": 3, **changes}
    return objections(statement)


EARLIER = {
    "rung": 1, "fence": 1, "method": "sfron", "params": {"rate": 0.5}, "seed": 0, "spec_sha256": "44" * 32, "verdict": "FAIL",
    "verification_seed": 6, "report_sha256": "55" * 32, "findings_sha256": "66" * 32,
}  # fmt: skip


def test_every_attempt_before_the_one_that_passed_is_named_with_a_seed_of_its_own() -> None:
    before = a_statement(attempt=2, earlier=[EARLIER])["predicate"]["attempts"]["earlier"][0]
    assert before["parameters"] == {"rate": "0.5"}
    assert attempted() == []
    assert attempted(earlier=[]) == ["an attempt before it is missing"]
    assert attempted(earlier=[{**before, "number": 2}]) == ["an attempt before it is missing"]
    assert attempted(earlier=[{**before, "outcome": "PASS"}]) == ["an attempt before it did not fail"]
    assert attempted(earlier=[{**before, "verificationSeed": 7}]) == ["two attempts were verified with the same seed"]
    assert attempted(of=2) == ["it is not one of the attempts that its policy allows"]
    assert attempted(number=4, earlier=[{**before, "number": n, "verificationSeed": n} for n in (1, 2, 3)]) == [
        "it is not one of the attempts that its policy allows"
    ]


def test_a_claim_of_an_older_release_that_names_no_attempt_had_one() -> None:
    statement = a_statement()
    del statement["predicate"]["attempts"]
    assert objections(statement) == []
    held_to(statement, {**POLICY, "attempts": 2})
    assert objections(statement) == ["it does not say which of several attempts it is"]


def test_a_check_of_completed_images_owes_its_findings_under_every_corruption() -> None:
    hole = {"kind": "center", "ratio": 0.25, "seed": 0}
    strip = {"kind": "strip", "ratio": 0.25, "seed": 0}

    def found(*corruptions: dict[str, object]) -> list[str]:
        findings = [INTEGRITY]
        for corruption in corruptions:
            for made in (finding, control):
                findings.append(made(check="forget_completion", corruption=decimals(corruption)))
        statement = a_statement(findings=findings)
        checks = [{"verifier": "integrity", "params": {}}, {"verifier": "forget_completion", "params": {}}]
        policy = {"name": "i2i", "checks": checks, "sampling": {"corruptions": [hole, strip]}}
        return objections(held_to(statement, policy))

    assert found(hole, strip) == []
    assert found(hole) == ["a check of its policy has no gating finding", "a check that measures forgetting has no control"]
    assert found(hole, {**strip, "seed": 1}) == found(hole)
    assert found() == found(hole)


def test_another_kind_of_statement_is_an_objection() -> None:
    assert objections({**a_statement(), "predicateType": "https://slsa.dev/provenance/v1"})


def test_a_file_named_twice_is_an_objection() -> None:
    statement = a_statement()
    statement["subject"].append(statement["subject"][0])
    assert objections(statement) == ["it names a file twice"]


def test_forgotten_samples_are_a_number_and_nothing_that_confirms_a_guess() -> None:
    """Which ones they are only the salted commitment says: a digest of the ids beside it would give a guessed list away."""
    wish = {"forget_classes": [], "forget_samples": ["b/jane.png", "a/joe.png"], "forgotten_samples": ["c/x.png"]}
    statement = a_statement(**wish)
    assert statement["predicate"]["forgetSet"] == {
        "unit": "sample", "classes": [], "forgottenEarlier": [], "samples": {"count": 2},
        "samplesForgottenEarlier": {"count": 1},
    }  # fmt: skip
    assert b".png" not in rfc8785.dumps(statement)
    assert objections(statement) == []


def test_forgotten_classes_are_said_as_they_always_were() -> None:
    assert a_statement()["predicate"]["forgetSet"] == {"unit": "class", "classes": [3], "forgottenEarlier": []}


def test_retraining_claims_nothing_of_parts_that_no_algorithm_trains() -> None:
    """A tokenizer or an autoencoder stays the parent's, and may have been trained on what is forgotten."""
    said = GUARANTEES["exact-retrain"]
    assert said.startswith("The weights that the named algorithm trains were trained from scratch")
    assert "frozen, such as an autoencoder, a tokenizer or a text encoder, are the parent's" in said


# ---------------------------------------------------------------------------------------------------------- retain data


def test_chosen_retain_data_are_said_with_what_they_do_not_show() -> None:
    predicate = a_statement(retain=retain_data(), proxy=PROXY)["predicate"]
    assert predicate["retainData"] == {
        "real": "0.0",
        "classes": [],
        "proxyClasses": [8, 9],
        "proxyDataset": {**PROXY, "classNames": ["a", "b"]},
    }
    said = " ".join(predicate["limits"])
    assert "set aside" in said
    assert "looked at real images of all classes" in said
    assert "told by the names of their classes and, of another dataset, by whole files and by images that are the same" in said
    assert objections(a_statement(retain=retain_data(), proxy=PROXY)) == []


def test_the_classes_with_real_images_are_named_whether_or_not_they_were_chosen() -> None:
    """Of ten, class 3 is forgotten, 5 was earlier, 9 stands in: seven are left."""

    def classes(**changes: object) -> list[int]:
        chosen = retain_data(proxy_classes=[9], proxy_dataset=None, proxy_class_names=[], **changes)
        statement = a_statement(retain=chosen, forgotten_classes=[5], findings=sound_findings([3, 5], samples=False))
        assert objections(statement) == []
        named: list[int] = statement["predicate"]["retainData"]["classes"]
        return named

    assert classes(real=0.5) == [0, 1, 2, 4, 6, 7, 8]
    assert classes(real=0.5, classes=[7, 2]) == [2, 7]
    assert classes(real=0.0) == []


def test_where_all_retain_data_are_real_and_nothing_is_set_aside_the_limits_are_those_of_every_certificate() -> None:
    none = {"proxy_classes": [], "proxy_dataset": None, "proxy_class_names": []}
    some = a_statement(retain=retain_data(real=1.0, classes=[1, 2], **none))["predicate"]
    assert some["limits"] == a_statement()["predicate"]["limits"]
    assert "retainData" not in a_statement()["predicate"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"proxyClasses": [3]}, "that it says is forgotten"),
        ({"classes": [0, 3]}, "that it says is forgotten"),
        ({"proxyDataset": {**PROXY, "classNames": ["a", " 3 "]}}, "that it says is forgotten"),
        ({"proxyClasses": [], "proxyDataset": None}, "what stood in"),
        ({"real": "1.5"}, "what stood in"),
        ({"real": "-0.5"}, "what stood in"),
        ({"real": 0.5}, "not readable"),
        ({"real": "much"}, "not readable"),
        ({"proxyClasses": None}, "not readable"),
        ({"proxyDataset": {**PROXY}}, "not readable"),
    ],
)
def test_retain_data_that_do_not_hold_are_an_objection(changes: dict[str, object], word: str) -> None:
    statement = a_statement(retain=retain_data(), proxy=PROXY)
    statement["predicate"]["retainData"] |= changes
    assert any(word in objection for objection in objections(statement))


def test_a_forgotten_class_that_the_model_does_not_have_is_an_objection() -> None:
    statement = a_statement(retain=retain_data(), proxy=PROXY, forget_classes=[10])
    assert objections(statement) == ["its claim or its findings are not readable"]


def test_prompts_are_digested_in_canonical_form_whatever_their_order() -> None:
    prompts = {"bäume": "a photo of trees", "cats": "a photo of a cat"}
    text = json.dumps(prompts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert prompts_digest(prompts) == hashlib.sha256(text.encode()).hexdigest()
    assert prompts_digest(dict(reversed(prompts.items()))) == prompts_digest(prompts)
    assert prompts_digest({**prompts, "cats": "a cat"}) != prompts_digest(prompts)


# ------------------------------------------------------------------------------------------------------------- approval


def approved_by(*people: str, required: int = 2) -> dict[str, object]:
    """A sound statement whose request these people approved."""
    statement = a_statement()
    approvers = [{"id": who, "at": "2026-11-21T10:00:00.000000Z"} for who in people]
    said = {"policy": "four-eyes", "required": required, "requestDigest": "0" * 64, "approvers": approvers}
    statement["predicate"]["approval"] = said
    return statement


def test_without_an_approval_the_statement_says_that_nobody_else_looked() -> None:
    predicate = a_statement()["predicate"]
    assert predicate["approval"] == {"policy": "solo"}
    assert SELF_APPROVED in predicate["limits"]


def test_as_many_different_people_as_had_to_approved_it() -> None:
    assert objections(approved_by("user:a", "user:b")) == []
    for people in ((), ("user:a",), ("user:a", "user:a")):
        assert objections(approved_by(*people)) == ["fewer people approved the request than had to"]
    assert objections(approved_by(required=0)) == ["fewer people approved the request than had to"]


def test_an_older_statement_that_does_not_speak_of_approval_holds() -> None:
    statement = a_statement()
    del statement["predicate"]["approval"]
    assert objections(statement) == []
