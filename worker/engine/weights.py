"""Safetensors in and out, with every way it can be wrong named. Shared by the families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.engine.errors import BadModel

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def only_file(directory: Path, *, below: Path) -> Path:
    """The one safetensors file of a model folder, relative to it and inside `below`.

    Raises:
        BadModel: a pickle anywhere in the folder, or another number of safetensors files than one.
    """
    files = [p.relative_to(directory) for p in sorted(directory.rglob("*")) if p.is_file()]
    pickles = [p.name for p in files if p.suffix.lower() in PICKLES]
    if pickles:
        raise BadModel(f"expected safetensors weights only, found {', '.join(pickles)}")
    found = [p for p in files if p.suffix.lower() == ".safetensors"]
    if len(found) != 1 or found[0].parent != below:
        raise BadModel(f"expected one .safetensors file in {below}/, found {[p.as_posix() for p in found]}")
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: BadModel."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise BadModel(f"{path.name} is not JSON") from error
    if not isinstance(document, dict):
        raise BadModel(f"expected a JSON object in {path.name}, found {type(document).__name__}")
    return document


def load_into(module: nn.Module, path: Path, *, rename: Callable[[str], str] = str) -> None:
    """Fill every parameter and buffer of `module` from the file, as float32 where it is a float.

    Args:
        rename: gives the module's name of a tensor in the file, for files that were written under older names.

    Raises:
        BadModel: the file is damaged, a tensor is missing or surplus, has another shape, or is not finite.
    """
    wanted = module.state_dict()
    try:
        with safe_open(path, framework="pt") as source:
            came = {rename(name): source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise BadModel(f"{path.name} is not a readable safetensors file") from error
    _require_same_names(set(wanted), set(came), path.name)
    for name, tensor in came.items():
        if tensor.shape != wanted[name].shape:
            raise BadModel(f"expected {name} {list(wanted[name].shape)}, found {list(tensor.shape)}")
    require_finite(came)
    module.load_state_dict(came)


def save_like(module: nn.Module, path: Path, base: Path) -> None:
    """Write the module's tensors under the names and dtypes of the `base` file: one set of weights, nothing else.

    Raises:
        BadModel: the base's names are not the module's, or a number is not finite in the base's dtype.
    """
    state = module.state_dict()
    with safe_open(base, framework="pt") as source:
        dtypes = {name: source.get_tensor(name).dtype for name in source.keys()}  # noqa: SIM118
    _require_same_names(set(dtypes), set(state), base.name)
    # Each a copy: safetensors refuses tensors that share memory, as those of tied modules do.
    tensors = {name: state[name].detach().to("cpu", dtype, copy=True).contiguous() for name, dtype in dtypes.items()}
    require_finite(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def require_finite(tensors: dict[str, Tensor]) -> None:
    """Raises: BadModel naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadModel(f"expected finite weights, found NaN or infinity in {name}")


def _require_same_names(expected: set[str], came: set[str], where: str) -> None:
    if expected != came:
        missing, surplus = sorted(expected - came), sorted(came - expected)
        raise BadModel(
            f"{where}: expected {len(expected)} tensors, {len(missing)} missing (first: {missing[:1]}), "
            f"{len(surplus)} surplus (first: {surplus[:1]})"
        )
