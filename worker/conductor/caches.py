"""What one run computed and the next can use again: judges and Fisher information, in folders named by a cache key.

The engine picks by key and believes nothing that it has not checked against the digests beside it, so a cache may lack what
it likes: nothing here ends an attempt. Files are linked, not copied, where the file system can; nobody writes to one in place.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from service.config import Settings
from worker.contract import JobDirectory

log = logging.getLogger("expunge.caches")

MOST_JUDGES = 32
JUDGES_MB = 1024
MOST_FISHERS = 256
UNFINISHED_SECONDS = 3600.0


@dataclass(frozen=True)
class Cache:
    """A folder of cached folders, and how much of it is kept: the newest within both limits."""

    folder: Path
    most: int
    most_bytes: int

    def bring(self, into: Path) -> None:
        """Lay the cached folders into one of the job's."""
        into.mkdir()
        for entry in self._sorted()[0]:
            self._link(entry, into / entry.name)

    def keep(self, made: Path) -> None:
        """Keep what a run left there for the next one, and let go of the oldest beyond the limits.

        What the run was brought and made again replaces what it was brought: the engine found that damaged.
        """
        if not made.is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in _entries(made):
            kept = self.folder / entry.name
            if is_plain(entry) and size_of(entry) <= self.most_bytes and _marks(entry) != _marks(kept):
                shutil.rmtree(kept, ignore_errors=True)
                self._link(entry, kept)
        for entry in (*self._sorted()[1], *_unfinished(self.folder)):
            shutil.rmtree(entry, ignore_errors=True)  # another worker may be at it; what is left is found next time

    def _sorted(self) -> tuple[list[Path], list[Path]]:
        """What is within the limits, newest first; and what is beyond them."""
        within: list[Path] = []
        beyond: list[Path] = []
        left = self.most_bytes
        for entry in sorted(_entries(self.folder), key=_changed_at, reverse=True):
            left -= size_of(entry)
            (within if left >= 0 and len(within) < self.most else beyond).append(entry)
        return within, beyond

    def _link(self, source: Path, target: Path) -> None:
        """One folder under its name once it is whole; without it when it vanishes meanwhile or the disk is full."""
        part = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.copytree(source, part, copy_function=_link_or_copy)
            os.utime(part)
            part.rename(target)
        except OSError as error:  # another worker kept it first, or let it go
            log.info("cache.skipped", extra={"cache": self.folder.name, "key": source.name, "kind": type(error).__name__})
            shutil.rmtree(part, ignore_errors=True)


def judges(settings: Settings) -> Cache:
    """Trained judges: small, one a dataset and policy."""
    return Cache(settings.judges_dir, MOST_JUDGES, JUDGES_MB << 20)


def fishers(settings: Settings) -> Cache:
    """Fisher information: as large as the model it is of."""
    return Cache(settings.fishers_dir, MOST_FISHERS, settings.fisher_cache_mb << 20)


def weights_of_fishers(settings: Settings) -> set[str]:
    """Of which weights (tree digests) there is information."""
    known = {_weights_of(entry) for entry in _entries(settings.fishers_dir)}
    return {weights for weights in known if weights is not None}


def fishers_of(settings: Settings, weights: str) -> list[Path]:
    """The folders of what was computed for these weights (a version's tree digest).

    One whose record does not say what it is of is among them: nobody can know what it was computed from.
    """
    return [entry for entry in _entries(settings.fishers_dir) if _weights_of(entry) in (None, weights)]


def _weights_of(entry: Path) -> str | None:
    try:
        known = json.loads((entry / "fisher.json").read_bytes()).get("weights")
    except (OSError, ValueError, AttributeError):
        return None
    return known if isinstance(known, str) else None


def bring_all(job: JobDirectory, settings: Settings) -> None:
    """Into a fresh job directory whatever earlier runs left."""
    judges(settings).bring(job.judges)
    fishers(settings).bring(job.fishers)


def is_plain(folder: Path) -> bool:
    """True when a folder holds regular files and folders only. A link in it would be followed by the next run."""
    try:
        kinds = [path.lstat().st_mode for path in folder.rglob("*")]
    except OSError:
        return False
    return not folder.is_symlink() and all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in kinds)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; what vanishes meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _marks(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change (ns) of each file: the same for a file and its links and copies, as we make them."""
    try:
        files = {p.relative_to(folder).as_posix(): p.lstat() for p in folder.rglob("*") if p.is_file()}
    except OSError:  # another worker is letting it go
        return {}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in files.items()}


def _entries(folder: Path) -> list[Path]:
    """The folders that have a name of their own: a dot means that somebody is still writing."""
    return [p for p in _folders(folder) if not p.name.startswith(".")]


def _unfinished(folder: Path) -> list[Path]:
    """What a worker that died left half written."""
    return [p for p in _folders(folder) if p.name.startswith(".") and time.time() - _changed_at(p) > UNFINISHED_SECONDS]


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()] if folder.is_dir() else []


def _changed_at(entry: Path) -> float:
    """Seconds since the epoch; 0 for what has vanished."""
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target, follow_symlinks=False)
