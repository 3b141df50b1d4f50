"""The signed list of revocations, as it is answered: kept until something is revoked, it runs out, or the key is another.

Anybody may ask for it, so an answer costs two small reads, and the signer is asked once for each change. Whoever finds it out
of date claims its row for a few seconds, asks the signer outside any transaction and puts the answer there; others wait for it.
Version number and next update are those of X.509's lists (RFC 5280 §5.1.2.5, §5.2.3).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session as OrmSession

from service.audit import repository as ledgers
from service.audit import trust
from service.audit.leaves import rfc3339
from service.certificates import revocations
from service.certificates.signing import SignerUnavailable, SocketSigner
from service.checkpoints import revocation
from service.config import Settings
from service.db import now, reading, snapshot
from service.edge import writing
from service.errors import Unavailable
from service.tables import CheckpointRevocation, RevocationList

ONE = 1
"""Id of the one row."""
VALID = timedelta(hours=24)
SIGNER_SECONDS = 5.0
CLAIM = timedelta(seconds=2 * SIGNER_SECONDS)
POLL_SECONDS = 0.05
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
"""Numbers are at least the seconds since then: a column of 32 bits holds them until 2094."""


class SignerAway(Unavailable):
    """The signer does not answer."""

    code, title = "signer_away", "The signer does not answer just now"


@dataclass(frozen=True)
class Kept:
    """A list as it was signed."""

    number: int
    bundle: bytes
    seconds_left: int
    """Until its next update is due."""

    @property
    def etag(self) -> str:
        return f'"sha256:{hashlib.sha256(self.bundle).hexdigest()}"'


def current(settings: Settings) -> Kept:
    """The list that names every certificate revoked by now. Raises: SignerAway: it would have to be signed, and cannot be."""
    deadline = time.monotonic() + SIGNER_SECONDS
    while True:
        with reading() as session:
            row, at = session.get_one(RevocationList, ONE), now(session)
            count, key = _count(session), _key(settings)
        if row.bundle and row.next_update and (row.revoked, row.key_sha256) == (count, key) and at < row.next_update:
            return Kept(row.number, row.bundle.encode(), int((row.next_update - at).total_seconds()))
        if (claimed := _claim(row.number)) is not None:
            _renew(settings, row.number, claimed)
        elif time.monotonic() > deadline:
            raise SignerAway
        else:
            time.sleep(POLL_SECONDS)


def _count(session: OrmSession) -> int:
    """Revocations are never changed nor deleted, so their number says whether the list is complete."""
    chosen = select(func.count()).select_from(CheckpointRevocation).where(CheckpointRevocation.step == "approved")
    return session.scalars(chosen).one()


def _key(settings: Settings) -> str:
    """Which key whoever reads the list has; empty: none was published yet."""
    try:
        return hashlib.sha256(settings.public_key_file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _claim(number: int) -> datetime | None:
    """For whom it worked, the time until which nobody else has a list signed after that of this number."""
    with writing() as session:
        at = now(session)
        free = or_(RevocationList.claimed_until.is_(None), RevocationList.claimed_until <= at)
        mine = update(RevocationList).where(RevocationList.id == ONE, RevocationList.number == number, free)
        changed: Any = session.execute(mine.values(claimed_until=at + CLAIM))
        return at + CLAIM if changed.rowcount else None


def _renew(settings: Settings, number: int, claimed: datetime) -> None:
    with snapshot() as session:
        at, key = now(session), _key(settings)
        # a database that came back from a backup has forgotten the numbers since
        following = max(number + 1, int((at - FIRST).total_seconds()))
        said = _statement(session, settings, following, at)
    free: dict[str, Any] = {"claimed_until": None}
    try:
        bundle = SocketSigner(settings.socket_path, timeout=SIGNER_SECONDS).sign_revocations(said)
    except SignerUnavailable as error:
        _put(number, claimed, free)
        raise SignerAway from error
    text = json.dumps(bundle, separators=(",", ":"))
    count = len(said["predicate"]["revoked"])
    fresh = {"number": following, "revoked": count, "key_sha256": key, "next_update": at + VALID, "bundle": text}
    _put(number, claimed, {**fresh, **free})


def _put(number: int, claimed: datetime, values: dict[str, Any]) -> None:
    """Where the claim ran out meanwhile, another one's answer counts."""
    mine = RevocationList.id == ONE, RevocationList.number == number, RevocationList.claimed_until == claimed
    with writing() as session:
        session.execute(update(RevocationList).where(*mine).values(**values))


def _statement(session: OrmSession, settings: Settings, number: int, at: datetime) -> dict[str, Any]:
    """What the signer is asked to sign: everything that was revoked, and the tree that says so."""
    size = ledgers.size(session)
    revoked = [
        {
            "checkpoint": row.id,
            "certificateSha256": revocation.payload_sha256(row),
            "at": rfc3339(step.at),
            "reason": step.reason,
        }
        for row, step in revocation.revoked(session)
    ]
    try:
        origin = trust.log_keys(settings)[0].name
    except trust.NoLogKey:
        origin = "unnamed"
    return revocations.statement(
        number=number,
        as_of=rfc3339(at),
        next_update=rfc3339(at + VALID),
        origin=origin,
        size=size,
        root=ledgers.root(session, size),
        revoked=revoked,
    )
