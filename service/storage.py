"""The content-addressed store: bytes under their SHA-256, on any fsspec file system (file://, s3://, memory:// in tests).

A file is written under a temporary name, read back, compared, and only then moved to its digest: what has a name in the store
is whole. Putting the same bytes twice, or twice at once, ends in the same one object. The store knows no requests and no
permissions; rows decide who sees what.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.config import Settings, get_settings
from service.files import CHUNK, FileEntry

DIGEST = re.compile(r"[0-9a-f]{64}")


class StoreError(Exception):
    """The store cannot do what was asked."""


class Missing(StoreError):
    """No object has this digest."""


class Corrupt(StoreError):
    """An object's bytes do not hash to its name."""


class Store:
    """Objects by digest. `url` is an fsspec URL of a folder that the store owns."""

    def __init__(self, url: str) -> None:
        if url.startswith("file://"):  # fsspec takes such a path as it stands, escapes and all
            url = unquote(urlsplit(url).path)
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    def put(self, path: Path) -> FileEntry:
        """Keep a file's bytes. Idempotent; an object that has rotted is replaced.

        Returns:
            Its size and digest; `path` is the file's name alone.

        Raises:
            Corrupt: the bytes read back are not the bytes written, or the file changed meanwhile.
            OSError: the file cannot be read or the store cannot be written.
        """
        with path.open("rb") as source:
            digest, size = _hash(source)
        key = self._key(digest)
        entry = FileEntry(path.name, size, digest)
        if self.exists(digest) and self._holds(key, digest):
            return entry
        temporary = f"{self._root}/incoming/{uuid.uuid4().hex}"
        self._files.makedirs(f"{self._root}/incoming", exist_ok=True)
        self._files.makedirs(key.rpartition("/")[0], exist_ok=True)
        try:
            self._write(path, temporary)
            if not self._holds(temporary, digest):
                raise Corrupt("what was read back is not what was written")
            self._move(temporary, key)
        finally:
            if self._files.exists(temporary):
                self._files.rm_file(temporary)
        return entry

    def open(self, digest: str) -> IO[bytes]:
        """The object's bytes, seekable. Raises: Missing."""
        try:
            stream: IO[bytes] = self._files.open(self._key(digest), "rb")
        except FileNotFoundError as error:
            raise Missing(digest) from error
        return stream

    def size(self, digest: str) -> int:
        """Bytes of the object. Raises: Missing."""
        try:
            return int(self._files.size(self._key(digest)))
        except FileNotFoundError as error:
            raise Missing(digest) from error

    def exists(self, digest: str) -> bool:
        """True when an object has this name; its bytes are not read."""
        return bool(self._files.exists(self._key(digest)))

    def _key(self, digest: str) -> str:
        if DIGEST.fullmatch(digest) is None:
            raise Missing("expected a SHA-256 in lower-case hex")
        return f"{self._root}/sha256/{digest[:2]}/{digest}"

    def _holds(self, key: str, digest: str) -> bool:
        self._files.invalidate_cache()  # remote file systems remember listings
        with self._files.open(key, "rb") as stream:
            return _hash(stream)[0] == digest

    def _write(self, path: Path, key: str) -> None:
        with path.open("rb") as source, self._open_new(key) as target:
            shutil.copyfileobj(source, target, CHUNK)
            if self._is_local:
                target.flush()
                os.fsync(target.fileno())

    def _open_new(self, key: str) -> Any:
        return open(key, "wb") if self._is_local else self._files.open(key, "wb")

    def _move(self, temporary: str, key: str) -> None:
        if not self._is_local:
            self._files.mv(temporary, key)
            return
        os.replace(temporary, key)
        folder = os.open(os.path.dirname(key), os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


def _hash(source: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


@lru_cache(maxsize=4)
def _store(url: str) -> Store:
    return Store(url)


def get_store(settings: Settings | None = None) -> Store:
    """The store that the settings name."""
    return _store((settings or get_settings()).store)
