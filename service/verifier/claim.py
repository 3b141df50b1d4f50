"""Does what a certificate says follow from its own findings? The rule of the signer and of the offline verifier. Pure.

Nobody's word is taken: not for the verdict, which follows from the findings, and not for a finding, which follows from its
numbers. Numbers are integers or decimal strings, as in the statement.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

_CLASSES = "forget_rate forget_confidence forget_distance forget_accuracy forget_completion label_inversion sdedit"
MEASURES_FORGETTING: dict[str, Literal["classes", "samples"]]
MEASURES_FORGETTING = {**dict.fromkeys(_CLASSES.split(), "classes"), "sample_membership": "samples"}
"""Checks whose word counts only beside an original that fails them; and what they show to be forgotten."""
_EACH = "leakage setting_sweep form_of_forgetting class_membership linear_probe head_restore reference_distance"
OF_EACH_CLASS = frozenset(f"{_EACH} reference_membership relearning resurgence compression diffusion_membership".split())
"""Checks without a control that owe a finding on each class by itself, as those of the classes above do."""
COMPLETES = frozenset({"forget_completion", "retain_completion", "published_metrics"})
"""Checks of completed images. What they owe, they owe under every corruption of the policy by itself."""
HEIGHTS = ("L0", "L1", "L2", "L3")
_GENERATOR = (
    "integrity", "forget_rate retain_accuracy",
    "forget_confidence forget_distance leakage setting_sweep form_of_forgetting feature_distance retain_coverage",
    "relearning resurgence label_inversion sdedit compression side_channels",
)  # fmt: skip
_CLASSIFIER = (
    "integrity", "forget_accuracy retain_test_accuracy", "class_membership linear_probe head_restore retain_calibration",
    "relearning resurgence compression side_channels",
)  # fmt: skip
_I2I = ("integrity frozen_decoder", "forget_completion retain_completion", "linear_probe")
_SAMPLES = ("integrity", "retain_test_accuracy", "sample_membership")
TIERS = {
    kind: {height: frozenset(checks.split()) for height, checks in zip(HEIGHTS, asked, strict=False)}
    for kind, asked in {"generator": _GENERATOR, "classifier": _CLASSIFIER, "i2i": _I2I, "samples": _SAMPLES}.items()
}
"""What each tier asks for beyond those below it, by the policy's kind of model, or where only single samples are forgotten."""
SAMPLE_TIERS = TIERS.pop("samples")
IF_ASKED = {"generator": {"L3": frozenset({"diffusion_membership"})}}
"""Checks that a tier asks for only of policies that name them."""
EXACT, PROVES = frozenset({"retrain"}), frozenset[str]()
"""Methods that train anew without what is forgotten; methods that come with a proof, of which there are none yet."""
SPENT = frozenset({"FAIL", "INCONCLUSIVE", "diverged"})
"""How an attempt before the one that passed may have ended."""
NAMES = frozenset({"name", "kind", "verifier", "sampler"})
"""Fields of a policy that are words, and so no numbers even where they look like some."""
FRACTION = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class Unreadable(ValueError):
    """The claim is not written as ours are."""


def shortcomings(predicate: Mapping[str, Any]) -> list[str]:
    """Why a statement's claim does not hold by its own findings, each in words; empty when it does.

    Raises:
        Unreadable: something of it is missing, or is of another kind.
    """
    try:
        rules = (_of_policy, _of_findings, _of_attempts, _of_retain_data, _of_claim, _of_approval)
        return [words for rule in rules for words, broken in rule(predicate).items() if broken]
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, RecursionError) as error:
        raise Unreadable("the claim or its findings are not readable") from error


def policy_digest(stated: Mapping[str, Any]) -> str:
    """SHA-256 of a policy as a statement has it, with its decimal strings read as the fractions that they were.

    Of the JSON with sorted keys and fractions as floats: the form in which the ledger's `plan.committed` has hashed it.
    """
    text = json.dumps(_as_committed(stated), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_committed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: one if key in NAMES else _as_committed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_committed(one) for one in value]
    return float(value) if isinstance(value, str) and FRACTION.fullmatch(value) else value


