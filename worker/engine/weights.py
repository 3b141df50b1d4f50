"""What a model folder holds, safetensors and JSON, with every way it can be wrong named. Shared by the families."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.engine.errors import BadModel

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
"""Narrower ones would wrap around when a count grows past them, and nothing would say so."""

NOT_THE_NETWORK = frozenset({"model_type", "dtype", "torch_dtype", "num_labels", "id2label", "label2id"})
"""Keys of a transformers configuration that are not handed on; see `network_values`."""


def only_file(directory: Path, *, below: Path) -> Path:
    """The one safetensors file of a model folder, relative to it and inside `below`.

    Raises:
        BadModel: a pickle anywhere in the folder, or another number of safetensors files than one.
    """
    found = _safetensors(directory)
    if len(found) != 1 or found[0].parent != below:
        raise BadModel(f"expected one .safetensors file in {below}/, found {[p.as_posix() for p in found]}")
    return found[0]


def files_of_parts(directory: Path, parts: Sequence[Path], *, carried: Sequence[Path] = ()) -> dict[Path, Path]:
    """The one safetensors file of each part of a pipeline's folder, relative to the folder, whatever its name.

    Args:
        carried: parts that are copied and never read: they may be missing, but have one file at most, too.

    Raises:
        BadModel: a pickle anywhere, a part with no or with two files (one of them would survive unlearning), or weights in
            another place, such as a whole checkpoint beside the parts.
    """
    found, places = _safetensors(directory), (*parts, *carried)
    strays = [p.as_posix() for p in found if p.parent not in places]
    if strays:
        raise BadModel(f"expected .safetensors files in {', '.join(map(str, places))} only, found {strays}")
    by_part = {part: [p for p in found if p.parent == part] for part in places}
    for part, own in by_part.items():
        if len(own) > 1 or (part in parts and not own):
            raise BadModel(f"expected one .safetensors file in {part}/, found {[p.name for p in own]}")
    return {part: by_part[part][0] for part in parts}


def _safetensors(directory: Path) -> list[Path]:
    """All safetensors files, relative to the folder. Raises: BadModel for a pickle anywhere."""
    files = [p.relative_to(directory) for p in sorted(directory.rglob("*")) if p.is_file()]
    pickles = [p.as_posix() for p in files if p.suffix.lower() in PICKLES]
    if pickles:
        raise BadModel(f"expected safetensors weights only, found {', '.join(pickles)}")
    return [p for p in files if p.suffix.lower() == ".safetensors"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Infinity may stand in it, as diffusers writes it into a scheduler's configuration; NaN may not.

    Raises: BadModel.
    """

    def constant(word: str) -> float:
        if word == "NaN":
            raise BadModel(f"expected numbers in {path.name}, found NaN")
        return float(word)

    try:
        document = json.loads(path.read_bytes(), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{path.name} is not JSON") from error
    if not isinstance(document, dict):
        raise BadModel(f"expected a JSON object in {path.name}, found {type(document).__name__}")
    return document


def network_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformers configuration says of the network itself.

    Left out: who computes attention, which may name a kernel to download; in which numbers, for they are ours; and labels, of
    which transformers makes up as many names as `num_labels` says, be it a billion.
    """
    return {key: value for key, value in document.items() if key not in NOT_THE_NETWORK and "attn_impl" not in key}


def require_label_order(id2label: object, labels: Sequence[str], where: str) -> None:
    """What a folder says its classes are called must not contradict the order in which they were registered.

    Other names, such as the LABEL_0 that transformers puts where nobody gave any, say nothing about the order.

    Args:
        id2label: class index (as text) -> name, or whatever else the folder has there.
        labels: registered name of class 0, 1, ...
        where: the file that it stands in.

    Raises:
        BadModel: the names are the registered ones, in another order.
    """
    if not isinstance(id2label, dict) or not all(isinstance(name, str) for name in id2label.values()):
        return
    said = {str(k): name.strip().casefold() for k, name in id2label.items()}
    registered = [label.strip().casefold() for label in labels]
    if sorted(said.values()) != sorted(registered):
        return
    for k, label in enumerate(registered):
        if said.get(str(k)) != label:
            found = repr(id2label[str(k)]) if str(k) in id2label else "no such class"
            raise BadModel(f"expected class {k} to be {labels[k]!r}, as registered, found {found} in id2label of {where}")


def load_into(module: nn.Module, path: Path, *, rename: Callable[[str], str] = str) -> None:
    """Fill every parameter and buffer of `module` from the file, as float32 where it is a float.

    Args:
        rename: gives the module's name of a tensor in the file, for files that were written under older names.

    Raises:
        BadModel: the file is damaged, a tensor is missing or surplus, has another shape or kind of number, or is not finite.
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
        require_kind(name, expected=wanted[name].dtype, came=tensor.dtype)
    require_finite(came)
    module.load_state_dict(came)


def save_like(module: nn.Module, path: Path, base: Path) -> None:
    """Write the module's tensors under the names and dtypes of the `base` file: one set of weights, nothing else.

    Raises:
        BadModel: the base's names are not the module's, its dtypes cannot hold the module's numbers, or a number is not finite
            in the base's dtype.
    """
    state = module.state_dict()
    with safe_open(base, framework="pt") as source:
        dtypes = {name: source.get_tensor(name).dtype for name in source.keys()}  # noqa: SIM118
    _require_same_names(set(dtypes), set(state), base.name)
    for name, dtype in dtypes.items():
        require_kind(name, expected=state[name].dtype, came=dtype)
    # Each a copy: safetensors refuses tensors that share memory, as those of tied modules do.
    tensors = {name: state[name].detach().to("cpu", dtype, copy=True).contiguous() for name, dtype in dtypes.items()}
    require_finite(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def require_kind(name: str, *, expected: torch.dtype, came: torch.dtype) -> None:
    """Floating point stands for floating point, in any precision, and integers for integers; any other would be cut off.

    Raises: BadModel.
    """
    family = next((kinds for kinds in (FLOATS, INTEGERS) if expected in kinds), (expected,))
    if came not in family:
        one_of = " or ".join(str(dtype).removeprefix("torch.") for dtype in family)
        raise BadModel(f"expected {one_of} in {name}, found {str(came).removeprefix('torch.')}")


def require_finite(tensors: dict[str, Tensor]) -> None:
    """Raises: BadModel naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            raise BadModel(f"expected finite weights, found NaN or infinity in {name}")


def _require_same_names(expected: set[str], came: set[str], where: str) -> None:
    if expected != came:
        missing, surplus = sorted(expected - came), sorted(came - expected)
        raise BadModel(
            f"{where}: expected {len(expected)} tensors, {len(missing)} missing (first: {missing[:1]}), "
            f"{len(surplus)} surplus (first: {surplus[:1]})"
        )
