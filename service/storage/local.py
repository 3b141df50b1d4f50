"""Objects in a folder: temporary name, fsync, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from service import durable
from service.files import CHUNK
from service.storage.errors import named
from service.storage.objects import Object


class LocalObjects:
    """One folder, that nothing else writes to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: Path, key: str) -> None:
        target = self._root / key
        with named("writing"):
            target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, named("writing"), target.open("xb") as copy:
            shutil.copyfileobj(source, copy, CHUNK)
            copy.flush()
            os.fsync(copy.fileno())

    def create(self, key: str, data: bytes) -> bool:
        with named("writing"):
            return durable.create(self._root / key, data)

    def open(self, key: str) -> IO[bytes]:
        with named("reading"):
            return (self._root / key).open("rb")

    def stat(self, key: str) -> Object:
        with named("reading"):
            return self._object(self._root / key)

    def move(self, written: Object, key: str) -> None:
        target = self._root / key
        with named("publishing"):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._root / written.key, target)
            durable.sync_folder(target.parent)  # the rename itself must survive a power cut

    def touch(self, key: str) -> None:
        with named("touching"):
            os.utime(self._root / key)

    def delete(self, key: str) -> None:
        with named("deleting"):
            (self._root / key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[Object]:
        with named("listing"):
            for folder, _, files in os.walk(self._root / prefix.rstrip("/")):
                for name in files:
                    try:
                        found = self._object(Path(folder, name))
                    except FileNotFoundError:  # it was moved or deleted since
                        continue
                    yield found

    def abort_unfinished(self, before: datetime, *, dry_run: bool) -> int:
        return 0  # a file that is being written is an object like any other

    def link(self, key: str, *, seconds: int, name: str, media_type: str) -> str | None:
        return None

    def _object(self, path: Path) -> Object:
        status = path.stat()
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return Object(path.relative_to(self._root).as_posix(), status.st_size, modified)
