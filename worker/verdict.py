"""The verdict that findings earn, and what every check owes: read by the conductor, the engine and its catalogue alike.

Like the documents it is about it imports nothing more than pydantic: who reads a report decides anew what it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from worker.contract import Finding, Kind, MaskSpec, Spec, Tier, Verdict

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
"""Checks whose word counts only if they can tell the original from a model that forgot; and what they show to be forgotten."""

OF_EACH_CLASS: frozenset[str] = frozenset(
    {"leakage", "setting_sweep", "form_of_forgetting", "class_membership", "linear_probe", "head_restore"}
    | {"reference_distance", "reference_membership", "relearning", "resurgence", "compression", "diffusion_membership"}
)
"""Checks without a control of their own that owe their word on every class that was ever forgotten, none passed over."""

NEEDS_HELD_OUT: dict[str, Literal["all", "forgotten", "retained"]] = {
    "forget_rate": "all",
    "retain_accuracy": "all",
    "feature_distance": "all",
    "forget_accuracy": "forgotten",
    "sample_membership": "forgotten",
    "retain_test_accuracy": "retained",
    "forget_completion": "all",
    "retain_completion": "all",
    "published_metrics": "all",
    "published_distances": "retained",
    "label_inversion": "all",
    "sdedit": "all",
    "compression": "all",
    "diffusion_membership": "forgotten",
    "relearning": "all",
    "resurgence": "all",
    "class_membership": "forgotten",
    "linear_probe": "all",
    "head_restore": "all",
    "reference_distance": "forgotten",
    "reference_membership": "forgotten",
    "retain_calibration": "retained",
    "forget_confidence": "all",
    "forget_distance": "all",
    "leakage": "all",
    "setting_sweep": "all",
    "form_of_forgetting": "all",
    "retain_coverage": "all",
    "retain_drift": "all",
}
"""Checks that look at real held-out images, and of which classes; those that ask the judge need it to know every class."""

LOOKS_AT_REFERENCE: dict[Kind, str] = {
    "generator": "forget_rate",
    "classifier": "forget_accuracy",
    "i2i": "forget_completion",
}
"""What shows that a reference does not know a forgotten class, by the very bound that a candidate is held to."""

COMPLETES: frozenset[str] = frozenset({"forget_completion", "retain_completion", "published_metrics"})
"""Checks of completed images. What they owe, they owe under every corruption of the policy by itself."""


def owed(spec: Spec) -> dict[str, tuple[int | None, ...]]:
    """What each check of the policy must leave a gating finding on, by verifier: class indices, or None for a finding on all.

    One that measures forgetting owes it on everything that was ever forgotten on the lineage, as others that look at each class
    do. A policy may serve classes and single samples alike: a check of what nobody asked to forget has nothing to measure, and
    is not among them.
    """
    subjects = {c.verifier: _subjects(c.verifier, spec) for c in spec.policy.checks}
    return {name: some for name, some in subjects.items() if some}


def _subjects(verifier: str, spec: Spec) -> tuple[int | None, ...]:
    if verifier in OF_EACH_CLASS:
        return spec.all_forgotten
    match MEASURES_FORGETTING.get(verifier):
        case "classes":
            return spec.all_forgotten
        case "samples":
            return (None,) if spec.all_forgotten_samples else ()
        case None:
            return (None,)


def decide(findings: Iterable[Finding], spec: Spec) -> Verdict:
    """The verdict that a set of findings earns. Fail-closed: what is missing counts as failed.

    ERROR if a check of the policy left no gating finding on something that it owes one on, be it under one corruption of
    several, if no check measures whether what is forgotten is forgotten, classes and samples each, or if the reference, where
    the job has one, is not shown to be without every forgotten class; VOID if a control passed, or if a check that measures
    forgetting left none for something; FAIL if any gating finding is refuted; INCONCLUSIVE if some did not pass and more
    samples may tell; else PASS.

    In place of a gating finding one that says that it is underpowered will do, but not of a check that measures forgetting:
    a policy that no true retrain could pass shows nothing to be forgotten. The tier is then not reached; see `tier_reached`.

    ERROR, too, if a gating finding is not of the candidate, or a control not of the original: no signer would sign either. Nor
    does an underpowered finding of another model excuse the candidate.
    """
    findings = tuple(findings)
    if any(_misplaced(f) for f in findings):
        return "ERROR"
    due = owed(spec)
    expected = {(name, k, c) for name, subjects in due.items() for k in subjects for c in _corruptions(name, spec)}
    gating = [f for f in findings if f.gating]
    mine = [f for f in findings if f.subject == "candidate"]
    excused = {_about(f) for f in mine if f.underpowered and f.check not in MEASURES_FORGETTING}
    if unmeasured_units(spec) or expected - set(map(_about, gating)) - excused or unproved_references(findings, spec):
        return "ERROR"
    controls = [f for f in findings if f.control]
    uncontrolled = {about for about in expected if about[0] in MEASURES_FORGETTING} - set(map(_about, controls))
    if uncontrolled or any(f.passed is not False for f in controls):
        return "VOID"
    missed = [f for f in gating if f.passed is not True]
    if not missed:
        return "PASS"
    return "INCONCLUSIVE" if all(f.open for f in missed) else "FAIL"


TIERS: dict[Kind, dict[Tier, frozenset[str]]] = {
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
"""What each tier asks for beyond those below it, by kind of model. Where the request was for single samples, what measures
classes is not asked for; see `owed`."""

SAMPLE_TIERS: dict[Tier, frozenset[str]] = {
    "L0": frozenset({"integrity"}),
    "L1": frozenset({"retain_test_accuracy"}),
    "L2": frozenset({"sample_membership"}),
}
"""The same where nothing but single samples was ever to be forgotten."""


IF_ASKED: dict[Kind, dict[Tier, frozenset[str]]] = {"generator": {"L3": frozenset({"diffusion_membership"})}}
"""Checks that a tier asks for only of policies that name them."""


def tier_reached(findings: Iterable[Finding], spec: Spec) -> Tier | None:
    """The highest tier of which, and of those below it, every check gated and passed. None: no kind is named, or no tier.

    What was underpowered proves nothing, so it lets none be reached.
    """
    findings = tuple(findings)
    if spec.policy.kind is None or decide(findings, spec) != "PASS":
        return None
    asked = TIERS[spec.policy.kind] if spec.all_forgotten else SAMPLE_TIERS
    # of checks that the policy does not name nothing is owed, so one finding on one class says little
    named = {check.verifier for check in spec.policy.checks}
    powered = {f.check for f in findings if f.gating and f.check in named} - {f.check for f in findings if f.underpowered}
    reached: Tier | None = None
    more = IF_ASKED.get(spec.policy.kind, {}) if spec.all_forgotten else {}
    for tier, checks in asked.items():
        if not checks | (more.get(tier, frozenset()) & named) <= powered:
            break
        reached = tier
    return reached


def unmeasured_units(spec: Spec) -> list[Literal["classes", "samples"]]:
    """What was forgotten on the lineage and no check of the policy measures."""
    gone: dict[Literal["classes", "samples"], bool] = {
        "classes": bool(spec.all_forgotten),
        "samples": bool(spec.all_forgotten_samples),
    }
    measured = {MEASURES_FORGETTING.get(c.verifier) for c in spec.policy.checks}
    return [unit for unit, any_gone in gone.items() if any_gone and unit not in measured]


def unproved_references(findings: Iterable[Finding], spec: Spec) -> list[int]:
    """The forgotten classes that the job's reference, if it has one, was not shown to be without.

    Under every corruption of several: a look that did not pass is one too many.
    """
    if spec.reference_digest is None:
        return []
    looks = [f for f in findings if f.subject == "reference" and f.check in LOOKS_AT_REFERENCE.values() and f.comparator]
    shown = {k: [f.passed is True for f in looks if f.class_index == k] for k in spec.all_forgotten}
    return [k for k, passed in shown.items() if not passed or not all(passed)]


def _misplaced(finding: Finding) -> bool:
    """Would its word count for another model than it is of? The original passes nothing on the candidate's behalf."""
    return (finding.gating and finding.subject != "candidate") or (finding.control and finding.subject != "original")


def _about(finding: Finding) -> tuple[str, int | None, MaskSpec | None]:
    by_class = finding.check in OF_EACH_CLASS or MEASURES_FORGETTING.get(finding.check) == "classes"
    corruption = finding.corruption if finding.check in COMPLETES else None
    return finding.check, finding.class_index if by_class else None, corruption


def _corruptions(verifier: str, spec: Spec) -> tuple[MaskSpec | None, ...]:
    """Under which a check owes its findings. Where a policy names none, one that completes images owes what it cannot have."""
    return (spec.policy.sampling.corruptions or (None,)) if verifier in COMPLETES else (None,)
