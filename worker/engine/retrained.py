"""What checks against a model that was trained without the forgotten classes share: what they say where there is none."""

from __future__ import annotations

from worker.contract import Finding
from worker.engine.verifier import Env


def no_reference(env: Env, check: str, metric: str) -> tuple[Finding, ...]:
    """One finding a forgotten class, underpowered: nothing can be compared, so nothing is shown."""
    return tuple(
        Finding(
            check=check,
            metric=metric,
            subject="candidate",
            gating=False,
            underpowered=True,
            class_index=k,
            class_name=env.spec.class_names[k],
            detail="the job has no reference: no model that was trained without the class",
        )
        for k in env.spec.all_forgotten
    )
