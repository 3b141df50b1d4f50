"""Findings on accuracy, for checks of samples that a judge recognises and of images that a classifier names.

Shapes: N items, the same ones before and after.
"""

from __future__ import annotations

from torch import Tensor

from worker.contract import Finding
from worker.engine.errors import BadInput
from worker.engine.statistics import ALPHA, lower_bound, paired_drop_upper
from worker.engine.verifier import Subject


def require_showable(n: int, max_drop: float, *, alpha: float = ALPHA) -> None:
    """Raises: BadInput when `n` pairs cannot bound a drop by `max_drop`, not even if all agree."""
    if n < 1 or paired_drop_upper(0, 0, n, alpha=alpha) > max_drop:
        raise BadInput(f"{n} pairs cannot show a drop of at most {max_drop} at 95 %, even if all agree")


def drop(check: str, before_N: Tensor, after_N: Tensor, *, max_drop: float, what: str, alpha: float = ALPHA) -> Finding:
    """The gate: the share of items right before and no longer after, less those gained, at its upper bound.

    Pair by pair: most items agree, and only those that changed carry information.

    Args:
        before_N, after_N: bool, is the item right with the parent, with the candidate.
        what: the items, in the plural.
        alpha: level of the bound.
    """
    worse, better = int((before_N & ~after_N).sum()), int((~before_N & after_N).sum())
    n = before_N.numel()
    upper = paired_drop_upper(worse, better, n, alpha=alpha)
    return Finding(
        check=check,
        metric="retain_accuracy_drop",
        subject="candidate",
        gating=True,
        passed=upper <= max_drop,
        value=(worse - better) / n,
        upper95=upper,
        comparator="le",
        threshold=max_drop,
        n=n,
        count=worse,
        detail=f"of {n} {what}, {worse} were recognised only before and {better} only after",
    )


def reported(
    check: str, subject: Subject, right_N: Tensor, *, what: str, k: int | None = None, name: str | None = None
) -> Finding:
    """An accuracy for people to read: of one class, or of all retained ones."""
    hits, n = int(right_N.sum()), right_N.numel()
    return Finding(
        check=check,
        metric="retain_accuracy" if k is None else "class_accuracy",
        subject=subject,
        gating=False,
        value=hits / n,
        lower95=lower_bound(hits, n),
        n=n,
        count=hits,
        class_index=k,
        class_name=name,
        detail=f"{hits} of {n} {what} are recognised",
    )
