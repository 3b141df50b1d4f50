"""Where models and datasets may lie: the folders and buckets that the operator names, and how a file in one is opened.

A location is text of a client, and whoever reads it does so with the service's rights: its network, its credentials, its disk.
So a path is resolved first, links and all, and judged by where it leads; a URL is judged by its text, which is therefore held
to one plain form. It is judged again whenever a file is opened. What lies in a source may change all the same: the digests that
registration recorded say so when a worker copies it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from service.config import Settings, get_settings
from service.errors import BadLocation

SETTING = "EXPUNGE_SOURCES"
BUCKET_URL = re.compile(r"(?P<scheme>s3|memory)://(?P<root>[^/]+(/[^/]+)*)/?")
DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
"""O_PATH, where there is one: folders on the way need be searchable, not readable."""
LINKED = frozenset({errno.ELOOP, errno.ENOTDIR})
"""What opening a link says under O_NOFOLLOW."""


class SourceRefused(BadLocation):
    """The location lies outside of the folders and buckets that `EXPUNGE_SOURCES` names."""

    code, title = "source_refused", "The location is outside of the configured sources"


@dataclass(frozen=True)
class Sources:
    """Folders (resolved paths) and buckets (`bucket/prefix`) that may be read from; and what is ours alone in them.

    Without `open_to_all`, a location that holds something private, or lies in it, is refused wherever the source ends.
    """

    folders: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    private_folders: tuple[str, ...] = ()
    private_buckets: tuple[str, ...] = ()
    open_to_all: bool = False
    named: bool = True
    """False: no source is configured, and the error says so."""

    def require_folder(self, path: str) -> None:
        """Judge a path that has been resolved. Raises: SourceRefused."""
        if self.open_to_all:
            return
        if not any(_holds(one, path) for one in self.folders) or _overlaps(self.private_folders, path):
            raise self._refusal()

    def require_bucket(self, scheme: str, root: str) -> None:
        """Judge `bucket/prefix`. Raises: SourceRefused."""
        if self.open_to_all:
            return
        if scheme != "s3" or not any(_holds(one, root) for one in self.buckets) or _overlaps(self.private_buckets, root):
            raise self._refusal()

    def _refusal(self) -> SourceRefused:
        if self.named:
            return SourceRefused(f"expected a location within the sources that {SETTING} names", pointer="/location")
        detail = f"{SETTING} names no folder or bucket, so nothing outside of the data directory may be read"
        return SourceRefused(detail, pointer="/location")

    def anchor(self, path: str) -> str:
        """The source that holds a resolved path: from here down no link is followed. Without sources, the path itself."""
        return next((one for one in self.folders if _holds(one, path)), path)


EVERYTHING = Sources(open_to_all=True)
"""For who reads with their own rights: the command line, on the user's own host."""


def of(settings: Settings) -> Sources:
    """What these settings allow.

    Named sources hold for everybody. Where none are named, the one local user may name anything on their own disk, and callers
    with keys nothing but what lies in the data directory.
    """
    if not settings.sources and settings.auth == "local":
        return EVERYTHING
    store = urlsplit(settings.store)
    ours = [
        settings.jobs_dir, settings.judges_dir, settings.fishers_dir, settings.kek_folder, settings.key_file.parent,
        settings.log_folder, settings.data_dir / "expunge.db",
    ]  # fmt: skip
    if store.scheme == "file":
        ours.append(Path(unquote(store.path)))
    urls = [urlsplit(one) for one in settings.sources if not one.startswith("/")]
    folders = [one for one in settings.sources if one.startswith("/")]
    folders += [unquote(url.path) for url in urls if url.scheme == "file"]
    if not settings.sources:
        folders = [str(settings.data_dir)]
    return Sources(
        folders=tuple(map(os.path.realpath, folders)),
        buckets=tuple(f"{url.netloc}{url.path}".rstrip("/") for url in urls if url.scheme == "s3"),
        private_folders=tuple(map(os.path.realpath, ours)),
        private_buckets=(f"{store.netloc}{store.path}".rstrip("/"),) if store.scheme == "s3" else (),
        named=bool(settings.sources),
    )


def configured() -> Sources:
    """What this process's settings allow."""
    return of(get_settings())


def bucket_of(location: str) -> tuple[str, str]:
    """Scheme and `bucket/prefix` of a URL in its one plain form.

    Raises:
        BadLocation: no such URL, or one that fsspec reads as more than a place: chained (`::`), with a query, or with `..`.
    """
    found = BUCKET_URL.fullmatch(location)
    if found is None or "::" in location or {"?", "#", "\\"} & set(location) or not location.isprintable():
        raise BadLocation("expected s3://bucket/folder, without query, chain or empty parts", pointer="/location")
    if {".", ".."} & set(found["root"].split("/")):
        raise BadLocation("expected a location without `.` and `..`", pointer="/location")
    return found["scheme"], found["root"]


def open_below(sources: Sources, root: str, path: str) -> IO[bytes]:
    """Open a regular file below a folder that was resolved, following no link that leads out of the folder.

    The path is resolved, judged, and then walked part by part without following any link: what is swapped for one in between is
    not opened.

    Raises:
        SourceRefused: the folder lies in no source.
        BadLocation: a link leads out of the folder, or came while the file was opened; or it is no regular file.
        OSError: there is no such file, or it cannot be read.
    """
    sources.require_folder(root)
    target = os.path.realpath(os.path.join(root, path), strict=True)
    if target == root or not _holds(root, target):
        raise BadLocation("a link in the folder leads out of it", pointer="/location")
    anchor = sources.anchor(root)
    try:
        stream = os.fdopen(_walk(anchor, os.path.relpath(target, anchor).split(os.sep)), "rb")
    except OSError as error:
        if error.errno in LINKED:
            raise BadLocation("a link came in the place of a file while it was opened", pointer="/location") from error
        raise
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise BadLocation("expected regular files only", pointer="/location")
    return stream


def _walk(anchor: str, parts: list[str]) -> int:
    """A descriptor of the file. Not blocking: a pipe that came in its place would be waited for."""
    folder = os.open(anchor, DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(parts[-1], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _holds(folder: str, path: str) -> bool:
    """True when a path is the folder or lies below it, by whole parts."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _overlaps(others: Iterable[str], path: str) -> bool:
    return any(_holds(one, path) or _holds(path, one) for one in others)
