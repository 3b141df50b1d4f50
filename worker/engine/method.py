"""The protocol of an unlearning method, and the parameters that many methods share.

A method owns its losses, masks and optimizers. The run (`worker.engine.run`) owns the rest: batches, ranks, precision,
the finite check, micro-batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from worker.engine.family import Augment
from worker.engine.halves import Trains
from worker.engine.statistics import upper_bound

if TYPE_CHECKING:
    from worker.engine.run import Run

Unit = Literal["class", "sample"]
"""What a request names: whole classes, or single training items."""

Decay = Literal["constant", "linear", "cosine"]

Conditions = Mapping[str, Mapping[str, tuple[JsonValue, ...]]]
"""Parameter -> what it takes for it to have an effect: another parameter, or the family's `kind`, with one of some values.

Of modes alone: a weight of 0 switches something off as well, and is yet one end of a range that is searched.
"""


@dataclass(frozen=True)
class Preset:
    """Named parameters that belong together, for some families: published settings, or our own that were measured."""

    families: tuple[str, ...]
    params: Mapping[str, JsonValue]
    source: str
    """Where they come from, one sentence."""
    units: tuple[Unit, ...] = ("class", "sample")
    """What a request must name for this preset to be its default."""


class Params(BaseModel):
    """Base of a method's parameters: unknown names are refused, and ranges become the API's JSON schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    conditions: ClassVar[Conditions] = {}
    """Of parameters that not every mode reads. Given where they have no effect, they are refused; see `intake.effective`."""

    preset: str | None = Field(default=None, max_length=100, description="named values that the others started from")
    iterations: int = Field(default=50, ge=1, le=1_000_000, description="updates of the loop")
    batch_size: int = Field(default=64, ge=1, le=65_536, description="images of a global batch, of each stream")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of forward and backward passes; weights stay fp32; auto: bf16 where the hardware has it"
    )
    batch_norm: Literal["frozen", "train"] = Field(
        default="frozen", description="statistics of BatchNorm layers: as they came, or re-estimated from the batches"
    )
    augment: Augment = Field(default="none", description="how training images are varied")
    sharding: Literal["auto", "replicated", "sharded"] = Field(
        default="auto",
        description="several ranks each hold all weights, or a part of every weight; auto: a part where all do not fit a GPU",
    )
    early_stop_every: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="iterations between two looks at whether enough is forgotten, with a judge of the loop's own; 0: none",
    )
    early_stop_samples: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="images of each forgotten class that a look asks for, and of all retained ones",
    )
    early_stop_rate: float = Field(
        default=0.05, gt=0, lt=1, description="bound on the share that still shows the class, 0-1, under which it is forgotten"
    )
    early_stop_drop: float = Field(
        default=0.02, ge=0, lt=1, description="share of retained images that may be lost against the beginning, 0-1"
    )

    @model_validator(mode="after")
    def _a_look_can_find_enough(self) -> Self:
        if self.early_stop_every and upper_bound(0, self.early_stop_samples) > self.early_stop_rate:
            raise ValueError(
                f"{self.early_stop_samples} images cannot show a rate of {self.early_stop_rate} at 95 %, even if none "
                "shows the class; expected more early_stop_samples, or a higher early_stop_rate"
            )
        return self

    @property
    def trains(self) -> Trains:
        """Which part of a network in two halves is trained; the rest, decoder and all, comes out as it went in."""
        return "all"


class Descent(Params):
    """Parameters of one optimizer and its schedule."""

    algorithm: Literal["sgd", "adam", "adamw"] = Field(default="adam", description="optimizer")
    learning_rate: float = Field(default=1e-4, gt=0, le=100, description="at the first iteration")
    decay: Decay = Field(default="constant", description="how learning_rate falls over the iterations")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; beta_1 of adam and adamw")
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip: float | None = Field(default=None, gt=0, le=1e6, description="largest gradient norm; null: unclipped")


class Method(Protocol):
    """An unlearning method. Files in `methods/` each hold one."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    guarantee: ClassVar[Literal["empirical", "exact-retrain"]]
    families: ClassVar[tuple[str, ...]]
    """Names of the families it can work on."""
    shards: ClassVar[bool]
    """Can it work on a network whose weights are cut up among the ranks? Without the name: no.

    Then every rank must ask the network equally often, nothing may be drawn or copied from it, and a number made of all
    weights is made by the run.
    """
    presets: ClassVar[Mapping[str, Preset]]
    """By name. The first that names a family, and what a request forgets, is the default there."""
    Params: ClassVar[type[Params]]

    def __init__(self, params: Any, run: Run) -> None:
        """Set up optimizers; cheap, and done on resume too. Raises: BadInput."""
        ...

    def prepare(self) -> None:
        """The work before the first iteration, such as a saliency mask; not done on resume."""
        ...

    def step(self, iteration: int) -> None:
        """One iteration. Randomness comes from `(seed, stream, iteration)` alone. Raises: Diverged."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `step` depends on besides the weights: nested dicts and lists of tensors and JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave, tensors now on the CPU.

        Where the network is sharded, a list of tensors shaped like the parameters comes cut like them.
        """
        ...
