"""The files of a registered location: listed, judged by name and content, and hashed.

A location is a folder, named by an absolute path, a file:// URL or an s3:// URL (where s3fs is installed), in one of the
`service.sources`. Links that leave the folder, special files and anything that is not expected there are refused, not skipped:
what is registered is all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import fsspec

from service import sources
from service.audit.leaves import canonical
from service.errors import BadLocation
from service.sources import Sources

CHUNK = 1 << 20
HASHERS = 4
LONGEST_PATH = 512
MOST_FILES = 2_000_000
REMOTE = frozenset({"s3", "memory"})
"""fsspec protocols besides file://. memory:// lives in one process and serves tests; it is never a configured source."""

Opener = Callable[[], IO[bytes]]


@dataclass(frozen=True, order=True)
class FileEntry:
    """One file: path relative to its folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    def row(self) -> dict[str, Any]:
        """As the database and the API hold it."""
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Found:
    """A file of a location before it is hashed."""

    path: str
    size: int
    open: Opener

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.path)[1].lower()

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Location:
    """A folder as it is stored: its absolute path or s3:// URL, and what lies in it, in path order."""

    url: str
    files: tuple[Found, ...]

    @property
    def name(self) -> str:
        """The folder's own name, at most 200 characters."""
        return self.url.rstrip("/").rpartition("/")[2][:200] or "root"


# ------------------------------------------------------------------------------------------------------------- listing


def read_location(location: str, allowed: Sources, *, single_suffix: str | None = None) -> Location:
    """List a folder, every file of it.

    Args:
        location: absolute path, file:// or s3:// URL of a folder.
        allowed: where it may lie.
        single_suffix: the location may also be one file with this suffix; the stored location is then its folder, and the
            listing holds that file alone.

    Raises:
        SourceRefused: it lies somewhere else. Whether there is anything is then not said.
        BadLocation: missing, empty, no folder, unreadable, or with links or special files in it.
    """
    scheme = _scheme(location)
    if scheme in REMOTE:
        return _remote(location, allowed, single_suffix)
    return _local(_local_path(location, scheme), allowed, single_suffix)


def open_file(location: str, path: str, allowed: Sources) -> IO[bytes]:
    """Open one registered file for reading; where it lies is judged again.

    Raises:
        SourceRefused: no longer within the sources.
        BadLocation: a link leads out of the folder.
        OSError.
    """
    scheme = _scheme(location)
    if scheme in REMOTE:
        filesystem, root = _filesystem(location, allowed)
        opened: IO[bytes] = filesystem.open(f"{root}/{path}", "rb")  # never by a URL: `::` in a name would be a chain of them
        return opened
    return sources.open_below(allowed, os.path.realpath(_local_path(location, scheme)), path)


def _scheme(location: str) -> str:
    """Raises: BadLocation."""
    scheme = location.partition("://")[0] if "://" in location else ""
    if scheme not in REMOTE | {"", "file"}:
        raise BadLocation("expected an absolute path, a file:// or an s3:// URL", pointer="/location")
    return scheme


def stamp(location: str, path: str) -> tuple[int, ...] | None:
    """What changes whenever a local file is written or replaced; None: it lies elsewhere. Raises: OSError."""
    scheme = urlsplit(location).scheme if "://" in location else ""
    if scheme in REMOTE:
        return None
    about = (_local_path(location, scheme) / path).stat()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _local_path(location: str, scheme: str) -> Path:
    if scheme == "file":
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise BadLocation("expected file:///absolute/path", pointer="/location")
        location = unquote(parts.path)
    path = Path(location)
    if not path.is_absolute() or "\0" in location or ".." in path.parts:
        raise BadLocation("expected an absolute path, without `..`", pointer="/location")
    return path


def _local(path: Path, allowed: Sources, single_suffix: str | None) -> Location:
    allowed.require_folder(os.path.realpath(path))  # before anybody looks whether it is there
    try:
        root = path.resolve(strict=True)
        if root.is_file() and single_suffix and root.suffix.lower() == single_suffix:
            allowed.require_folder(str(root.parent))
            return _listed(str(root.parent), [_local_file(root.parent, root, allowed)])
        allowed.require_folder(str(root))
        if not root.is_dir():
            raise BadLocation("expected a folder", pointer="/location")
        return _listed(str(root), [_local_file(root, p, allowed) for p in _walk(root)])
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise BadLocation("there is no such folder, or it cannot be read", pointer="/location") from error


def _walk(root: Path) -> Iterable[Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):
                raise BadLocation("expected no linked folders inside the location", pointer="/location")
        for name in names:
            yield Path(folder, name)


