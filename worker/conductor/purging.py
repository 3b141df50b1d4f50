"""Letting go, on this host, of what was computed from data that a published checkpoint has forgotten, and saying so.

The worker that publishes does it at once. Each worker looks again every so often, for it alone reaches its host's disk: the
lineage may have moved on elsewhere, or a worker may have died between its publication and the deed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service import db
from service.audit import ledger
from service.audit.leaves import Actor, CachesPurged
from service.config import Settings
from service.tables import Checkpoint, ModelVersion
from worker.conductor import caches

NOTE = ".purged."


@dataclass(frozen=True)
class Replaced:
    """Weights (a version's tree digest) that a lineage has replaced, and the publication that did."""

    weights: str
    model_id: str
    request_id: str
    fence: int


FIELDS = tuple(field.name for field in fields(Replaced))
Write = Callable[[Callable[[OrmSession], int]], object]


def _once(change: Callable[[OrmSession], int]) -> int:
    with db.transaction() as session:
        return change(session)


def purge(settings: Settings, replaced: Replaced, actor: Actor, write: Write = _once, *, say_none: bool = False) -> None:
    """Delete what this host keeps of these weights, and record how much that was; `say_none`: even when it was nothing.

    What goes is noted beside it first, and the note goes when the entry has been written: whoever dies in between leaves it to
    the next sweep. So no deletion is left out of the ledger; one may be in it twice, where the answer to its commit got lost.

    Args:
        write: runs one transaction.
    """

    def say(entries: int) -> None:
        fact = CachesPurged(fence=replaced.fence, entries=entries)
        of, model = replaced.request_id, replaced.model_id
        write(lambda session: ledger.append(session, fact, actor=actor, request_id=of, model_id=model))

    doomed, path = caches.fishers_of(settings, replaced.weights), _note_of(settings, replaced)
    if not doomed and not path.exists():
        if say_none:
            say(0)
        return
    with _held(path) as note:
        if note is None:
            return  # another worker of this host is at it, or has just done it
        names = _noted(note, replaced, [entry.name for entry in doomed])
        for entry in doomed:
            shutil.rmtree(entry, ignore_errors=True)  # what is left is found by the next sweep
        purged = sum(not (settings.fishers_dir / name).exists() for name in names)
        if purged or say_none:
            say(purged)
        path.unlink()


def sweep(settings: Settings, actor: Actor) -> None:
    """Purge whatever this host still keeps of replaced weights, and record what a worker purged that died before it could."""
    found = dict.fromkeys(_unrecorded(settings))
    if kept := caches.weights_of_fishers(settings):
        with db.reading() as session:
            found |= dict.fromkeys(_replaced(session, kept))
    for one in found:
        purge(settings, one, actor)


# ------------------------------------------------------------------------------------------------------------- the notes


def _note_of(settings: Settings, replaced: Replaced) -> Path:
    """Beside the cached folders, under a name that is none of a folder's."""
    return settings.fishers_dir / f"{NOTE}{replaced.request_id}.{replaced.fence}"


@contextmanager
def _held(path: Path) -> Iterator[TextIO | None]:
    """The note, made if need be, which nobody else can hold meanwhile; None: somebody does, or it has just been dealt with."""
    with path.open("a+") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield note if os.fstat(note.fileno()).st_nlink else None


def _noted(note: TextIO, replaced: Replaced, names: list[str]) -> set[str]:
    """Add these folders to a note, on the disk; all that it names by now."""
    earlier = {name for line in _lines(note) for name in line["folders"]}
    note.write("\n" + json.dumps({**asdict(replaced), "folders": names}) + "\n")  # the line before may have no end
    note.flush()
    os.fsync(note.fileno())
    return earlier | set(names)


def _lines(note: TextIO) -> list[dict[str, Any]]:
    """What a note says, less a line whose writer died at it: nothing had been deleted by then."""
    note.seek(0)
    found = []
    for line in note:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _unrecorded(settings: Settings) -> list[Replaced]:
    """Of which weights folders were deleted, or were about to be, whose entry is not written yet."""
    found = []
    for path in settings.fishers_dir.glob(f"{NOTE}*"):
        with suppress(FileNotFoundError), path.open() as note:  # done meanwhile
            found += [Replaced(**{name: line[name] for name in FIELDS}) for line in _lines(note)[:1]]
    return found


def _replaced(session: OrmSession, weights: Iterable[str]) -> list[Replaced]:
    successor = aliased(ModelVersion)
    query = (
        select(ModelVersion.digest, Checkpoint.model_id, Checkpoint.request_id, Checkpoint.fence)
        .join(successor, successor.parent_id == ModelVersion.id)
        .join(Checkpoint, Checkpoint.id == successor.checkpoint_id)
        .where(ModelVersion.digest.in_(set(weights)))
    )
    return [Replaced(*row) for row in session.execute(query)]
