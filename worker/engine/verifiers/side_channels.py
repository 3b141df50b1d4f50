"""Do the files say by their form what was forgotten? Zeros that the parent does not have, masks, adapters, leftover copies.

Where weights were cut away, their places say what was cut away. A true retrain has no more zeros than its parent; nor has a
fine-tuned model, whose updates do not land on zero. And beside the weights nothing may lie that still knows: an average of them
from before, an optimizer's moments, an adapter. A vector that is zero from end to end singles no place out: new networks begin
with such biases, and with such means of BatchNorm.

A file that the parent does not have is refused by `integrity` as well; here it is called what it is.
Source: arXiv:2603.06640 for pruned places that betray the concept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import BadModel
from worker.engine.family import Kind
from worker.engine.verifier import Env, Need, Params

WEIGHTS = ".safetensors"

NAMES: Mapping[str, re.Pattern[str]] = {
    "leftover_averages": re.compile(r"(?<![a-z])(ema|polyak|swa|averaged?|shadow)(?![a-z])", re.IGNORECASE),
    "leftover_optimizers": re.compile(
        r"(?<![a-z])(optim(izer)?|exp_avg\w*|momentum_buffer|adam\w*|grad(ient)?s?)(?![a-z])", re.I
    ),
    "leftover_adapters": re.compile(r"(?<![a-z])(adapters?|lora\w*|lokr|loha|dora|hypernet\w*)(?![a-z])", re.IGNORECASE),
    "leftover_masks": re.compile(r"(?<![a-z])(masks?|saliency|fisher|weight_orig|importance)(?![a-z])", re.IGNORECASE),
}
"""Metric -> what files and tensors are called that hold such things. What the parent calls so, too, has another meaning."""

SAYS: Mapping[str, str] = {
    "leftover_averages": "are named as an average of weights",
    "leftover_optimizers": "are named as an optimizer's state",
    "leftover_adapters": "are named as an adapter",
    "leftover_masks": "are named as a mask, or as what one is made of",
}


class Thresholds(Params):
    """How many zeros may be chance."""

    max_zero_share: float = Field(
        default=1e-6,
        ge=0,
        le=0.01,
        description="share of a tensor's weights that may newly be zero, as narrow numbers round some; never a row",
    )


Places = Mapping[str, tuple[Path, str]]
"""Folder and name of a tensor -> the file that it stands in, and its name there."""


@dataclass
class Zeros:
    """What is newly exactly zero, tensor by tensor."""

    tensors: list[str] = field(default_factory=list)
    """With more single zeros than chance allows."""
    rows: list[str] = field(default_factory=list)
    """With a row or a column that has become nothing but zeros."""
    masks: list[str] = field(default_factory=list)
    """That have become nothing but zeros and ones."""
    fresh: int = 0
    """Single ones, in all tensors together."""


class SideChannels:
    """The candidate's files and weights beside its parent's: what neither drawing nor naming would show."""

    name: ClassVar[str] = "side_channels"
    title: ClassVar[str] = "The files do not betray by their form what was forgotten"
    tier: ClassVar[Tier] = "L3"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator", "classifier", "i2i")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Looks at files, not at samples."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`. Raises: BadModel for weights that cannot be read, or of which the parent has no counterpart."""
        out, base = env.job.out, env.job.base
        came, parents = tensors_of(out), tensors_of(base)
        files = [p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file()]
        known = {p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()}
        names = [*(f for f in files if f not in known), *(t for t in came if t not in parents)]
        found = [self._none(metric, [n for n in names if NAMES[metric].search(n)], SAYS[metric]) for metric in NAMES]
        zeros = self._zeros(env, came, parents)
        return (
            *found,
            self._none("zero_rows_added", zeros.rows, "have a row or a column that is newly nothing but zeros"),
            self._none("zero_weights_added", zeros.tensors, f"have weights that are newly zero, {zeros.fresh} in all"),
            self._none("binary_tensors_added", zeros.masks, "are newly nothing but zeros and ones"),
        )

    def _zeros(self, env: Env, came: Places, parents: Places) -> Zeros:
        zeros = Zeros()
        for name, after, before in _pairs(came, parents):
            count = _fresh_zeros(after, before)
            zeros.fresh += count
            if count > self.params.max_zero_share * after.numel():
                zeros.tensors.append(name)
            if _lost_lines(after, before):
                zeros.rows.append(name)
            if _is_binary(after) and not _is_binary(before):
                zeros.masks.append(name)
            env.busy()
        return zeros

    def _none(self, metric: str, offenders: Sequence[str], which: str) -> Finding:
        count = len(offenders)
        shown = ", ".join(sorted(offenders)[:3])
        return Finding(
            check=self.name,
            metric=metric,
            subject="candidate",
            gating=True,
            passed=count == 0,
            value=float(count),
            comparator="eq",
            threshold=0.0,
            count=count,
            detail=f"{count} {which}: {shown[:300]}" if offenders else f"none {which}",
        )


def tensors_of(folder: Path) -> Places:
    """Every tensor of a folder's safetensors files. What the files are called is no part of it: `integrity` compares that.

    Raises: BadModel for a file that cannot be read, or where there is none.
    """
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() == WEIGHTS):
        place = path.relative_to(folder).parent.as_posix()
        try:
            with safe_open(path, framework="pt") as source:
                found |= {f"{place}/{name}": (path, name) for name in source.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise BadModel(f"{path.name} is not a readable safetensors file") from error
    if not found:
        raise BadModel("expected weights in safetensors files, found none")
    return found


def _pairs(came: Places, parents: Places) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Tensors that both have, one at a time. Raises: BadModel where they differ in shape."""
    for name in sorted(came.keys() & parents.keys()):
        after, before = (_read(*places[name]) for places in (came, parents))
        if after.shape != before.shape:
            raise BadModel(f"expected {name} {list(before.shape)}, as the parent has it, found {list(after.shape)}")
        yield name, after, before


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as source:
        return source.get_tensor(name)


def _fresh_zeros(after: Tensor, before: Tensor) -> int:
    """Numbers that are zero and were not; none in a vector without any other."""
    if not after.is_floating_point() or (after.ndim < 2 and not bool((after != 0).any())):
        return 0
    return int(((after == 0) & (before != 0)).sum())


def _lost_lines(after: Tensor, before: Tensor) -> bool:
    """Is there a row, or a column, of which everything is zero now and something was not?"""
    if after.ndim < 2:
        return False
    flat_after, flat_before = (t != 0 for t in (after.flatten(1), before.flatten(1)))
    columns_after, columns_before = ((t != 0).transpose(0, 1).flatten(1) for t in (after, before))
    return any(
        bool((b.any(dim=1) & ~a.any(dim=1)).any()) for a, b in ((flat_after, flat_before), (columns_after, columns_before))
    )


def _is_binary(tensor: Tensor) -> bool:
    """Zeros and ones, both of them."""
    if tensor.dtype == torch.bool:
        return True
    return bool(((tensor == 0) | (tensor == 1)).all()) and bool((tensor == 0).any()) and bool((tensor == 1).any())
