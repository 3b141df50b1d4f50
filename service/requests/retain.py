"""What the unlearner may look at to keep the rest of a model: which classes, how much of it is real, what stands in. Pure.

Real retained images may be forbidden, in part or altogether. Then others stand in, proxy data: other classes of the model's own
dataset, which are set aside (neither forgotten nor verified as retained), or another dataset.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.errors import NothingToRetain, ProxyForgotten, RetainUnfit

POINTER = "/retain"
CLASSES_POINTER = "/retain/classes"
PROXY_CLASSES_POINTER = "/retain/proxy/classes"
PROXY_DATASET_POINTER = "/retain/proxy/dataset_id"
MOST_NAMED = 20

Shape = tuple[int | None, int, int]
"""Channels, height, width. None: an image folder's, which take every file to tell."""


@dataclass(frozen=True)
class StandIn:
    """A dataset that stands in for retained images, as far as a request needs to know it."""

    id: str
    digest: str
    class_names: tuple[str, ...]
    holds: frozenset[int] = frozenset()
    """Classes of the model's own dataset of which it holds a file, by its bytes."""


@dataclass(frozen=True)
class Choice:
    """What one request chooses: classes by index, and a dataset by id. As the row holds it, and the ledger's entry."""

    real: float
    """Share of real retained images in what is trained on to be kept, 0 to 1."""
    classes: tuple[int, ...] = ()
    """Trained on to be kept; empty: every class that is neither forgotten nor proxy."""
    proxy_classes: tuple[int, ...] = ()
    proxy_dataset_id: str | None = None

    @property
    def stands_in(self) -> bool:
        """True when there are proxy data."""
        return bool(self.proxy_classes or self.proxy_dataset_id)

    def row(self) -> dict[str, Any]:
        """JSON values, for the database."""
        return {
            "real": self.real,
            "classes": list(self.classes),
            "proxy_classes": list(self.proxy_classes),
            "proxy_dataset_id": self.proxy_dataset_id,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any] | None) -> Self | None:
        """What `row` wrote down; None where the request chooses nothing."""
        if row is None:
            return None
        return cls(row["real"], tuple(row["classes"]), tuple(row["proxy_classes"]), row["proxy_dataset_id"])


def require_usable(choice: Choice, gone: Collection[int], class_names: Sequence[str], stand_in: StandIn | None) -> None:
    """Refuse what would keep, or look at, a class that is to be forgotten; real images of retained classes in the place of
    others; or what would leave no class to verify as retained.

    Args:
        gone: classes that the current version has forgotten, or this or a pending request is to forget.
        stand_in: the proxy dataset. What it shows is told by the names of its classes, whatever the case of the letters, and
            by its files where they are the model's dataset's own.

    Raises:
        ProxyForgotten, RetainUnfit, NothingToRetain.
    """
    if kept := sorted(set(choice.classes) & set(gone)):
        said = f"expected retain classes that are neither forgotten nor to be forgotten, got: {_named(kept, class_names)}"
        raise RetainUnfit(said, pointer=CLASSES_POINTER)
    if shown := sorted(set(choice.proxy_classes) & set(gone)):
        said = f"expected proxy classes that are neither forgotten nor to be forgotten, got: {_named(shown, class_names)}"
        raise ProxyForgotten(said, pointer=PROXY_CLASSES_POINTER)
    if both := sorted(set(choice.classes) & set(choice.proxy_classes)):
        said = f"expected classes that are retained or stand in for them, got as both: {_named(both, class_names)}"
        raise RetainUnfit(said, pointer=PROXY_CLASSES_POINTER)
    if stand_in is not None:
        forgotten = {_folded(class_names[k]): k for k in gone}
        if same := sorted({forgotten[name] for name in map(_folded, stand_in.class_names) if name in forgotten}):
            said = "expected a proxy dataset without classes that are forgotten or to be forgotten, it has: "
            raise ProxyForgotten(said + _named(same, class_names), pointer=PROXY_DATASET_POINTER)
        if held := sorted(stand_in.holds & set(gone)):
            said = "expected a proxy dataset without files of classes that are forgotten or to be forgotten, it has some of: "
            raise ProxyForgotten(said + _named(held, class_names), pointer=PROXY_DATASET_POINTER)
        if real := sorted(stand_in.holds - set(choice.proxy_classes)):
            said = "expected a proxy dataset without files of retained classes, which are real images of them, it has some of: "
            raise RetainUnfit(said + _named(real, class_names), pointer=PROXY_DATASET_POINTER)
    if len({*gone, *choice.proxy_classes}) >= len(class_names):
        said = "with what is forgotten, pending or set aside as proxy, no class would be left to retain"
        raise NothingToRetain(said, pointer=PROXY_CLASSES_POINTER)


def require_same_shape(proxy: Shape | None, beside: Shape | None) -> None:
    """Refuse proxy images that cannot take the places of retained ones; None is what could not be told.

    Raises:
        RetainUnfit.
    """
    if proxy is None or beside is None:
        return
    fits = proxy[1:] == beside[1:] and (proxy[0] == beside[0] or None in (proxy[0], beside[0]))
    if not fits:
        said = f"expected proxy images of the size of the model's dataset, {_size(beside)}, found {_size(proxy)}"
        raise RetainUnfit(said, pointer=PROXY_DATASET_POINTER)


def _size(shape: Shape) -> str:
    channels, height, width = shape
    colours = {1: " grey", 3: " colour"}.get(channels or 0, "")
    return f"{width}x{height}{colours}"


def _folded(name: str) -> str:
    return name.strip().casefold()


def _named(indices: Iterable[int], class_names: Sequence[str]) -> str:
    names = [class_names[k] for k in indices]
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
