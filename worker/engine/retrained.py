"""What checks against a model that was trained without the forgotten classes share: what it must be, what there is without one.

Nobody can see of a file how it was trained. What can be seen is that it is none of the models that it is to be compared with,
and, by the check that first looks at a candidate (`verdict.LOOKS_AT_REFERENCE`), that it does not know the class: a reference
that knows it would excuse every candidate that knows it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from worker.contract import Check, Finding, Kind, Spec
from worker.engine.errors import Integrity
from worker.engine.verifier import Env, Subject
from worker.verdict import LOOKS_AT_REFERENCE


def require_another(reference: str, others: Mapping[str, str]) -> None:
    """The reference is a model of its own.

    Args:
        reference: tree digest of its files.
        others: of those that it is compared with or that they were made from, by name.

    Raises:
        Integrity: it is one of them.
    """
    if same := [name for name, digest in others.items() if digest == reference]:
        raise Integrity(f"expected a reference that was trained without what is forgotten, found the {same[0]} in its place")


def subjects(spec: Spec) -> tuple[Subject, ...]:
    """Of a check that looks at what forgetting is measured by: the reference, too, where there is one."""
    return ("candidate", "original") if spec.reference_digest is None else ("candidate", "original", "reference")


def role(subject: Subject, still: str, before: str, never: str) -> str:
    """What one subject's hits mean, for people: still so, so before forgetting, or so though it never learned."""
    return {"candidate": still, "original": before}.get(subject, never)


def unasked_look(spec: Spec, kind: Kind) -> tuple[Check, ...]:
    """The check that shows what the reference knows, where the policy does not name it."""
    needed = spec.reference_digest is not None and spec.all_forgotten
    named = {check.verifier for check in spec.policy.checks}
    return (Check(verifier=LOOKS_AT_REFERENCE[kind]),) if needed and LOOKS_AT_REFERENCE[kind] not in named else ()


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