def _local_file(root: Path, path: Path, allowed: Sources) -> Found:
    target = path.resolve(strict=True)
    if not target.is_relative_to(root):
        raise BadLocation("a link in the folder leads out of it", pointer="/location")
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadLocation("expected regular files only", pointer="/location")
    name = _named(path.relative_to(root).as_posix())
    return Found(name, status.st_size, lambda: sources.open_below(allowed, str(root), name))


def _filesystem(location: str, allowed: Sources) -> tuple[Any, str]:
    """The file system of a bucket's URL, and the folder in it. Raises: BadLocation."""
    scheme, root = sources.bucket_of(location)
    allowed.require_bucket(scheme, root)
    try:
        filesystem, path = fsspec.core.url_to_fs(f"{scheme}://{root}")
    except ImportError as error:
        raise BadLocation(f"{scheme}:// locations need the extra '{scheme}' to be installed", pointer="/location") from error
    return filesystem, str(path).rstrip("/")


def _remote(location: str, allowed: Sources, single_suffix: str | None) -> Location:
    filesystem, root = _filesystem(location, allowed)
    scheme = _scheme(location)

    def file(full: str, size: int) -> Found:
        if not full.startswith(f"{root}/"):
            raise BadLocation("expected a folder", pointer="/location")
        return Found(_named(full[len(root) + 1 :]), size, lambda: filesystem.open(full, "rb"))

    try:
        if single_suffix and root.lower().endswith(single_suffix) and filesystem.isfile(root):
            folder, _, name = root.rpartition("/")
            allowed.require_bucket(scheme, folder)
            alone = Found(_named(name), int(filesystem.size(root)), lambda: filesystem.open(root, "rb"))
            return _listed(_url(scheme, folder), [alone])
        listing = filesystem.find(root, detail=True)
    except (OSError, ValueError) as error:
        raise BadLocation("the location cannot be listed", pointer="/location") from error
    files = [file(full, int(info["size"])) for full, info in listing.items() if info["type"] == "file"]
    return _listed(_url(scheme, root), files)


def _url(scheme: str, root: str) -> str:
    return f"{scheme}://{root.lstrip('/')}"  # memory:// has roots of its own


def _named(path: str) -> str:
    """The relative path, when every reader of a manifest can write it. Not echoed: it may be anything."""
    plain = path.isprintable() and "\\" not in path and not any(p in ("", ".", "..") for p in path.split("/"))
    if not plain or len(path) > LONGEST_PATH:
        raise BadLocation("a file's name has control characters, a backslash or over 512 characters", pointer="/location")
    return path


def _listed(url: str, files: Sequence[Found]) -> Location:
    if not url.isprintable():
        raise BadLocation("the folder's name cannot be written down", pointer="/location")
    if not files:
        raise BadLocation("expected files, the folder is empty", pointer="/location")
    if len(files) > MOST_FILES:
        raise BadLocation(f"expected at most {MOST_FILES} files", pointer="/location")
    return Location(url, tuple(sorted(files, key=lambda f: f.path)))


# ------------------------------------------------------------------------------------------------------------- hashing


def hash_files(location: Location) -> tuple[FileEntry, ...]:
    """Read every file once and hash it; several at a time, since hashing frees the interpreter's lock.

    Raises:
        BadLocation: a file vanished or changed its size while it was read.
    """
    with ThreadPoolExecutor(max_workers=HASHERS) as pool:
        return tuple(pool.map(_hash_file, location.files))


def _hash_file(found: Found) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    try:
        with found.open() as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise BadLocation("a file of the location could not be read", pointer="/location") from error
    if size != found.size:
        raise BadLocation("a file changed while it was read", pointer="/location")
    return FileEntry(found.path, size, digest.hexdigest())


def tree_digest(files: Iterable[FileEntry]) -> str:
    """SHA-256 of the JSON list of (path, size, sha256) in path order: one name for a set of files.

    The worker computes the same over the files it staged (`worker.contract.tree_digest`); a test compares the two.
    """
    rows = sorted([f.path, f.size, f.sha256] for f in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def dataset_digest(files: Iterable[FileEntry], *, format: str, class_names: Sequence[str], held_out_ids: Iterable[str]) -> str:
    """SHA-256 of the RFC 8785 form of what a dataset is: its files, how they are read, and who is held out."""
    document = {
        "format": format,
        "files": sorted([f.path, f.size, f.sha256] for f in files),
        "class_names": list(class_names),
        "held_out_ids": sorted(held_out_ids),
    }
    return hashlib.sha256(canonical(document)).hexdigest()
