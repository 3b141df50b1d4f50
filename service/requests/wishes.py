"""What a request may ask of a model: which classes or items are meant, and whether they can be forgotten. Pure.

Messages name the model's classes, which are public to whoever may ask, and never what the client sent: an item's id may be
somebody's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.errors import AlreadyForgotten, EmptiedClass, HeldOutSample, NothingToRetain, UnknownClass, UnknownSample

POINTER = "/forget/classes"
SAMPLES_POINTER = "/forget/samples"
MOST_NAMED = 1000
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Wish:
    """What one request asks for: whole classes, or single training items (id -> index of its class); never both."""

    classes: frozenset[int] = frozenset()
    samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def pointer(self) -> str:
        return SAMPLES_POINTER if self.samples else POINTER

    @property
    def gone(self) -> Gone:
        """What will be forgotten when the wish has come true."""
        return Gone(self.classes, frozenset(self.samples))


@dataclass(frozen=True)
class Gone:
    """What will be forgotten anyway: by the current version, or by a pending request."""

    classes: frozenset[int] = frozenset()
    samples: frozenset[str] = frozenset()

    @classmethod
    def together(cls, parts: Iterable[Gone]) -> Gone:
        """All of it, each once."""
        parts = list(parts)
        return cls(frozenset().union(*(p.classes for p in parts)), frozenset().union(*(p.samples for p in parts)))

    def covers(self, wish: Wish) -> bool:
        """True when nothing of the wish would be left to do. A class covers its items."""
        return self.classes >= wish.classes and all(self._holds(*item) for item in wish.samples.items())

    def overlaps(self, wish: Wish) -> bool:
        """True when some of the wish is in it.

        A class whose single items are in it is not: forgetting the rest of the class is a wish of its own.
        """
        return bool(self.classes & wish.classes) or any(self._holds(*item) for item in wish.samples.items())

    def _holds(self, sample: str, class_index: int) -> bool:
        return sample in self.samples or class_index in self.classes


def resolve_classes(wanted: Collection[int | str], class_names: Sequence[str], pointer: str = POINTER) -> list[int]:
    """The class indices meant, ascending, each once: "3", 3 and the name of class 3 are one class.

    A name wins over an index written as text, so a model whose classes are called "1" and "0" is asked for by name.

    Args:
        pointer: where in the body they were asked for.

    Raises:
        UnknownClass: names the known ones.
    """
    named = any(isinstance(item, str) for item in wanted)
    index_of = {name: k for k, name in enumerate(class_names)} if named else {}
    return sorted({_resolve(item, index_of, class_names, pointer) for item in wanted})


def _resolve(item: int | str, index_of: dict[str, int], class_names: Sequence[str], pointer: str) -> int:
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
            pointer=pointer,
            known_classes=list(class_names[:MOST_NAMED]),
        )
    return index


def resolve_samples(wanted: Iterable[str], class_of: Mapping[str, int], held_out: Collection[str]) -> dict[str, int]:
    """The items meant, each once, with their classes.

    Args:
        class_of: the class index of every item that may have been trained on.
        held_out: ids of the other items.

    Raises:
        UnknownSample, HeldOutSample: how many of the ids are that, and how many are not; never which.
    """
    ids = dict.fromkeys(wanted)
    apart = sum(name in held_out for name in ids)
    unknown = sum(name not in class_of for name in ids) - apart
    counts = {"unknown": unknown, "held_out": apart, "known": len(ids) - unknown - apart}
    said = f"{len(ids)} ids: {counts['known']} known, {unknown} unknown, {apart} held out"
    if unknown:
        raise UnknownSample(said, pointer=SAMPLES_POINTER, **counts)
    if apart:
        raise HeldOutSample(said, pointer=SAMPLES_POINTER, **counts)
    return {name: class_of[name] for name in ids}


def require_samples_forgettable(
    wish: Wish, *, forgotten: Gone, pending: Collection[Gone], class_of: Mapping[str, int], class_names: Sequence[str]
) -> None:
    """Refuse items that are gone already, and a wish that would leave a retained class without an item to learn from.

    Args:
        forgotten: by the model's current version.
        pending: asked for by requests that have not ended.
        class_of: the class index of every item that the root may have been trained on.

    Raises:
        AlreadyForgotten, EmptiedClass.
    """
    gone = sum(k in forgotten.classes or name in forgotten.samples for name, k in wish.samples.items())
    if gone:
        said = f"{gone} of {len(wish.samples)} samples are already forgotten by the current version"
        raise AlreadyForgotten(said, pointer=SAMPLES_POINTER)
    lost = frozenset(wish.samples).union(forgotten.samples, *(p.samples for p in pending))
    left = Counter(class_of.values())
    left.subtract(class_of[name] for name in lost if name in class_of)
    whole = forgotten.classes.union(*(p.classes for p in pending))
    empty = sorted(k for k in set(wish.samples.values()) - whole if left[k] <= 0)
    if empty:
        names = ", ".join(class_names[k] for k in empty[:20])
        said = f"with what is forgotten or pending, no training item would be left of {names}; ask for the class instead"
        raise EmptiedClass(said, pointer=SAMPLES_POINTER)


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
