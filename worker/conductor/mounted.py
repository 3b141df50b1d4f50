"""Weights of metric networks that the operator mounts on a worker: a spec names their digest, a job has a link to them.

They are no request's and no model's, so nothing about them is registered: the certificate says by digest which were used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from service.config import Settings
from worker.conductor.outcomes import Died, problem
from worker.contract import FileEntry, tree_digest

CHUNK = 1 << 20
_known: dict[tuple[str, int, int], str] = {}
"""SHA-256 by resolved path, size and time of change (ns): gigabytes that no request changes."""


def metric_weights(settings: Settings, check: Callable[[], None]) -> str | None:
    """Digest of what is mounted; None where the setting is unset.

    Args:
        check: called between chunks; raises when the attempt must stop.

    Raises:
        Died: `worker_error`; there is no such folder, or it has a link in it. Another worker may be set up better.
    """
    if settings.metric_weights is None:
        return None
    folder = settings.metric_weights.resolve()
    if not folder.is_dir():
        raise Died(problem("worker_error", "expected a folder where EXPUNGE_METRIC_WEIGHTS points, found none"))
    try:
        return tree_digest(
            _entry(folder, path, check) for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()
        )
    except OSError as error:
        message = f"what EXPUNGE_METRIC_WEIGHTS names cannot be read: {type(error).__name__}"
        raise Died(problem("worker_error", message)) from error


def _entry(folder: Path, path: Path, check: Callable[[], None]) -> FileEntry:
    name, status = path.relative_to(folder).as_posix(), path.lstat()
    if path.is_symlink():
        message = f"expected regular files where EXPUNGE_METRIC_WEIGHTS points, found the link {name}"
        raise Died(problem("worker_error", message))
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                check()
                digest.update(chunk)
        _known[key] = digest.hexdigest()
    return FileEntry(path=name, size=status.st_size, sha256=_known[key])
