"""Looking again, while what was seen neither passes nor is refuted.

A gate that is tested again on more samples has more than one chance to pass by luck. So every look is at its share of the
error budget (`verifier.level`): what deserves to fail passes at one of L looks at most alpha times, whatever the looks have
in common (Bonferroni), and the samples of an earlier look may be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from worker.contract import Finding, Spec
from worker.verdict import decide

C = TypeVar("C")


def look(
    checks: Sequence[C],
    spec: Spec,
    *,
    run: Callable[[C], tuple[Finding, ...]],
    enlarge: Callable[[C], C | None],
    announce: Callable[[Sequence[C]], None] = lambda checks: None,
    beside: Sequence[Finding] = (),
) -> tuple[list[Finding], int]:
    """Run all checks, and while the verdict is INCONCLUSIVE those with open findings on twice the samples.

    Args:
        run: what one check finds.
        enlarge: the same check on twice the samples; None where it takes none, or can take no more.
        announce: told of checks that are about to be run again.
        beside: what else was found, and counts in the verdict.

    Returns:
        What these checks found at last, in the order of the checks, and how many looks it took: at most as the policy allows.
    """
    checks, found = list(checks), [run(check) for check in checks]
    looks = 1
    while looks < spec.policy.looks and decide([*_all(found), *beside], spec) == "INCONCLUSIVE":
        undecided = [i for i, some in enumerate(found) if any(f.gating and f.open for f in some)]
        larger = {i: again for i in undecided if (again := enlarge(checks[i])) is not None}
        if len(larger) < len(undecided):  # one of them stays as it is, so the verdict cannot become PASS
            break
        announce(list(larger.values()))
        before = list(found)
        for i, check in larger.items():
            checks[i], found[i] = check, run(check)
        looks += 1
        if found == before:  # all that there is was looked at already
            break
    return _all(found), looks


def _all(found: Sequence[tuple[Finding, ...]]) -> list[Finding]:
    return [finding for some in found for finding in some]
