"""The ledger as a folder that can be checked without this service, and that folder as a tar.

Up to the newest checkpoint that the policy accepts; what came after it is in no signed tree yet. The layout is in
`docs/reference/ledger.md`.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit import checkpoints, export, repository, trust
from service.audit import legal as legal  # its event types are in the schemas, too
from service.audit.export import Inconsistent, Private, Stored
from service.audit.leaves import EntryRedacted, Fact, PrivateShredded, private_digest
from service.audit.ledger import LOG_ID
from service.config import Settings
from service.db import now, snapshot
from service.tables import LedgerEntry, LedgerPrivate

BATCH = 512


class NothingSigned(Exception):
    """No checkpoint has been signed that the policy accepts."""


def tar(settings: Settings, scratch: Path | None = None) -> Path:
    """The ledger's export, in a temporary file that its caller removes.

    Raises:
        NothingSigned, NoLogKey: there is no checkpoint.
        Inconsistent: the entries are no longer those that were signed.
        OSError, Malformed: no room, or a list of witnesses that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="expunge-export-", dir=scratch) as name:
        folder = Path(name) / "ledger"
        write(folder, settings)
        with tempfile.NamedTemporaryFile(prefix="expunge-export-", suffix=".tar", dir=scratch, delete=False) as packed:
            try:
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    archive.add(folder, arcname="ledger", filter=_nobody)
            except BaseException:
                with suppress(FileNotFoundError):
                    Path(packed.name).unlink()
                raise
        return Path(packed.name)


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who runs this service is no part of the ledger."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def write(folder: Path, settings: Settings) -> dict[str, Any]:
    """Lay the ledger out, as of one moment, in a folder that is not there yet. Returns its manifest. Raises: as `tar`.

    All of it, whoever asks: a tree is signed over every project's entries, and nobody could check a part of it.
    """
    with tenancy.acting(None), snapshot() as session:
        policy = trust.policy(settings)
        if (lost := checkpoints.beyond(session, policy)) is not None:
            raise Inconsistent(f"{lost.size} entries were signed, and here are {repository.size(session)}")
        newest = checkpoints.accepted(session, policy)
        if newest is None:
            raise NothingSigned
        _require_nothing_taken(session, newest.size)
        # after the accepted one come those that too few witnesses have seen: none that anybody should rely on
        last = newest.size, newest.created_at
        stored = [
            Stored(row.size, row.note, row.time_stamp)
            for row in checkpoints.every(session, policy)
            if (row.size, row.created_at) <= last
        ]
        return export.write(
            folder,
            entries=_entries(session, newest.size),
            checkpoints=stored,
            private=_private(session, newest.size),
            policy=trust.policy_text(settings),
            schemas=schemas(),
            created_at=now(session),
        )


def _require_nothing_taken(session: OrmSession, size: int) -> None:
    """What is gone by now would seem to have gone silently: no signed tree holds the entry that says so yet."""
    taken = LedgerEntry.action.in_((EntryRedacted.action, PrivateShredded.action))
    if session.scalars(select(LedgerEntry.seq).where(LedgerEntry.seq >= size, taken).limit(1)).first() is not None:
        raise NothingSigned


def _entries(session: OrmSession, size: int) -> Iterator[LedgerEntry]:
    """A batch at a time: it need not fit into memory."""
    for first in range(0, size, BATCH):
        yield from repository.range_of(session, first, min(BATCH, size - first))


def _private(session: OrmSession, size: int) -> Iterator[Private]:
    """Which entries have a commitment, and whether it can still be opened; never what opens it."""
    key = LedgerPrivate.log_id == LOG_ID
    for first in range(0, size, BATCH):
        within = key, LedgerPrivate.seq >= first, LedgerPrivate.seq < min(first + BATCH, size)
        for row in session.scalars(select(LedgerPrivate).where(*within).order_by(LedgerPrivate.seq)):
            digest = None
            if row.kek_id is not None and row.salt is not None and row.dek_wrapped is not None and row.ciphertext is not None:
                digest = private_digest(row.kek_id, row.salt, row.dek_wrapped, row.ciphertext)
            yield Private(row.seq, private_sha256=digest, shredded_at=row.shredded_at, kek_id=row.kek_id)


def schemas() -> dict[str, Any]:
    """The JSON schema of the public part of every event type, by its name."""
    return {kind.action: kind.model_json_schema(by_alias=True) for kind in sorted(_kinds(Fact), key=lambda k: k.action)}


def _kinds(base: type[Fact]) -> Iterator[type[Fact]]:
    for kind in base.__subclasses__():
        if "action" in vars(kind):
            yield kind
        yield from _kinds(kind)
