"""Does what a certificate says follow from its own findings? The rule of the signer and of the offline verifier. Pure.

Nobody's word is taken: not for the verdict, which follows from the findings, and not for a finding, which follows from its
numbers. Numbers are integers or decimal strings, as in the statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

MEASURES_FORGETTING: dict[str, Literal["classes", "samples"]] = {
    "forget_rate": "classes",
    "forget_confidence": "classes",
    "forget_distance": "classes",
    "forget_accuracy": "classes",
    "forget_completion": "classes",
    "label_inversion": "classes",
    "sdedit": "classes",
    "sample_membership": "samples",
}
"""Checks whose word counts only beside an original that fails them; and what they show to be forgotten."""

OF_EACH_CLASS: frozenset[str] = frozenset(
    {"leakage", "setting_sweep", "form_of_forgetting", "class_membership", "linear_probe", "head_restore"}
    | {"reference_distance", "reference_membership", "relearning", "resurgence", "compression"}
)
COMPLETES: frozenset[str] = frozenset({"forget_completion", "retain_completion", "published_metrics"})
"""Checks of completed images. What they owe, they owe under every corruption of the policy by itself."""

TIERS: dict[str, dict[str, frozenset[str]]] = {
    "generator": {
        "L0": frozenset({"integrity"}),
        "L1": frozenset({"forget_rate", "retain_accuracy"}),
        "L2": frozenset(
            {"forget_confidence", "forget_distance", "leakage", "setting_sweep", "form_of_forgetting"}
            | {"feature_distance", "retain_coverage"}
        ),
        "L3": frozenset({"relearning", "resurgence", "label_inversion", "sdedit", "compression", "side_channels"}),
    },
    "classifier": {
        "L0": frozenset({"integrity"}),
        "L1": frozenset({"forget_accuracy", "retain_test_accuracy"}),
        "L2": frozenset({"class_membership", "linear_probe", "head_restore", "retain_calibration"}),
        "L3": frozenset({"relearning", "resurgence", "compression", "side_channels"}),
    },
    "i2i": {
        "L0": frozenset({"integrity", "frozen_decoder"}),
        "L1": frozenset({"forget_completion", "retain_completion"}),
        "L2": frozenset({"linear_probe"}),
    },
}
"""What each tier asks for beyond those below it, lowest first, by the kind of model that the policy is for."""

SAMPLE_TIERS: dict[str, frozenset[str]] = {
    "L0": frozenset({"integrity"}),
    "L1": frozenset({"retain_test_accuracy"}),
    "L2": frozenset({"sample_membership"}),
}
"""The same where nothing but single samples was ever to be forgotten."""

HEIGHTS = ("L0", "L1", "L2", "L3")
EXACT = frozenset({"retrain"})
"""Methods that train anew without what is forgotten: the only ones whose result may be called exact."""

PROVES: frozenset[str] = frozenset()
"""Methods that come with a proof: none yet, so no certificate may claim one."""

SPENT = frozenset({"FAIL", "INCONCLUSIVE", "diverged"})
"""How an attempt before the one that passed may have ended."""

Finding = Mapping[str, Any]
About = tuple[str, int | None, str | None]
"""A check, the class that it looked at (None: at everything together), and the corruption, as JSON with sorted keys."""


class Unreadable(ValueError):
    """The claim is not written as ours are."""


def shortcomings(predicate: Mapping[str, Any]) -> list[str]:
    """Why the claim does not hold by its own findings, each in words; empty when it does.

    Every gating finding must have passed and every control failed, by their own numbers. Every check of the policy must have
    left a gating finding, or say that it had too few items to show anything; and everything that is said to be forgotten, on
    this lineage and ever, must have been measured by one, class by class, beside a control. What stood in for retained data
    must be named, and be nothing that is forgotten.

    Args:
        predicate: of the statement, as `service.certificates.statement.build` writes it.

    Raises:
        Unreadable: something of it is missing, or is of another kind.
    """
    try:
        return _shortcomings(predicate)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise Unreadable("the claim or its findings are not readable") from error


def _shortcomings(predicate: Mapping[str, Any]) -> list[str]:
    verification = predicate["verification"]
    findings: Sequence[Finding] = verification["findings"]
    gating = [f for f in findings if f["gating"]]
    controls = [f for f in findings if f["control"]]
    found: list[str] = []
    if verification["verdict"] != "PASS":
        found.append("its verdict is not PASS")
    if not gating or any(f["passed"] is not True for f in gating):
        found.append("a gating finding did not pass")
    if any(f["passed"] is not False for f in controls):
        found.append("a control did not fail")
    if any(f["passed"] is not _meets(f) for f in (*gating, *controls) if f["passed"] is not None):
        found.append("a finding's own numbers say otherwise than it does")
    found += _gaps(predicate, gating, controls) + _proxies(predicate) + _attempts(predicate)
    claimed, earned = predicate["claim"].get("tier"), tier_earned(predicate)
    if claimed is not None and HEIGHTS.index(claimed) > (HEIGHTS.index(earned) if earned else -1):
        found.append("it claims a higher tier than its findings earn")
    return found + _guarantee(predicate)


def tier_earned(predicate: Mapping[str, Any]) -> str | None:
    """The highest tier of which, and of those below it, every check gated; None: its policy names no kind of model, or no tier.

    Ask of a claim without shortcomings: then what gated has passed. What was underpowered proves nothing.
    """
    kind = predicate["plan"]["policy"].get("kind")
    if kind is None:
        return None
    asked = TIERS[kind] if _forgotten(predicate["forgetSet"])["classes"] else SAMPLE_TIERS
    findings: Sequence[Finding] = predicate["verification"]["findings"]
    powered = {f["check"] for f in findings if f["gating"]} - {f["check"] for f in findings if f.get("underpowered")}
    reached: str | None = None
    for tier, checks in asked.items():
        if not checks <= powered:
            break
        reached = tier
    return reached


def _guarantee(predicate: Mapping[str, Any]) -> list[str]:
    said, method = predicate["claim"], predicate["algorithm"]["name"]
    match said["guarantee"]:
        case "empirical":
            allowed = True
        case "exact-retrain":
            allowed = method in EXACT
        case "epsilon-delta":
            proof = said.get("proof", {})
            allowed = method in PROVES and _number(proof["epsilon"]) >= 0 and 0 <= _number(proof["delta"]) < 1
        case _:
            raise Unreadable("a guarantee that is not ours")
    found = [] if allowed else ["its method gives no such guarantee"]
    return found + (["it brings a proof that its guarantee does not rest on"] if _idle_proof(said) else [])


def _idle_proof(said: Mapping[str, Any]) -> bool:
    return "proof" in said and said["guarantee"] != "epsilon-delta"


def _attempts(predicate: Mapping[str, Any]) -> list[str]:
    """Results that may be verified in turn share the chance of a false PASS: all before this one must be named."""
    allowed = predicate["plan"]["policy"].get("attempts", 1)
    said = predicate.get("attempts")
    if said is None:  # of releases that knew of one attempt alone
        return [] if allowed == 1 else ["it does not say which of several attempts it is"]
    number, earlier = said["number"], said["earlier"]
    found: list[str] = []
    if said["of"] != allowed or not 1 <= number <= allowed:
        found.append("it is not one of the attempts that its policy allows")
    if [one["number"] for one in earlier] != list(range(1, number)):
        found.append("an attempt before it is missing")
    if any(one["outcome"] not in SPENT for one in earlier):
        found.append("an attempt before it did not fail")
    seeds = [one["verificationSeed"] for one in earlier if "verificationSeed" in one] + [predicate["verification"]["seed"]]
    if len(set(seeds)) != len(seeds):
        found.append("two attempts were verified with the same seed")
    return found


def _gaps(predicate: Mapping[str, Any], gating: Iterable[Finding], controls: Iterable[Finding]) -> list[str]:
    forgotten = _forgotten(predicate["forgetSet"])
    policy = predicate["plan"]["policy"]
    checks = {c["verifier"] for c in policy["checks"]}
    subjects = {name: forgotten[unit] if (unit := _unit(name)) else [None] for name in checks}
    owed: set[About] = {(name, k, c) for name, some in subjects.items() for k in some for c in _corruptions(name, policy)}
    found: list[str] = []
    if not checks or owed - set(map(_about, gating)) - _excused(predicate["verification"]["findings"]):
        found.append("a check of its policy has no gating finding")
    if {unit for unit, some in forgotten.items() if some} - {MEASURES_FORGETTING.get(name) for name in checks}:
        found.append("something that it says is forgotten was not measured")
    if {about for about in owed if about[0] in MEASURES_FORGETTING} - set(map(_about, controls)):
        found.append("a check that measures forgetting has no control")
    return found


def _unit(check: str) -> Literal["classes", "samples"] | None:
    """What a check owes its word on, one by one; None: on all together."""
    return "classes" if check in OF_EACH_CLASS else MEASURES_FORGETTING.get(check)


def _excused(findings: Iterable[Finding]) -> set[About]:
    """What was measured on so few items that no model could have passed. Never an excuse for what measures forgetting."""
    return {_about(f) for f in findings if f.get("underpowered") is True and f["check"] not in MEASURES_FORGETTING}


def _proxies(predicate: Mapping[str, Any]) -> list[str]:
    """Names are compared as the service compares them: without outer blanks, whatever the case of the letters."""
    if "retainData" not in predicate:
        return []
    data, names = predicate["retainData"], predicate["model"]["classNames"]
    real, classes, dataset = _number(data["real"]), set(data["proxyClasses"]), data.get("proxyDataset")
    gone = {*predicate["forgetSet"]["classes"], *predicate["forgetSet"]["forgottenEarlier"]}
    forgotten = {names[k].strip().casefold() for k in gone}
    shown = {name.strip().casefold() for name in dataset["classNames"]} if dataset else set()
    found: list[str] = []
    if not 0 <= real <= 1 or (real < 1 and not classes and not dataset):
        found.append("it does not say what stood in for real retained data")
    if gone & {*classes, *data["classes"]} or forgotten & shown:
        found.append("retained or proxy data held a class that it says is forgotten")
    return found


def _forgotten(forget_set: Mapping[str, Any]) -> dict[Literal["classes", "samples"], list[int | None]]:
    """What each kind of check owes a finding on: every class by itself, samples together."""
    counts = [forget_set[key]["count"] for key in ("samples", "samplesForgottenEarlier") if key in forget_set]
    return {"classes": [*forget_set["classes"], *forget_set["forgottenEarlier"]], "samples": [None] if any(counts) else []}


def _about(finding: Finding) -> About:
    check = finding["check"]
    corruption = finding.get("corruption") if check in COMPLETES else None
    by_class = _unit(check) == "classes"
    return check, finding["class_index"] if by_class else None, json.dumps(corruption, sort_keys=True) if corruption else None


def _corruptions(check: str, policy: Mapping[str, Any]) -> Sequence[str | None]:
    """Under which a check owes its findings. Where a policy names none, one that completes images owes what it cannot have."""
    named = policy.get("sampling", {}).get("corruptions", ()) if check in COMPLETES else ()
    return [json.dumps(corruption, sort_keys=True) for corruption in named] or [None]


def _meets(finding: Finding) -> bool:
    """Is the threshold met, at the 95 % bound that is the cautious one? A control may be held to the other one alone."""
    threshold = _number(finding["threshold"])
    match finding["comparator"]:
        case "ge":
            return _number(finding["lower95"]) >= threshold
        case "le":
            only_lower = finding["control"] and finding["upper95"] is None
            return _number(finding["lower95" if only_lower else "upper95"]) <= threshold
        case "eq":
            return _number(finding["value"]) == threshold
        case _:
            raise Unreadable("a finding compares in a way that is not ours")


def _number(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise Unreadable("expected an integer or a decimal string")
    number = Decimal(value)
    if not number.is_finite():
        raise Unreadable("expected a finite number")
    return number
