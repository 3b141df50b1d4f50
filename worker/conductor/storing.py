"""Into the store, from a run: claimed first, so that nobody takes it for garbage, and with patience while it restarts."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from service import garbage
from service.files import FileEntry
from service.requests.endings import Problem
from service.storage import Corrupt, Missing, Store, StoreError, StoreRefused, StoreUnavailable
from worker.conductor.heart import Heart
from worker.conductor.outcomes import problem

log = logging.getLogger("expunge.conductor")

PATIENCE_SECONDS = 60.0
"""A store that restarts is back sooner; after that the attempt is given up, and its step checkpoints save the next one."""
PAUSE_SECONDS = 1.0
CODES: dict[type[StoreError], str] = {
    StoreUnavailable: "store_unavailable",
    StoreRefused: "store_refused",
    Corrupt: "store_corrupt",
    Missing: "store_corrupt",
}


def keep(store: Store, heart: Heart, paths: Sequence[Path], patience_seconds: float) -> list[FileEntry]:
    """Put files into the store, under their digests: visible to nobody yet.

    Returns:
        What the store holds now, in the order of `paths`.

    Raises:
        LeaseLost, Cancelled, Drained: between two files or two tries.
        StoreError: the store is full, refuses, or was away for longer than the patience lasts.
    """
    digests = [_digest(path) for path in paths]
    heart.write(lambda session: garbage.claim(session, heart.lease, digests))
    kept = []
    for path in paths:
        heart.check()
        kept.append(_put(store, heart, path, patience_seconds))
    return kept


def _put(store: Store, heart: Heart, path: Path, patience_seconds: float) -> FileEntry:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return store.put(path)
        except StoreUnavailable as absence:
            log.warning("store.away", extra={"request": heart.lease.request_id, "why": str(absence)})
            if time.monotonic() > deadline:
                raise
        heart.check()
        time.sleep(PAUSE_SECONDS)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem_of(error: StoreError) -> Problem:
    """What a request is told when the store ended its attempt."""
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "store_unavailable")
    return problem(code, f"the store: {error}")