def _of_policy(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """What is owed is read from the policy, and what was committed to before the run is its digest: of this very document."""
    plan = predicate["plan"]
    return {"its policy is not the one that its policySha256 names": policy_digest(plan["policy"]) != plan["policySha256"]}


def _of_findings(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """All that the policy owes a finding on has one, and what is said to be forgotten was measured beside a control. That there
    were too few items to show anything is said instead of a finding, but not by a check that measures forgetting. What passes
    must be the candidate, and what fails the original: the other one's number says nothing of either."""
    policy, findings, forgotten = predicate["plan"]["policy"], predicate["verification"]["findings"], _forgotten(predicate)
    gating, controls = [f for f in findings if f["gating"]], [f for f in findings if f["control"]]
    checks = {check["verifier"] for check in policy["checks"]}
    owed = {
        (name, k, json.dumps(corruption, sort_keys=True))
        for name in checks
        for k in forgotten.get(_unit(name) or "", [None])
        for corruption in (policy.get("sampling", {}).get("corruptions") if name in COMPLETES else None) or [None]
    }
    mine = [f for f in findings if f["subject"] == "candidate"]
    excused = [f for f in mine if f.get("underpowered") is True and f["check"] not in MEASURES_FORGETTING]
    measured = {MEASURES_FORGETTING[name] for name in checks & MEASURES_FORGETTING.keys()}
    return {
        "its verdict is not PASS": predicate["verification"]["verdict"] != "PASS",
        "a gating finding did not pass": not gating or any(f["passed"] is not True for f in gating),
        "a gating finding is not of the candidate": any(f["subject"] != "candidate" for f in gating),
        "a control is not of the original": any(f["subject"] != "original" for f in controls),
        "a control did not fail": any(f["passed"] is not False for f in controls),
        "a finding's own numbers say otherwise than it does": any(
            f["passed"] is not _meets(f) for f in (*gating, *controls) if f["passed"] is not None
        ),
        "a check of its policy has no gating finding": not checks or owed - set(map(_about, (*gating, *excused))),
        "something that it says is forgotten was not measured": {u for u, some in forgotten.items() if some} - measured,
        "a check that measures forgetting has no control": {about for about in owed if about[0] in MEASURES_FORGETTING}
        - set(map(_about, controls)),
    }


def _of_attempts(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Results that may be verified in turn share the chance of a false PASS: all before this one must be named."""
    allowed, said = predicate["plan"]["policy"].get("attempts", 1), predicate.get("attempts")
    if said is None:  # of releases that knew of one attempt alone
        return {"it does not say which of several attempts it is": allowed != 1}
    number, earlier = said["number"], said["earlier"]
    seeds = [one["verificationSeed"] for one in earlier if "verificationSeed" in one] + [predicate["verification"]["seed"]]
    return {
        "it is not one of the attempts that its policy allows": said["of"] != allowed or not 1 <= number <= allowed,
        "an attempt before it is missing": [one["number"] for one in earlier] != list(range(1, number)),
        "an attempt before it did not fail": any(one["outcome"] not in SPENT for one in earlier),
        "two attempts were verified with the same seed": len(set(seeds)) != len(seeds),
    }


def _of_retain_data(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """What stood in for retained data is named, and nothing that is forgotten; names as the service compares them."""
    if "retainData" not in predicate:
        return {}
    data, gone = predicate["retainData"], set(_forgotten(predicate)["classes"])
    real, dataset = _number(data["real"]), data.get("proxyDataset")
    names = {predicate["model"]["classNames"][k].strip().casefold() for k in gone}
    shown = {name.strip().casefold() for name in dataset["classNames"]} if dataset else set()
    return {
        "it does not say what stood in for real retained data": not 0 <= real <= 1
        or (real < 1 and not data["proxyClasses"] and not dataset),
        "retained or proxy data held a class that it says is forgotten": gone & {*data["proxyClasses"], *data["classes"]}
        or names & shown,
    }


def _of_claim(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """No tier above the highest of which, and of those below it, every check gated (what was underpowered proves nothing), and
    no guarantee that the method does not give."""
    policy, findings, said = predicate["plan"]["policy"], predicate["verification"]["findings"], predicate["claim"]
    tiers = (TIERS[policy["kind"]] if _forgotten(predicate)["classes"] else SAMPLE_TIERS) if policy.get("kind") else {}
    more = IF_ASKED.get(policy["kind"], {}) if policy.get("kind") and _forgotten(predicate)["classes"] else {}
    named = {check["verifier"] for check in policy["checks"]}
    gated = {f["check"] for f in findings if f["gating"]} & named
    powered = gated - {f["check"] for f in findings if f.get("underpowered")}
    claimed = HEIGHTS[: HEIGHTS.index(said["tier"]) + 1] if said.get("tier") is not None else ()
    method = predicate["algorithm"]["name"]
    given = {"empirical": True, "exact-retrain": method in EXACT, "epsilon-delta": method in PROVES}[said["guarantee"]]
    if given and said["guarantee"] == "epsilon-delta":
        given = _number(said["proof"]["epsilon"]) >= 0 and 0 <= _number(said["proof"]["delta"]) < 1
    return {
        "it claims a higher tier than its findings earn": not all(
            h in tiers and tiers[h] | (more.get(h, frozenset()) & named) <= powered for h in claimed
        ),
        "its method gives no such guarantee": not given,
        "it brings a proof that its guarantee does not rest on": "proof" in said and said["guarantee"] != "epsilon-delta",
    }


def _of_approval(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """As many different people as had to, approved the request. Earlier releases do not speak of it."""
    said = predicate.get("approval", {"policy": "solo"})
    if said["policy"] == "solo":
        return {"it is self-approved, and names approvers": said.get("approvers")}
    who = {one["id"] for one in said["approvers"]}
    return {
        "its approval is of no kind that there is": said["policy"] != "four-eyes" or not said["requestDigest"],
        "fewer people approved the request than had to": not 1 <= said["required"] <= len(who),
    }


def _forgotten(predicate: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """What each kind of check owes a finding on: every class by itself, samples together."""
    said = predicate["forgetSet"]
    counts = [said[key]["count"] for key in ("samples", "samplesForgottenEarlier") if key in said]
    return {"classes": [*said["classes"], *said["forgottenEarlier"]], "samples": [None] if any(counts) else []}


def _unit(check: str) -> str | None:
    """What a check owes its word on, one by one; None: on all together."""
    return "classes" if check in OF_EACH_CLASS else MEASURES_FORGETTING.get(check)


def _about(finding: Mapping[str, Any]) -> tuple[str, int | None, str]:
    """The check, its class and its corruption, as far as the check owes findings on each."""
    check = finding["check"]
    corruption = (finding.get("corruption") or None) if check in COMPLETES else None
    return check, finding["class_index"] if _unit(check) == "classes" else None, json.dumps(corruption, sort_keys=True)


def _meets(finding: Mapping[str, Any]) -> bool:
    """Is the threshold met, at the 95 % bound that is the cautious one? A control may be held to the other one alone."""
    upper = "lower95" if finding["control"] and finding["upper95"] is None else "upper95"
    bound = {"ge": "lower95", "le": upper, "eq": "value"}[finding["comparator"]]
    value, threshold = _number(finding[bound]), _number(finding["threshold"])
    return {"ge": value >= threshold, "le": value <= threshold, "eq": value == threshold}[finding["comparator"]]


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | str) or not (number := Decimal(value)).is_finite():
        raise Unreadable("expected a finite integer or decimal string")
    return number
