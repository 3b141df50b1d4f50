"""Finds families, methods and verifiers: the file name is the API name, so adding a file is the whole registration."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.engine.family import Family
    from worker.engine.method import Method


@cache
def families() -> dict[str, type[Family]]:
    """Model families by name. Raises: TypeError when a file does not export exactly its own class."""
    return _discover("families")


@cache
def methods() -> dict[str, type[Method]]:
    """Unlearning methods by name. Raises: TypeError when a file does not export exactly its own class."""
    return _discover("methods")


@cache
def verifiers() -> dict[str, type[Any]]:
    """Verifiers by name. Raises: TypeError when a file does not export exactly its own class."""
    return _discover("verifiers")


def _discover(folder: str) -> dict[str, type[Any]]:
    package = importlib.import_module(f"worker.engine.{folder}")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: _class_of(f"{package.__name__}.{name}", name) for name in names}


def _class_of(module_name: str, name: str) -> type[Any]:
    """The one class defined in the module whose `name` is the file name."""
    module = importlib.import_module(module_name)
    own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module_name]
    found = [c for c in own if getattr(c, "name", None) == name]
    if len(found) != 1:
        raise TypeError(f"expected exactly one class with name = {name!r} in {module_name}, found {len(found)}")
    return found[0]
