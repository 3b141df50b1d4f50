"""The single items of a registered dataset: which there are, which class each is of, and which are held out.

They are not in the database: an image folder's are its registered files, an npz names them itself. What is read here decides
only whether a wish makes sense; the worker hashes every file again before it believes one.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sqlalchemy.orm import Session as OrmSession

from service import files, npz, sources
from service.datasets import repository
from service.errors import BadLocation, Unprocessable

REMEMBERED = 4
"""Datasets whose items a process keeps in mind; those of one may take tens of megabytes."""


@dataclass(frozen=True)
class Source:
    """Where a dataset's items are named, taken out of its row so that no transaction waits while they are read."""

    format: str
    location: str
    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    held_out_ids: frozenset[str]
    sha256s: tuple[str, ...] = ()
    """Of the files, as `paths`; none before they are hashed."""


@dataclass(frozen=True)
class Items:
    """The items that a model may have been trained on, and those that it was not, each with the index of its class."""

    class_of: Mapping[str, int]
    held_out: Mapping[str, int]

    @cached_property
    def held_out_counts(self) -> Mapping[int, int]:
        """How many held-out items a class has."""
        return Counter(self.held_out.values())


def source(session: OrmSession, dataset_id: str) -> Source:
    """What is needed to read a dataset's items. Raises: DatasetNotFound."""
    row = repository.get(session, dataset_id)
    return Source(
        format=row.format,
        location=row.location,
        paths=tuple(f["path"] for f in row.files),
        class_names=tuple(row.class_names),
        held_out_ids=frozenset(row.held_out_ids),
        sha256s=tuple(f["sha256"] for f in row.files),
    )


def read(where: Source) -> Items:
    """Every item by its id: the path below the folder, or what the npz calls it (its position, where it has no names).

    Raises:
        BadLocation: the npz is no longer there, or its labels are not the model's classes.
    """
    rows = _rows(where, pointer="/model_id")
    class_of: dict[str, int] = {}
    held_out: dict[str, int] = {}
    for name, index, apart in rows:
        (held_out if apart or name in where.held_out_ids else class_of)[name] = index
    return Items(class_of, held_out)


def recall(where: Source) -> Items:
    """The same from memory, as long as no file was written that it follows from; every request asks it.

    Raises:
        BadLocation: see `read`.
    """
    if where.format != "npz":  # what names the items is in the row, which never changes
        return _recalled(where, ())
    try:
        seen = files.stamp(where.location, where.paths[0])
    except OSError as error:
        raise BadLocation("the dataset's .npz file cannot be read", pointer="/model_id") from error
    return read(where) if seen is None else _recalled(where, seen)


@lru_cache(maxsize=REMEMBERED)
def _recalled(where: Source, _seen: tuple[int, ...]) -> Items:
    return read(where)


def classes_within(where: Source, other: Source) -> frozenset[int]:
    """Classes of which another dataset holds a file, byte for byte and under whatever name. Of one npz: all its classes."""
    theirs = set(other.sha256s)
    if where.format == "npz":
        return frozenset(range(len(where.class_names))) if theirs.intersection(where.sha256s) else frozenset()
    index_of = {name: k for k, name in enumerate(where.class_names)}
    pairs = zip(where.paths, where.sha256s, strict=True)
    return frozenset(index_of[path.split("/")[-2]] for path, sha256 in pairs if sha256 in theirs)


def require_usable(where: Source) -> None:
    """Refuse at registration what no worker could work on.

    Raises:
        BadLocation: an id occurs twice, a label is no class, or a class has no image to train on.
        Unprocessable: a held-out id is none of the dataset's.
    """
    rows = list(_rows(where, pointer="/location"))
    names = {name for name, _, _ in rows}
    if len(names) != len(rows):
        raise BadLocation(f"expected ids that differ, {len(rows) - len(names)} are repeated", pointer="/location")
    unknown = len(where.held_out_ids - names)
    if unknown:
        said = f"{unknown} of {len(where.held_out_ids)} held-out ids are none of the dataset's"
        raise Unprocessable(said, pointer="/held_out_ids")
    trained = {k for name, k, apart in rows if not apart and name not in where.held_out_ids}
    empty = sorted(set(range(len(where.class_names))) - trained)
    if empty:
        which = ", ".join(map(str, empty[:20])) + (", …" if len(empty) > 20 else "")
        raise BadLocation(f"expected a training image of every class, found none of class {which}", pointer="/location")


Row = tuple[str, int, bool]
"""Id, class index, and whether it lies apart from the training items."""


def _rows(where: Source, pointer: str) -> Iterable[Row]:
    return _of_npz(where, pointer) if where.format == "npz" else _of_folder(where.paths, where.class_names)


def _of_folder(paths: Sequence[str], class_names: Sequence[str]) -> Iterable[Row]:
    """`<class>/<image>`, or `train|test/<class>/<image>` where `test/` is held out; registration saw to the form."""
    index_of = {name: k for k, name in enumerate(class_names)}
    for path in paths:
        parts = path.split("/")
        yield path, index_of[parts[-2]], len(parts) == 3 and parts[0] == "test"


def _of_npz(where: Source, pointer: str) -> Iterable[Row]:
    (path,) = where.paths
    try:
        with files.open_file(where.location, path, sources.configured()) as stream, zipfile.ZipFile(stream) as archive:
            labels, ids = npz.column(archive, "labels"), npz.column(archive, "ids")
    except (OSError, zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise BadLocation("the dataset's .npz file cannot be read", pointer=pointer) from error
    known = [k for k in labels or () if isinstance(k, int) and 0 <= k < len(where.class_names)]
    if labels is None or len(known) != len(labels):
        raise BadLocation(f"expected labels 0 to {len(where.class_names) - 1} in the dataset's .npz file", pointer=pointer)
    names = range(len(known)) if ids is None else ids
    if len(names) != len(known):
        raise BadLocation("expected one id for each label in the dataset's .npz file", pointer=pointer)
    return [(str(name), label, False) for name, label in zip(names, known, strict=True)]
