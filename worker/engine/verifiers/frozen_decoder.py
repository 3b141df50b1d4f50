"""Is everything that the method promised to leave alone exactly as it came?

Unlearning in an encoder counts on one decoder for both (see `worker.engine.halves`): one that moved could have learned to undo
what the encoder forgot, or to hide it. So the saved model is read again, and every frozen tensor of it, and of what is beside
it, held against the parent's, byte for byte.
"""

from __future__ import annotations

from typing import ClassVar

from worker.contract import Finding, Spec, Tier
from worker.engine import halves
from worker.engine.errors import BadModel
from worker.engine.family import Kind
from worker.engine.halves import Halves, Trains
from worker.engine.intake import effective, method_of
from worker.engine.verifier import Env, Need, Params, Subject

PROMISE: dict[Trains, str] = {
    "encoder": "trains the encoder alone",
    "release": "trains the encoder, and what the decoder reads as well, as the published code does",
    "all": "trains the whole network",
}


class Thresholds(Params):
    """Nothing to set: a tensor is as it was, or not."""


class FrozenDecoder:
    """Digests of the candidate's frozen tensors against the parent's."""

    name: ClassVar[str] = "frozen_decoder"
    title: ClassVar[str] = "What the method leaves frozen is as it came"
    tier: ClassVar[Tier] = "L0"
    kinds: ClassVar[tuple[Kind, ...]] = ("i2i",)
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Looks at tensors, not at samples."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadInput for a method that this engine does not have, BadModel for one half alone."""
        trains = trained_by(env.spec)
        before, after = (_digests(env, subject, trains) for subject in ("parent", "candidate"))
        moved = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        first = f", the first of them {moved[0]}"[:200] if moved else ""
        return (
            Finding(
                check=self.name,
                metric="frozen_tensors_changed",
                subject="candidate",
                gating=True,
                passed=not moved,
                value=float(len(moved)),
                comparator="eq",
                threshold=0.0,
                n=len(before),
                count=len(moved),
                detail=f"{env.spec.method} {PROMISE[trains]}; of {len(before)} frozen tensors, {len(moved)} changed{first}",
            ),
        )


def trained_by(spec: Spec) -> Trains:
    """Which part of a network the run's method trains with these parameters. Raises: BadInput."""
    unit = "sample" if spec.forget_samples else "class"
    return effective(method_of(spec), spec.family, spec.params, unit=unit).trains


def _digests(env: Env, subject: Subject, trains: Trains) -> dict[str, str]:
    family = env.load(subject)
    if not isinstance(family.module, Halves):
        raise BadModel(f"expected a network in two halves, found a {type(family.module).__name__}")
    family.module.choose(trains)
    return halves.digests(family)
