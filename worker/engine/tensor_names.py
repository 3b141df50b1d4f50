"""Under which names a classifier's file holds its tensors, where those are not the ones that its module has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worker.engine.errors import BadModel

COUNTS = "num_batches_tracked"
INDICES = frozenset({torch.int32, torch.int64})


@dataclass(frozen=True)
class Naming:
    """How a file speaks of a module's tensors."""

    names: Mapping[str, str]
    """The module's name of a tensor -> the file's."""
    carried: Mapping[str, Tensor]
    """Tables of indices that the file has and the module computes by itself: never read, written back as they came."""


def naming_of(file: Path, module: nn.Module) -> Naming:
    """Which names the file has, the module's own or those of published weights, and what it may do without.

    transformers has renamed the tensors of some networks since their weights were published, and computes tables that older
    files hold. Nothing here reads how many batches BatchNorm has counted, so a file may do without, and its successors then
    stay without.

    Raises: BadModel.
    """
    try:
        with safe_open(file, framework="pt") as source:
            found = set(source.keys())
            carried = {n: source.get_tensor(n) for n in found if _computed(n, module)}
    except (SafetensorError, OSError) as error:
        raise BadModel(f"{file.name} is not a readable safetensors file") from error
    carried = {n: tensor for n, tensor in carried.items() if tensor.dtype in INDICES}
    names, published = {name: name for name in module.state_dict()}, _published_names(module)
    if len(found & set(published.values())) > len(found & names.keys()):
        names = published
    counted = any(name.endswith(COUNTS) for name in found)
    return Naming({ours: theirs for ours, theirs in names.items() if counted or not ours.endswith(COUNTS)}, carried)


def rename(module: nn.Module, naming: Naming) -> None:
    """Make `state_dict` and `load_state_dict` speak of these tensors, by these names."""
    names, carried = naming.names, naming.carried

    def speak(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        said = {prefix + theirs: state[prefix + ours] for ours, theirs in names.items()}
        for name in [n for n in state if n.startswith(prefix)]:
            del state[name]
        state.update(said | {prefix + name: tensor for name, tensor in carried.items()})

    def listen(module: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        heard = {prefix + ours: state.pop(prefix + theirs) for ours, theirs in names.items() if prefix + theirs in state}
        kept = {prefix + n: b for n, b in module.named_buffers() if n.endswith(COUNTS) and n not in names}
        for name in carried:
            state.pop(prefix + name, None)
        state.update(kept | heard)

    module.register_state_dict_post_hook(speak)
    module.register_load_state_dict_pre_hook(listen)


def _computed(name: str, module: nn.Module) -> bool:
    """Does the module compute this tensor by itself, and says so?"""
    patterns = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns) and name not in module.state_dict()


def _published_names(module: nn.Module) -> dict[str, str]:
    """Our names of tensors -> those of the network's published weights."""
    if not any(base.__module__.startswith("transformers.") for base in type(module).__mro__):
        return {}
    from transformers.core_model_loading import revert_weight_conversion  # seconds, which the CIFAR ResNets do not wait for

    state = module.state_dict()
    ours = {id(tensor): name for name, tensor in state.items()}
    return {ours[id(tensor)]: name for name, tensor in revert_weight_conversion(module, state).items() if id(tensor) in ours}
