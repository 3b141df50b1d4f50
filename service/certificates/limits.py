"""What is claimed, and what is not, in plain words: one list for the certificate and for the report. Pure.

A limit is a whole sentence for somebody who has read no paper. It is there where it holds, and only there: which checks the
policy left out, which had too little to look at, and what no check of a provider's own can show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

GUARANTEES = {
    "empirical": (
        "The named algorithm ran on the named weights and data, and the saved result passed the listed tests at the listed "
        "thresholds, which were recorded before the run. This is statistical evidence about behaviour, not a proof that no "
        "influence of the forgotten data remains."
    ),
    "exact-retrain": (
        "The weights that the named algorithm trains were trained from scratch by the named code on the named data without "
        "what is forgotten. Parts that a model of this family keeps frozen, such as an autoencoder, a tokenizer or a text "
        "encoder, are the parent's, whatever they were trained on. The operator's statement of what data was used is taken on "
        "trust."
    ),
    "epsilon-delta": (
        "Under the assumptions listed as claim.proof, and with the values there, what the named algorithm may give with and "
        "without what is forgotten differs by no more than (epsilon, delta). That the assumptions hold is the operator's "
        "statement, taken on trust."
    ),
}
"""What each guarantee means, in the words that every certificate carries."""

TIERS: dict[str, str] = {
    "L0": "the saved files are whole and hold nothing that they should not; whether anything is forgotten is not said",
    "L1": "at a first look, what is forgotten is gone and the rest is there",
    "L2": "what is forgotten was looked for in several ways and not found, and the rest works about as before",
    "L3": "what is forgotten did not come back under the attacks that were tried, either",
}
"""What each tier means. It includes those below it."""
NO_TIER = "the policy does not ask for all that a tier needs, or not all of it passed"

SCOPE = (
    "Copies of earlier versions of this model are outside this certificate.",
    "The source data, its backups and other models trained on it are outside this certificate.",
)
OWN_TESTS = (
    "The tests were run by the operator that issued the certificate.",
    "Verification by the provider is fragile: a dishonest provider can forge it. Only somebody else who repeats it, with the "
    "data and the original at hand, can tell.",
)
"""Zhang et al., "Verification of Machine Unlearning is Fragile", ICML 2024."""
ONLY_WHERE_FOUND = "Resistance to relearning, inversion and other attacks was tested only where a finding says so."
BOUNDS = (
    "Every bound is a one-sided one at 95 % or above: of results that just miss a threshold, up to one in twenty passes "
    "that test."
)
JUDGES = "The judges are networks that the service trained. They err, too: as often as their accuracies say."
KEPT_JUDGES = (
    "The judges were trained on images of all classes, forgotten ones among them. The operator keeps them, so that the result "
    "can be verified again. What else was computed from forgotten data was deleted after publication."
)
NOT_FID = (
    "Distances were measured in the features of the service's own judges. They are not FID and cannot be compared with it."
)
NO_REFERENCE = "No model that was trained without what is forgotten was at hand to compare with."
POPULATION = (
    "Membership was tested over whole groups of images. Such tests overstate protection: a single image may still be "
    "recognised by an attacker who trains models of his own to single it out."
)
"""Hayes et al., "Inexact Unlearning Needs More Careful Evaluations", arXiv:2403.01218."""
AS_HIDDEN = (
    "Images of what is forgotten were completed where the policy hides them, in the one setting of its sampler. Other parts of "
    "them, other steps or, of a model that is asked by prompts, a stronger guidance may bring back more."
)
"""A model is free to be asked otherwise than a policy asks it; of generators other settings are swept, of these none are."""
SET_ASIDE = (
    "The classes named as retainData.proxyClasses were set aside: they were not to be forgotten, and that the model still "
    "knows them was not tested."
)
NOT_ALL_REAL = (
    "That training looked at no more real images of retained classes than retainData says is the operator's statement, taken "
    "on trust. Verification and the judges that it trained looked at real images of all classes.",
    "That the proxy data hold no image of what is forgotten is told by the names of their classes and, of another dataset, by "
    "whole files and by images that are the same pixel by pixel alone.",
)
"""Limits where retain data were chosen."""


def asked_before(rejected: int) -> str:
    """Every request has an error budget of its own: who asks often is lucky once."""
    said = "1 earlier request" if rejected == 1 else f"{rejected} earlier requests"
    return (
        f"{said} to forget the same of the same version had a result that verification rejected. Each request has an error "
        f"budget of its own, so the chance that one of these {rejected + 1} passes by luck may be {rejected + 1} times what "
        "the bounds allow one."
    )


SELF_APPROVED = "The request was self-approved: nobody else looked at the request before it ran."
REVOKED_PARENT = (
    "The certificate of the version that this one was made from had been revoked when this one was issued. What was wrong with "
    "that version may be wrong with this one, as far as the tests here do not show otherwise."
)
REVOKED_ANCESTORS = (
    "Certificates of versions from which this one descends had been revoked when it was issued: parent.revokedAncestors names "
    "their checkpoints."
)


def taken_out_of_use(state: str) -> str:
    """What the operator had said of the version that this one was made from."""
    return f"The version that this one was made from had been {state} by its operator when this certificate was issued."


NOT_RUN: dict[str, str] = {
    "integrity": "Whether the saved files are whole and hold nothing that they should not was not tested.",
    "frozen_decoder": "Whether parts that should stay frozen stayed as they were was not tested.",
    "forget_rate": "How often what is forgotten is still drawn was not tested.",
    "retain_accuracy": "Whether retained classes are still drawn was not tested.",
    "forget_confidence": "How sure a judge is of what is forgotten, beyond its first choice, was not tested.",
    "forget_distance": "How far what is drawn now lies from real images of what is forgotten was not tested.",
    "leakage": "Whether what is forgotten leaks out where no label, another or a mixed one is asked for was not tested.",
    "setting_sweep": "Only one setting of guidance, sampler and number format was tested.",
    "form_of_forgetting": "Whether noise, another class or a blend is drawn in place of what is forgotten was not tested.",
    "feature_distance": "Whether retained classes look as real as before was not tested.",
    "retain_coverage": "Whether retained classes are drawn in all their variety was not tested.",
    "relearning": "How quickly the model learns again what it forgot, given a few examples, was not tested.",
    "resurgence": "Whether what is forgotten comes back while the model is trained on other data was not tested.",
    "label_inversion": "Whether another input than its label brings back what is forgotten was not searched for.",
    "sdedit": "Whether the model still completes what is forgotten, given a noisy picture of it, was not tested.",
    "compression": "Whether what is forgotten comes back when the weights are stored with fewer bits was not tested.",
    "side_channels": "Whether the weights themselves give away what was removed was not tested.",
    "forget_accuracy": "How often what is forgotten is still recognised was not tested.",
    "retain_test_accuracy": "Whether retained classes are still recognised was not tested.",
    "class_membership": "Whether the answers give away which images the forgotten class was trained on was not tested.",
    "linear_probe": "Whether the model's inner features still tell apart what is forgotten was not tested.",
    "head_restore": "How easily a new last layer brings back what is forgotten was not tested.",
    "retain_calibration": "Whether the model is as sure of its answers as it should be was not tested.",
    "forget_completion": "Whether what is forgotten is still completed was not tested.",
    "retain_completion": "Whether retained classes are still completed was not tested.",
    "sample_membership": "Whether the answers give away which single images the model was trained on was not tested.",
}
"""By check: what is not known where it was not run."""

WANTED: dict[str, tuple[str, ...]] = {
    "generator": (
        "integrity", "forget_rate", "retain_accuracy", "forget_confidence", "forget_distance", "leakage", "setting_sweep",
        "form_of_forgetting", "feature_distance", "retain_coverage", "relearning", "resurgence", "label_inversion", "sdedit",
        "compression", "side_channels",
    ),
    "classifier": (
        "integrity", "forget_accuracy", "retain_test_accuracy", "class_membership", "linear_probe", "head_restore",
        "retain_calibration", "relearning", "resurgence", "compression", "side_channels",
    ),
    "i2i": (
        "integrity", "frozen_decoder", "forget_completion", "retain_completion", "linear_probe", "relearning", "resurgence",
        "compression", "side_channels",
    ),
    "samples": ("integrity", "retain_test_accuracy", "sample_membership"),
}  # fmt: skip
"""The checks of all tiers by kind of model, and where nothing but single samples was forgotten: the engine's own list."""

