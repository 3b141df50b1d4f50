"""Networks that fit no single device: every rank holds a part of every weight, gradient and moment (FSDP2).

A parameter, its gradient, its mask and its moments are `DTensor`s cut along their first dimension; a unit (a block) is gathered
while it computes and dropped again. A forward or backward pass is therefore a collective: every rank takes it, equally often.
What is written (weights, masks, moments) is whole, so a file does not say how many ranks wrote it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from worker.engine.distributed import Ranks
from worker.engine.errors import BadInput

Choice = Literal["auto", "replicated", "sharded"]
FSDP, DTENSOR = "torch.distributed.fsdp", "torch.distributed.tensor"
"""They take a second to load, and nothing is cut before `shard` has loaded them: most runs shard nothing."""

BYTES = 25
"""Of a trainable weight that is replicated: itself, its gradient, two moments for each of two optimizers, its mask."""

MOMENTS = 16
"""Bytes of those that are the moments: two of four bytes for each of two optimizers."""

ROOM = 0.8
"""Share of a device's memory that these may take; the rest is for activations."""


def wanted(choice: Choice, *, world: int, trainable: int, memory: int | None, able: bool) -> bool:
    """Is the network to be sharded?

    Args:
        trainable: weights that are trained.
        memory: bytes of one device; None on a CPU, where only "sharded" shards.
        able: can the method work on shards? "auto" does not shard for one that cannot.

    Raises:
        BadInput: "sharded" with one rank, or for a method that cannot.
    """
    if choice == "sharded":
        if world == 1:
            raise BadInput("sharding 'sharded' needs several ranks, found one; expected 'auto', 'replicated' or more ranks")
        if not able:
            raise BadInput("sharding 'sharded' is not built for this method; expected 'auto' or 'replicated'")
        return True
    return choice == "auto" and world > 1 and able and memory is not None and BYTES * trainable > ROOM * memory


def memory_of(device: torch.device) -> int | None:
    """Bytes of the device's own memory; None for a CPU."""
    return None if device.type == "cpu" else int(torch.cuda.get_device_properties(device).total_memory)


def is_sharded(module: nn.Module) -> bool:
    """Did `shard` cut it up?"""
    loaded = sys.modules.get(FSDP)
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def is_cut(value: object) -> bool:
    """Is it a tensor of which each rank has a part?"""
    loaded = sys.modules.get(DTENSOR)
    return loaded is not None and isinstance(value, loaded.DTensor)


def shard(module: nn.Module, ranks: Ranks) -> None:
    """Leave this rank its part of every parameter, in place; the module's forward pass becomes a collective.

    The mean over ranks of a gradient arrives in `.grad`, cut like its parameter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Channels-last weights cannot be cut along their first dimension into contiguous pieces of one buffer.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for unit in (*units(module), module):
        # The root too: left whole after a pass without gradient, it would answer with the weights of before an update.
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def units(module: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time, inner ones first; the rest belongs to the root.

    Those are the members of the outermost `ModuleList`s. A module that several of them share is a unit of its own. Where
    single parameters are shared across units there are none: cut twice, they would no longer be one.
    """
    children = Counter(child for parent in module.modules() for child in parent.children())
    tied = [child for child, parents in children.items() if parents > 1]
    found = [unit for unit in (*tied, *_members(module)) if any(True for _ in unit.parameters())]
    unique = list(dict.fromkeys(found))
    owners = Counter(p for unit in (*unique, module) for p in _own(unit, set(unique)))
    return unique if all(count == 1 for count in owners.values()) else []


def _members(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child.children() if isinstance(child, nn.ModuleList) else _members(child)


def _own(unit: nn.Module, units: set[nn.Module]) -> set[nn.Parameter]:
    """The parameters below `unit` but not below another unit."""
    own = set(unit.parameters(recurse=False))
    return own.union(*(_own(child, units) for child in unit.children() if child not in units))


# ------------------------------------------------------------------------------------------------------- what memory holds


@contextmanager
def peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Ask, after the block, for the most bytes that were allocated on an accelerator while it ran."""
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device)


def limit(device: torch.device, parameters: Iterable[Tensor]) -> int:
    """Bytes that an update may have allocated: most of what can be had, less the moments that optimizers have yet to make."""
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(p.numel() for p in local(parameters))
    return int(0.9 * (free + torch.cuda.memory_reserved(device))) - MOMENTS * weights


def rows_that_fit(one: int, two: int, *, limit: int) -> int:
    """Rows whose pass stays below `limit` bytes, from the peaks of one row and of two; at least 1, which did fit."""
    return 1 + max(0, (limit - one) // max(1, two - one))


# --------------------------------------------------------------------------------------------------------- parts and wholes


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts, sharing memory with the tensors; a tensor that is not cut is itself."""
    return [cast(Any, t).to_local() if is_cut(t) else t for t in tensors]


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor, the same on every rank, that goes with this rank's part of `like`; on its device."""
    if not is_cut(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    parts = cast(DTensor, like)
    return distribute_tensor(tensor.to(like.device), parts.device_mesh, parts.placements, src_data_rank=None)


def whole(value: Any, *, keep: bool = True) -> Any:
    """Nested dicts and lists with every cut tensor gathered, one by one, and moved to the CPU. A collective.

    Args:
        keep: False on ranks that only contribute: they get None for what was cut.
    """
    if is_cut(value):
        gathered = value.detach().full_tensor()
        return gathered.cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole(v, keep=keep) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole(v, keep=keep) for v in value]
    return value


def cut_alike(value: Any, parameters: Sequence[Tensor]) -> Any:
    """Nested dicts and lists in which every list of tensors shaped like the parameters, in their order, is cut like them.

    What `whole` did to masks and the like, undone. Optimizers' states are cut by `optim.restore`, which knows whose they are.
    """
    if isinstance(value, dict):
        return {key: cut_alike(v, parameters) for key, v in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if [getattr(v, "shape", None) for v in value] == [p.shape for p in parameters]:
        return [cut(v, p) for v, p in zip(value, parameters, strict=True)]
    return [cut_alike(v, parameters) for v in value]


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Whole tensors into a module that may be cut. Raises: RuntimeError for other names or shapes than the module's."""
    if is_sharded(module):
        mine = module.state_dict()
        state = {name: cut(tensor, mine[name]) if name in mine else tensor for name, tensor in state.items()}
    module.load_state_dict(state)


def restore_whole(module: nn.Module, *, keep: bool) -> None:
    """Put whole weights on the CPU in the place of the parts, to be saved; the module computes no more. A collective.

    Args:
        keep: False on ranks that only contribute: their module keeps its parts.
    """
    done: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not is_cut(parameter):
                continue
            if parameter not in done:
                gathered = whole(parameter, keep=keep)
                done[parameter] = nn.Parameter(gathered, requires_grad=False) if keep else parameter
            setattr(owner, name, done[parameter])
