"""Are the saved files exactly one finite model of the parent's shape, and nothing else?

A checkpoint may leak in other ways than by drawing: a second set of weights, optimizer moments, adapters or images beside
the model would carry what the first set forgot. So everything that the parent does not have is refused.

Safetensors layout: https://huggingface.co/docs/safetensors (an 8-byte header length, a JSON header, the tensors).
"""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open

from worker.contract import Finding, Spec, Tier
from worker.engine.errors import EngineError
from worker.engine.family import Kind
from worker.engine.verifier import Env, Need, Params

WEIGHTS = ".safetensors"
TEXTS = frozenset({".json", ".txt", ".md", ""})
HARMLESS_METADATA = {"format": "pt"}


class Thresholds(Params):
    """Nothing to set: integrity has no thresholds."""


@dataclass
class Weights:
    """What the safetensors files of one folder hold. `layout` maps (folder of the file, tensor) to (shape, dtype)."""

    layout: dict[tuple[str, str], tuple[tuple[int, ...], str]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    """Tensors that two files of one folder hold: two sets of weights."""
    not_finite: list[str] = field(default_factory=list)
    metadata: set[tuple[str, str, str]] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)


class Integrity:
    """The candidate's files against the manifest and against the parent's files."""

    name: ClassVar[str] = "integrity"
    title: ClassVar[str] = "The saved files are one intact model and nothing else"
    tier: ClassVar[Tier] = "L0"
    kinds: ClassVar[tuple[Kind, ...]] = ("generator", "classifier", "i2i")
    Params: ClassVar[type[Params]] = Thresholds

    def __init__(self, params: Thresholds) -> None:
        self.params = params

    def needs(self, spec: Spec) -> tuple[Need, ...]:
        """Looks at files, not at samples."""
        return ()

    def run(self, env: Env) -> tuple[Finding, ...]:
        """See `Verifier.run`."""
        out, base = env.job.out, env.job.base
        names = [f.path for f in env.candidate_files]
        parents = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
        came, expected = read_weights(out, names), read_weights(base, parents)
        return (
            self._none("files_unlike_manifest", _unlike_manifest(env), "differ from the manifest"),
            self._none("files_added", [n for n in names if n not in parents], "are not among the parent's"),
            self._none("files_missing", [n for n in parents if n not in names], "of the parent's are missing"),
            self._none("files_of_other_types", [n for n in names if not _allowed(n)], "are neither weights nor texts"),
            self._none("texts_changed", _changed_texts(out, base, names, parents), "differ from the parent's"),
            self._none("weights_unreadable", came.unreadable, "are not whole safetensors files"),
            self._none("tensors_repeated", came.repeated, "occur twice: more than one set of weights"),
            self._none("tensors_unlike_parent", _unlike(came, expected), "differ in name, shape or type"),
            self._none("tensors_not_finite", came.not_finite, "hold NaN or infinity"),
            self._none("metadata_added", _added_metadata(came, expected), "are not among the parent's metadata"),
            self._none("load_errors", _load_errors(env), "from the model family"),
        )

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


def read_weights(folder: Path, names: Iterable[str]) -> Weights:
    """Every tensor of the folder's safetensors files, one at a time, so that memory holds the largest and no more."""
    weights = Weights()
    for name in names:
        if PurePosixPath(name).suffix == WEIGHTS:
            try:
                _read_file(folder / name, str(PurePosixPath(name).parent), weights)
            except (SafetensorError, OSError):
                weights.unreadable.append(name)
    if not weights.layout:
        weights.unreadable.append("any weights")
    return weights


def _read_file(path: Path, place: str, weights: Weights) -> None:
    with safe_open(path, framework="pt") as source:
        weights.metadata |= {(place, key, value) for key, value in (source.metadata() or {}).items()}
        for tensor_name in source.keys():  # noqa: SIM118 - not a mapping
            tensor = source.get_tensor(tensor_name)
            if (place, tensor_name) in weights.layout:
                weights.repeated.append(tensor_name)
            weights.layout[place, tensor_name] = tuple(tensor.shape), str(tensor.dtype)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                weights.not_finite.append(tensor_name)


def _unlike_manifest(env: Env) -> list[str]:
    found, promised = set(env.candidate_files), set(env.promised_files)
    counted = Counter(f.path for f in found ^ promised)
    return sorted(counted)


def _allowed(name: str) -> bool:
    """Weights and texts; nothing that a loader could run, no archive, no picture, nothing hidden."""
    path = PurePosixPath(name)
    return path.suffix.lower() in {WEIGHTS, *TEXTS} and not any(part.startswith(".") for part in path.parts)


def _changed_texts(out: Path, base: Path, names: Iterable[str], parents: Iterable[str]) -> list[str]:
    both = [n for n in set(names) & set(parents) if PurePosixPath(n).suffix != WEIGHTS]
    return [n for n in both if not filecmp.cmp(out / n, base / n, shallow=False)]


def _unlike(came: Weights, expected: Weights) -> list[str]:
    keys = came.layout.keys() | expected.layout.keys()
    return [name for place, name in keys if came.layout.get((place, name)) != expected.layout.get((place, name))]


def _added_metadata(came: Weights, expected: Weights) -> list[str]:
    """A header may carry any text, so a note on what was forgotten could hide there."""
    added = came.metadata - expected.metadata
    return [key for _, key, value in added if HARMLESS_METADATA.get(key) != value]


def _load_errors(env: Env) -> list[str]:
    """This stage runs in a process of its own that never held these weights, so loading here is loading from the files."""
    try:
        env.load("candidate")
    except EngineError as error:
        return [str(error)]
    return []
