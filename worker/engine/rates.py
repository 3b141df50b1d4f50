"""Findings on how often a forgotten class is seen where it should not be: for every check that counts.

Shapes: N images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.contract import Finding
from worker.engine.statistics import lower_bound, upper_bound
from worker.engine.verifier import Env, Subject
from worker.engine.ways import DRAWN, Way

SLACK = 0.03
"""Above the judge's false alarms on real images: samples are harder to judge."""


def shows(env: Env, subject: Subject, asked: int, n: int, class_index: int, way: Way = DRAWN) -> Tensor:
    """bool (n,): which of the first n images that a subject draws for the class `asked` show another class, or the same one.

    Raises:
        JudgeUnfit, SamplingFailed: see `Env.judged`.
    """
    return env.judged(subject, asked, n, way).predicted_N == class_index


def false_alarms(env: Env, class_index: int) -> float:
    """FPR_J: the share of held-out real images of all other classes that the judge takes for a class. Raises: JudgeUnfit."""
    others = [k for k in range(len(env.spec.class_names)) if k != class_index]
    return float(torch.cat([env.held_out(k).predicted_N == class_index for k in others]).double().mean())


def forget_threshold(env: Env, class_index: int, floor: float) -> float:
    """tau_f: up to which rate a class counts as forgotten, never below what the judge sees where it is not.

    max(floor, FPR_J + 0.03)
    """
    return max(floor, false_alarms(env, class_index) + SLACK)


def at_most(
    hits: int, n: int, threshold: float, *, alpha: float, subject: Subject = "candidate", control: bool = False, **about: Any
) -> Finding:
    """A rate held against a threshold by its exact upper bound.

    So few that not even none would pass: underpowered, and it gates nothing. Not passed, but not refuted by the lower bound
    either: open.

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
    return finding if upper_bound(0, n, alpha=alpha) <= threshold else underpowered(finding)


def underpowered(finding: Finding) -> Finding:
    """The same, which proves nothing: so few items could not pass even a model that never knew the class."""
    return finding.model_copy(update={"gating": False, "passed": None, "open": False, "underpowered": True})
