"""Findings on how often a forgotten class is seen where it should not be: for every check that counts."""

from __future__ import annotations

from typing import Any

from worker.contract import Finding
from worker.engine.statistics import lower_bound, upper_bound
from worker.engine.verifier import Env, Subject


def at_most(
    hits: int, n: int, threshold: float, *, alpha: float, subject: Subject = "candidate", control: bool = False, **about: Any
) -> Finding:
    """A rate held against a threshold by its exact upper bound.

    So few that not even none would pass: underpowered, and it gates nothing, unless those few refute it all the same. Not
    passed, but not refuted by the lower bound either: open.

    Args:
        about: the finding's other fields: check, metric, detail, class_index, class_name.
    """
    upper, lower = upper_bound(hits, n, alpha=alpha), lower_bound(hits, n, alpha=alpha)
    finding = Finding(
        subject=subject,
        gating=not control,
        control=control,
        passed=upper <= threshold,
        open=not control and lower <= threshold < upper,
        value=hits / n,
        lower95=lower,
        upper95=upper,
        comparator="le",
        threshold=threshold,
        n=n,
        count=hits,
        **about,
    )
    powerless = upper_bound(0, n, alpha=alpha) > threshold and lower <= threshold
    return underpowered(finding) if powerless else finding


def loosened(env: Env, k: int, asked: float, effective: float) -> str:
    """What a detail says where a threshold is not what the check was asked for, and why; nothing where it is."""
    if effective <= asked:
        return ""
    rate = env.false_positive_rate(k)
    return f"; effective threshold {effective:.4g}, not {asked:g}: false alarms {rate:.4g}, slack {env.slack:g}"


def underpowered(finding: Finding) -> Finding:
    """The same, which proves nothing: so few items could not pass even a model that never knew the class."""
    return finding.model_copy(update={"gating": False, "passed": None, "open": False, "underpowered": True})
