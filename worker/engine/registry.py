"""Finds families, methods and verifiers: the file name is the API name, so adding a file is the whole registration.

A file is imported when its class is asked for: an engine has one family and one method, and what the others need takes seconds.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.engine.family import Family
    from worker.engine.method import Method


@cache
def families() -> Mapping[str, type[Family]]:
    """Model families by name. Reading one raises: TypeError when its file does not export exactly its own class."""
    return _Folder("families")


@cache
def methods() -> Mapping[str, type[Method]]:
    """Unlearning methods by name. Reading one raises: TypeError when its file does not export exactly its own class."""
    return _Folder("methods")


@cache
def verifiers() -> Mapping[str, type[Any]]:
    """Verifiers by name. Reading one raises: TypeError when its file does not export exactly its own class."""
    return _Folder("verifiers")


class _Folder(Mapping[str, type[Any]]):
    """The classes of a package's files, by file name, in the order of names."""

    def __init__(self, folder: str) -> None:
        self._package = f"worker.engine.{folder}"
        path = importlib.import_module(self._package).__path__
        self._names = sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))
        self._found: dict[str, type[Any]] = {}

    def __getitem__(self, name: str) -> type[Any]:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._found:
            self._found[name] = _class_of(f"{self._package}.{name}", name)
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _class_of(module_name: str, name: str) -> type[Any]:
    """The one class defined in the module whose `name` is the file name."""
    module = importlib.import_module(module_name)
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module_name]
    found = [c for c in own if getattr(c, "name", None) == name]
    if len(found) != 1:
        raise TypeError(f"expected exactly one class with name = {name!r} in {module_name}, found {len(found)}")
    return found[0]
