"""Step checkpoints: what a killed run needs to go on to the same bits.

    steps/step-000040/state.safetensors     every tensor: weights, masks, optimizer moments
    steps/step-000040/state.json            the rest of the state, the key, and the digest of the tensors

A checkpoint is written under another name, synced and renamed; one that is torn or was written for another spec, code
or torch is not used. Only the first rank writes; every rank holds the same state, or a part of it that was gathered.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.contract import Spec, document_digest
from worker.engine.environment import code_version
from worker.engine.files import sha256_of, sync_directory, write_atomically

KEEP = 2


@dataclass
class Cadence:
    """When to write: every `iterations` or after `seconds`, but never for more than 5 % of the run's time."""

    iterations: int = 10
    seconds: float = 2.0
    clock: Callable[[], float] = time.monotonic
    _last_time: float = field(init=False)
    _last_iteration: int = field(init=False, default=-1)
    _cost: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._last_time = self.clock()

    def due(self, iteration: int) -> bool:
        """Is it time, before this iteration begins?"""
        elapsed = self.clock() - self._last_time
        wanted = iteration - max(self._last_iteration, 0) >= self.iterations or elapsed >= self.seconds
        return wanted and iteration > self._last_iteration and elapsed >= 20 * self._cost

    def wrote(self, iteration: int, seconds: float) -> None:
        """A checkpoint was written and took this long."""
        self._last_time, self._last_iteration, self._cost = self.clock(), iteration, seconds


def key_of(spec: Spec) -> str:
    """What a checkpoint is good for: the same work by the same code gives the same bits, anything else may not."""
    return hashlib.sha256(f"{document_digest(spec)}\n{code_version()}\n{torch.__version__}".encode()).hexdigest()


def save(steps: Path, iteration: int, state: dict[str, Any], key: str) -> None:
    """Write the checkpoint taken before `iteration`, then drop all but the newest `KEEP`."""
    final = steps / f"step-{iteration:06d}"
    temporary = steps / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    rest = _take_tensors(state, "", tensors)
    tensor_file = temporary / "state.safetensors"
    save_file(tensors, tensor_file)
    with tensor_file.open("rb+") as stream:
        os.fsync(stream.fileno())
    document = {"iteration": iteration, "key": key, "sha256": sha256_of(tensor_file), "state": rest}
    write_atomically(temporary / "state.json", json.dumps(document, allow_nan=False).encode())
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_directory(steps)
    for old in _all(steps)[:-KEEP]:
        shutil.rmtree(old)


def newest(steps: Path, key: str) -> int | None:
    """Iteration of the newest checkpoint that is whole and made for `key`; None when there is none."""
    for folder in reversed(_all(steps)):
        document = _document(folder)
        if document is not None and document["key"] == key and _whole(folder, document):
            return int(document["iteration"])
    return None


def load(steps: Path, iteration: int) -> dict[str, Any]:
    """The state that `save` was given, tensors on the CPU. Raises: FileNotFoundError."""
    folder = steps / f"step-{iteration:06d}"
    document = json.loads((folder / "state.json").read_bytes())
    state = _put_tensors(document["state"], load_file(folder / "state.safetensors"))
    assert isinstance(state, dict)
    return state


def _all(steps: Path) -> list[Path]:
    return sorted(steps.glob("step-*")) if steps.is_dir() else []


def _document(folder: Path) -> dict[str, Any] | None:
    """The JSON beside the tensors; None when it is torn, which a power cut can do and a reader must survive."""
    try:
        document = json.loads((folder / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and {"iteration", "key", "sha256"} <= document.keys() else None


def _whole(folder: Path, document: dict[str, Any]) -> bool:
    tensors = folder / "state.safetensors"
    return tensors.is_file() and sha256_of(tensors) == document["sha256"]


# ------------------------------------------------------------------ nested state <-> JSON and a flat table of tensors


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved into `tensors`. Dict keys keep their type: optimizers count parameters."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[k, _take_tensors(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_take_tensors(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _put_tensors(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    kind, content = next(iter(value.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {k: _put_tensors(v, tensors) for k, v in content}
    if kind == "list":
        return [_put_tensors(v, tensors) for v in content]
    return content