MEMBERSHIP = frozenset({"class_membership", "sample_membership", "diffusion_membership"})
JUDGE_DISTANCES = frozenset({"feature_distance", "forget_distance", "retain_coverage", "retain_completion"})


def known_limits(
    *,
    kind: str | None,
    findings: Sequence[Json],
    judged: bool,
    units: Iterable[str] = ("classes",),
    chosen: Json | None = None,
    guarantee: str | None = None,
    rejected_before: int = 0,
    parent: Json | None = None,
    approval: Json | None = None,
) -> list[str]:
    """What the tests could not show, a sentence each.

    Args:
        kind: of the model, where it is known: then the checks that its tiers want and that left no finding are named.
        findings: of the report. A check that left none but "not measured" was not run.
        judged: networks of the service decided what an image shows.
        units: what was ever forgotten on the lineage: "classes", "samples".
        chosen: retain data as the spec has them, where they were chosen.
        guarantee: what the certificate claims; None: nothing was certified.
        rejected_before: other requests to forget the same of the same version that verification had rejected by then.
        parent: what the certificate says of the version that was replaced.
        approval: what it says of who looked at the request before it ran.
    """
    repeated = [asked_before(rejected_before)] if rejected_before else []
    missing = _not_run(kind, findings, units)
    found = [*_of_findings(findings, guarantee), *missing, *_retain(chosen)]
    alone = [SELF_APPROVED] if (approval or {}).get("policy") == "solo" else []
    return [*_always(guarantee, judged), *alone, *_of_parent(parent or {}), *repeated, *found]


