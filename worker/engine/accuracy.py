"""Findings on accuracy, for checks of samples that a judge recognises and of images that a classifier names.

Shapes: N items, the same ones before and after.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from worker.contract import Finding, Spec
from worker.engine.errors import BadInput
from worker.engine.statistics import ALPHA, lower_bound, paired_drop_upper
from worker.engine.verifier import Subject


def showable(n: int, max_drop: float, *, alpha: float = ALPHA) -> bool:
    """Can `n` pairs bound a drop by `max_drop`, at least if all agree?"""
    return n >= 1 and paired_drop_upper(0, 0, n, alpha=alpha) <= max_drop


def drop(
    check: str,
    before_N: Tensor,
    after_N: Tensor,
    *,
    max_drop: float,
    what: str,
    alpha: float = ALPHA,
    metric: str = "retain_accuracy_drop",
) -> Finding:
    """The gate: the share of items right before and no longer after, less those gained, at its upper bound.

    Pair by pair: most items agree, and only those that changed carry information. Of so few pairs that even a model that
    changed nothing could not pass, it says `underpowered` and does not gate, unless they refute the candidate all the same.

    Args:
        before_N, after_N: bool, is the item right with who was before (the parent, or the original), with the candidate.
        what: the items, in the plural.
        alpha: level of each of the two one-sided bounds.

    Raises:
        BadInput: no items.
    """
    worse, better = int((before_N & ~after_N).sum()), int((~before_N & after_N).sum())
    n = before_N.numel()
    if n == 0:
        raise BadInput(f"expected {what} of retained classes, found none")
    upper, lower = paired_drop_upper(worse, better, n, alpha=alpha), -paired_drop_upper(better, worse, n, alpha=alpha)
    refuted = lower > max_drop
    weak = not refuted and not showable(n, max_drop, alpha=alpha)
    return Finding(
        check=check,
        metric=metric,
        subject="candidate",
        gating=not weak,
        passed=None if weak else upper <= max_drop,
        open=not weak and not refuted and upper > max_drop,
        underpowered=weak,
        value=(worse - better) / n,
        lower95=lower,
        upper95=upper,
        comparator="le",
        threshold=max_drop,
        n=n,
        count=worse,
        detail=f"of {n} {what}, {worse} were recognised only before and {better} only after"
        + ("; so few could not show it of a model that lost nothing" if weak else ""),
    )


def lineage_drop(
    check: str, spec: Spec, most: float | None, original_N: Callable[[], Tensor], after_N: Tensor, *, what: str, alpha: float
) -> list[Finding]:
    """The same against the original, where the policy asks and the parent is another: ten requests may each lose a little."""
    if not judged_by_original(spec, most):
        return []
    assert most is not None
    metric = "retain_accuracy_drop_from_original"
    return [drop(check, original_N(), after_N, max_drop=most, what=what, alpha=alpha, metric=metric)]


def judged_by_original(spec: Spec, most: float | None) -> bool:
    """Is the original asked, too? A first request's parent is the original."""
    return most is not None and spec.base_digest != spec.original_digest


def reported(
    check: str,
    subject: Subject,
    right_N: Tensor,
    *,
    what: str,
    k: int | None = None,
    name: str | None = None,
    alpha: float = ALPHA,
) -> Finding:
    """An accuracy for people to read: of one class, or of all retained ones."""
    hits, n = int(right_N.sum()), right_N.numel()
    return Finding(
        check=check,
        metric="retain_accuracy" if k is None else "class_accuracy",
        subject=subject,
        gating=False,
        value=hits / n,
        lower95=lower_bound(hits, n, alpha=alpha),
        n=n,
        count=hits,
        class_index=k,
        class_name=name,
        detail=f"{hits} of {n} {what} are recognised",
    )
