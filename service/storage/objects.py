"""What a store is built on: whole objects under relative keys. Folders and buckets do it; one test suite holds for both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol


@dataclass(frozen=True)
class Object:
    """An object as a listing shows it."""

    key: str
    size: int
    """Bytes."""
    modified: datetime
    """When it was written or touched last, aware, by the store's clock."""
    tag: str = ""
    """The store's own mark of this content, where it has one."""


class Objects(Protocol):
    """Objects under keys such as `sha256/ab/ab…`. All raise StoreUnavailable and StoreRefused; those that read, Missing."""

    def write(self, path: Path, key: str) -> None:
        """Store a file's bytes under a key that nobody reads yet, in bounded memory; durable on return."""

    def create(self, key: str, data: bytes) -> bool:
        """Store a few bytes unless there is such an object. False: there is one, and it is untouched."""

    def open(self, key: str) -> IO[bytes]:
        """The object's bytes, seekable."""

    def stat(self, key: str) -> Object:
        """What a listing shows of one object."""

    def move(self, written: Object, key: str) -> None:
        """Give an object its final key, in one step for every reader; what had that key is replaced."""

    def touch(self, key: str) -> None:
        """Make the object young again."""

    def delete(self, key: str) -> None:
        """Remove it; one that is not there is removed. Gives up after seconds: it is called under a lock."""

    def list(self, prefix: str) -> Iterator[Object]:
        """Every object whose key begins with a folder's name and a slash, as they are met."""

    def abort_unfinished(self, before: datetime, *, dry_run: bool) -> int:
        """Throw away uploads in parts that were begun before a time and never completed. Returns how many there were."""

    def link(self, key: str, *, seconds: int, name: str, media_type: str) -> str | None:
        """A URL that anybody may read this one object at for so long; None where a store has no such thing."""
