"""Files, their digests, and how to write one so that a reader sees all of it or nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from worker.contract import Document, FileEntry, tree_digest
from worker.engine.errors import Integrity


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Raises: OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entries(directory: Path) -> tuple[FileEntry, ...]:
    """Every regular file below `directory` in path order. Raises: Integrity for a link inside it or a missing folder."""
    if not directory.is_dir():
        raise Integrity(f"expected a folder {directory.name}/ in the job directory, found none")
    found = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise Integrity(f"expected regular files in {directory.name}/, found the link {path.name!r}")
        if path.is_file():
            name = path.relative_to(directory).as_posix()
            found.append(FileEntry(path=name, size=path.stat().st_size, sha256=sha256_of(path)))
    return tuple(sorted(found, key=lambda f: f.path))


def require_digest(directory: Path, expected: str, what: str) -> tuple[FileEntry, ...]:
    """The files of `directory`, proved to be the registered ones.

    Args:
        directory: folder in the job directory.
        expected: `tree_digest` of its files at registration.
        what: the domain's word for it in the message, such as "the base weights".

    Raises:
        Integrity: a byte, a name or a file differs.
    """
    files = entries(directory)
    came = tree_digest(files)
    if came != expected:
        raise Integrity(f"the digest of {what} changed since registration: expected {expected}, found {came}")
    return files


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: `path` holds the old bytes or the new ones, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def write_document(path: Path, document: Document) -> None:
    """A document as indented JSON, written atomically."""
    write_atomically(path, document.model_dump_json(indent=2).encode() + b"\n")


def sync_directory(directory: Path) -> None:
    """Make a rename inside `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
