"""The content-addressed store: bytes under their SHA-256, in a folder (file://) or in a bucket (s3://).

A file is written under a temporary name, read back, compared, and only then moved to its digest: what has a name in the store
is whole. Putting the same bytes twice, or twice at once, ends in the same one object. The store knows no requests and no
permissions; rows decide who sees what, and `service.garbage` deletes what no row names.

    incoming/<random>        being written
    sha256/ab/ab…            objects
    deployments/<digest>     whose rows name objects here: one empty object each
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from service import failpoints
from service.config import Settings, get_settings
from service.files import CHUNK, FileEntry
from service.storage.errors import Corrupt, Missing, StoreError, StoreRefused, StoreUnavailable, named
from service.storage.local import LocalObjects
from service.storage.objects import Object, Objects

__all__ = ["Corrupt", "Missing", "Store", "StoreError", "StoreRefused", "StoreUnavailable", "get_store"]

DIGEST = re.compile(r"[0-9a-f]{64}")
INCOMING, OBJECTS, DEPLOYMENTS = "incoming/", "sha256/", "deployments/"


class Store:
    """Objects by digest.

    Args:
        url: file:// URL of a folder, or s3://bucket/prefix, that the store owns.
        endpoint_url: of an S3-compatible store that is not Amazon's.

    Raises:
        StoreRefused: nothing is known of such a URL, or what it needs is not installed.
    """

    def __init__(self, url: str, *, endpoint_url: str = "") -> None:
        self._objects = _objects(url, endpoint_url)

    def put(self, path: Path) -> FileEntry:
        """Keep a file's bytes. Idempotent; an object that has rotted is replaced, one that is there is made young again.

        Returns:
            Its size and digest; `path` is the file's name alone.

        Raises:
            Corrupt: the bytes read back are not the bytes written, or the file changed meanwhile.
            StoreUnavailable, StoreRefused: nothing has a name that had none before.
            OSError: the file cannot be read.
        """
        with path.open("rb") as source:
            digest, size = _hash(source)
        if not self._kept(digest):
            self._write(path, digest, size)
        return FileEntry(path.name, size, digest)

    def _kept(self, digest: str) -> bool:
        """True when the object is there, whole, and young: garbage collection judges by age."""
        key = self._key(digest)
        try:
            if self._hash_of(key)[0] != digest:
                return False
            self._objects.touch(key)
        except Missing:
            return False
        return True

    def _write(self, path: Path, digest: str, size: int) -> None:
        temporary = f"{INCOMING}{uuid.uuid4().hex}"
        try:
            with named("writing"):
                failpoints.hit("store.write")
            self._objects.write(path, temporary)
            written = self._objects.stat(temporary)
            if written.size != size or self._hash_of(temporary) != (digest, size):
                raise Corrupt("what was read back is not what was written")
            with named("publishing"):
                failpoints.hit("store.publish")
            self._objects.move(written, self._key(digest))
        except BaseException:
            self._discard(temporary)
            raise

    def _discard(self, temporary: str) -> None:
        try:
            self._objects.delete(temporary)
        except StoreError:
            return  # the error that led here says more; what is left is garbage by name, and collected

    def open(self, digest: str) -> IO[bytes]:
        """The object's bytes, seekable. Raises: Missing, StoreUnavailable, StoreRefused."""
        with named("reading"):
            failpoints.hit("store.read")
        return self._objects.open(self._key(digest))

    def stat(self, digest: str) -> Object:
        """Size and age of the object. Raises: Missing, StoreUnavailable, StoreRefused."""
        return self._objects.stat(self._key(digest))

    def size(self, digest: str) -> int:
        """Bytes of the object. Raises: as `stat`."""
        return self.stat(digest).size

    def exists(self, digest: str) -> bool:
        """True when an object has this name; its bytes are not read. Raises: StoreUnavailable, StoreRefused."""
        try:
            self.stat(digest)
        except Missing:
            return False
        return True

    def link(self, digest: str, *, seconds: int, name: str, media_type: str) -> str | None:
        """A URL at which this one object can be read without us, for so long; None where a store has no such thing."""
        return self._objects.link(self._key(digest), seconds=seconds, name=name, media_type=media_type)

    # -------------------------------------------------------------------------------------------- for garbage collection

    def objects(self) -> Iterator[tuple[str, Object]]:
        """Every object with its digest; what lies among them under another name is left out."""
        for found in self._objects.list(OBJECTS):
            digest = found.key.rpartition("/")[2]
            if DIGEST.fullmatch(digest) and found.key == self._key(digest):
                yield digest, found

    def delete(self, digest: str) -> None:
        """Remove an object. Only for who holds the lock of `service.garbage`. Raises: StoreUnavailable, StoreRefused."""
        with named("deleting"):
            failpoints.hit("store.delete")
        self._objects.delete(self._key(digest))

    def temporaries(self, before: datetime) -> Iterator[Object]:
        """What was being written before a time, and still has no name."""
        return (found for found in self._objects.list(INCOMING) if found.modified < before)

    def delete_temporary(self, found: Object) -> None:
        """Remove what never got a name. Raises: StoreUnavailable, StoreRefused."""
        if not found.key.startswith(INCOMING):
            raise ValueError("expected an object that is being written")
        self._objects.delete(found.key)

    def abort_unfinished(self, before: datetime, *, dry_run: bool = False) -> int:
        """Throw away uploads in parts that were begun before a time. Returns how many there were."""
        return self._objects.abort_unfinished(before, dry_run=dry_run)

    def sign_in(self, deployment: str) -> None:
        """Say that a deployment's rows name objects here."""
        self._objects.create(f"{DEPLOYMENTS}{deployment}", b"")

    def deployments(self) -> set[str]:
        """Those that have said so."""
        return {found.key.removeprefix(DEPLOYMENTS) for found in self._objects.list(DEPLOYMENTS)}

    # ------------------------------------------------------------------------------------------------------------- inside

    def _key(self, digest: str) -> str:
        if DIGEST.fullmatch(digest) is None:
            raise Missing("expected a SHA-256 in lower-case hex")
        return f"{OBJECTS}{digest[:2]}/{digest}"

    def _hash_of(self, key: str) -> tuple[str, int]:
        with self._objects.open(key) as stream, named("reading"):
            return _hash(stream)


def _hash(source: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _objects(url: str, endpoint_url: str) -> Objects:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalObjects(Path(unquote(parts.path)))
    if parts.scheme != "s3" or not parts.netloc:
        raise StoreRefused("expected a store at file:///folder or s3://bucket/prefix")
    try:
        from service.storage.s3 import S3Objects
    except ImportError as error:
        raise StoreRefused("a store at s3:// needs the extra 's3' to be installed") from error
    return S3Objects(parts.netloc, parts.path, endpoint_url)


@lru_cache(maxsize=4)
def _store(url: str, endpoint_url: str) -> Store:
    return Store(url, endpoint_url=endpoint_url)


def get_store(settings: Settings | None = None) -> Store:
    """The store that the settings name."""
    wanted = settings or get_settings()
    return _store(wanted.store, wanted.store_endpoint_url)
