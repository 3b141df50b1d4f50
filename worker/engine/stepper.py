"""What most methods share: one optimizer on its schedule, the native loss as rows of a part, a frozen copy of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from worker.engine import optim
from worker.engine.batch import Batch, Part, Rows
from worker.engine.family import Family
from worker.engine.method import Descent
from worker.engine.run import Run

P = TypeVar("P", bound=Descent)


class Stepper(Generic[P]):
    """Base of a method with one optimizer over all trainable weights, its schedule and its clip as `Descent` names them.

    What is left to a method is `step`; one that prepares something adds it to both states.
    """

    def __init__(self, params: P, run: Run) -> None:
        self.params, self.run = params, run
        self.optimizer = optim.make(
            params.algorithm,
            run.parameters,
            learning_rate=params.learning_rate,
            momentum=params.momentum,
            weight_decay=params.weight_decay,
        )

    def prepare(self) -> None:
        """Nothing; see `Method.prepare`."""

    def descend(
        self,
        parts: Sequence[Part],
        iteration: int,
        *,
        mask: list[Tensor] | None = None,
        edit: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """One update on the sum of the parts at the iteration's step size; see `Run.descend`. Raises: Diverged."""
        p = self.params
        optim.set_rate(self.optimizer, p.learning_rate * optim.decayed(p.decay, iteration, p.iterations))
        self.run.descend(parts, self.optimizer, step=iteration, clip=p.clip, mask=mask, edit=edit)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Method.load_state_dict`."""
        optim.restore(self.optimizer, state["optimizer"])


def native(family: Family) -> Rows:
    """Rows of a part that descends the family's own training loss."""

    def rows(batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        loss_B = family.loss(batch.x_BCHW, batch.y_B, batch.draw, module=module)
        return loss_B, loss_B

    return rows


def apart(family: Family, teacher: nn.Module, *, temperature: float = 1.0) -> Rows:
    """Rows of a part that descends the distance to a teacher's answers; see `Family.distance`."""

    def rows(batch: Batch, module: nn.Module) -> tuple[Tensor, Tensor]:
        distance_B = family.distance(
            batch.x_BCHW, batch.y_B, batch.draw, teacher=teacher, temperature=temperature, module=module
        )
        return distance_B, distance_B

    return rows


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in eval mode that nothing trains: the network as it was when this was called."""
    return copy.deepcopy(module).eval().requires_grad_(False)
