"""What a request may ask of a model: which classes are meant, and whether they can be forgotten. Pure.

Messages name the model's classes, which are public to whoever may ask, and never what the client sent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from service.errors import AlreadyForgotten, NothingToRetain, UnknownClass

POINTER = "/forget/classes"
MOST_NAMED = 1000
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def resolve_classes(wanted: Collection[int | str], class_names: Sequence[str]) -> list[int]:
    """The class indices meant, ascending, each once: "3", 3 and the name of class 3 are one class.

    A name wins over an index written as text, so a model whose classes are called "1" and "0" is asked for by name.

    Raises:
        UnknownClass: names the known ones.
    """
    named = any(isinstance(item, str) for item in wanted)
    index_of = {name: k for k, name in enumerate(class_names)} if named else {}
    return sorted({_resolve(item, index_of, class_names) for item in wanted})


def _resolve(item: int | str, index_of: dict[str, int], class_names: Sequence[str]) -> int:
    if isinstance(item, int):
        index = item
    else:
        name = unicodedata.normalize("NFC", item).strip()
        if name in index_of:
            return index_of[name]
        index = int(name) if INDEX.fullmatch(name) else -1
    if not 0 <= index < len(class_names):
        known = ", ".join(class_names[:20]) + (", …" if len(class_names) > 20 else "")
        raise UnknownClass(
            f"the model's classes are 0 to {len(class_names) - 1}: {known}",
            pointer=POINTER,
            known_classes=list(class_names[:MOST_NAMED]),
        )
    return index


def require_forgettable(
    wanted: Collection[int], *, forgotten: Collection[int], pending: Collection[int], class_names: Sequence[str]
) -> None:
    """Refuse classes that are gone already, and a wish that would leave nothing.

    Args:
        forgotten: by the model's current version.
        pending: asked for by requests that have not ended.

    Raises:
        AlreadyForgotten, NothingToRetain.
    """
    gone = sorted(set(wanted) & set(forgotten))
    if gone:
        names = ", ".join(class_names[k] for k in gone[:20])
        raise AlreadyForgotten(f"already forgotten by the current version: {names}", pointer=POINTER)
    if len({*wanted, *forgotten, *pending}) >= len(class_names):
        raise NothingToRetain("with what is forgotten or pending, no class would be left to retain", pointer=POINTER)