def _always(guarantee: str | None, judged: bool) -> Iterator[str]:
    if guarantee is not None:
        yield from SCOPE
        yield OWN_TESTS[0]
    yield OWN_TESTS[1]
    yield ONLY_WHERE_FOUND
    yield BOUNDS
    if judged:
        yield JUDGES
        if guarantee is not None:
            yield KEPT_JUDGES


def _of_parent(parent: Json) -> Iterator[str]:
    """Forgetting more is no less a duty where an earlier version was taken back; that it was is said."""
    if (parent.get("certificate") or {}).get("state") == "revoked":
        yield REVOKED_PARENT
    if parent.get("revokedAncestors"):
        yield REVOKED_ANCESTORS
    if (state := (parent.get("disposition") or {}).get("state", "still-served")) != "still-served":
        yield taken_out_of_use(state)


def _of_findings(findings: Sequence[Json], guarantee: str | None) -> Iterator[str]:
    ran = _ran(findings)
    if ran & JUDGE_DISTANCES:
        yield NOT_FID
    if guarantee != "exact-retrain" and not any(f.get("subject") == "reference" for f in findings):
        yield NO_REFERENCE
    if ran & MEMBERSHIP:
        yield POPULATION
    if "forget_completion" in ran:
        yield AS_HIDDEN
    for check in dict.fromkeys(f["check"] for f in findings if f.get("underpowered")):
        yield (
            f"The check {check.replace('_', ' ')} had so little to look at that not even a model trained without what is "
            "forgotten could have passed it: underpowered, it decided nothing."
        )


def _not_run(kind: str | None, findings: Sequence[Json], units: Iterable[str]) -> Iterator[str]:
    wanted = WANTED["samples"] if set(units) == {"samples"} else WANTED.get(kind or "", ())
    ran = _ran(findings)
    yield from (NOT_RUN[check] for check in wanted if check not in ran)


def _ran(findings: Sequence[Json]) -> set[str]:
    return {str(f["check"]) for f in findings if f.get("metric") != "not_measured"}


def _retain(chosen: Json | None) -> Iterator[str]:
    if chosen is not None and chosen["proxy_classes"]:
        yield SET_ASIDE
    if chosen is not None and chosen["real"] < 1:
        yield from NOT_ALL_REAL
