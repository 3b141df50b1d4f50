"""The notary: has the ledger's newest tree signed, cosigned and stamped, and keeps the checkpoint.

It runs beside every worker's sweeper, in a thread of its own, for a witness may be slow. Two of them at once do no harm: the
signer answers the second that its proof begins at the wrong size. Nothing waits for it, and whatever fails is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

import httpx2
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as OrmSession

from service import db
from service.audit import checkpoints, ledger, repository, timestamps, trust
from service.audit.leaves import Actor, KeyAdded, KeyRetired
from service.audit.ledger import LOG_ID
from service.audit.logsigner import About, Stale
from service.audit.timestamps import StampRefused
from service.audit.witnesses import Witnesses
from service.config import Settings
from service.sockets import SignerUnavailable, SigningRefused
from service.tables import LedgerCheckpoint
from service.verifier.note import Key, Malformed, Note

log = logging.getLogger("expunge.notary")

NOTARY = Actor(kind="service", id="notary")
LOOK_SECONDS = 5.0
AGAIN_SECONDS = 30.0
"""After a failure: a signer that refuses says so in its log each time, and that log should stay readable."""
UNSETTLED_TIMES = 5
"""A checkpoint that lacks witnesses, or a key that signs by now, is made again more slowly than one of a ledger that grew."""
STAMP_EVERY = timedelta(days=1)
TRIES = 3
KEYS_LOCK = 0x6B657973  # "keys": two notaries must not both record the same key


class LogSigner(Protocol):
    """Whoever signs the log's checkpoints."""

    def about(self) -> About:
        """Raises: SignerUnavailable, SigningRefused."""
        ...

    def sign(self, old: int, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Raises: SignerUnavailable, SigningRefused, Stale."""
        ...


class Notary:
    """One worker's notary."""

    def __init__(self, signer: LogSigner, settings: Settings, http: httpx2.Client | None = None) -> None:
        self._signer = signer
        self._settings = settings
        self._http = http or httpx2.Client(follow_redirects=False)
        self._witnesses = Witnesses(self._http)
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._look_at = 0.0

    def wake(self) -> None:
        """Something was published: do not wait for the minute to pass."""
        self._wanted.set()

    def look(self) -> None:
        """Start a round in the background, if one may be due and none is under way. Returns at once."""
        at_work = self._thread is not None and self._thread.is_alive()
        if at_work or (time.monotonic() < self._look_at and not self._wanted.is_set()):
            return
        hurry = self._wanted.is_set()
        self._wanted.clear()
        self._look_at = time.monotonic() + min(LOOK_SECONDS, self._settings.ledger_checkpoint_seconds)
        self._thread = threading.Thread(target=self._quietly, args=(hurry,), name="notary", daemon=True)
        self._thread.start()

    def _quietly(self, hurry: bool) -> None:
        """Nobody is there to catch what a round in the background raises."""
        try:
            self.round(hurry=hurry)
        except (SignerUnavailable, SigningRefused, Stale, trust.NoLogKey, Malformed) as error:
            log.warning("checkpoint.missing", extra={"kind": type(error).__name__, "why": str(error)})
        except (SQLAlchemyError, OSError) as error:  # whose text may hold more than a log should
            log.warning("checkpoint.missing", extra={"kind": type(error).__name__})
        except Exception:
            log.exception("notary.crashed")
        else:
            return
        self._look_at = time.monotonic() + AGAIN_SECONDS

    def round(self, *, hurry: bool = False) -> LedgerCheckpoint | None:
        """Sign the ledger if it is due, and keep the checkpoint. None: it is not due.

        Args:
            hurry: a checkpoint of a ledger that has grown is due however young the last one is.

        Raises:
            SignerUnavailable, SigningRefused, Stale: there is no signature to be had.
            NoLogKey, OSError, Malformed: keys or the list of witnesses cannot be read.
        """
        policy = trust.policy(self._settings)
        with db.reading() as session:
            last = checkpoints.newest(session, policy)
            at, size = db.now(session), repository.size(session)
            settled = last is not None and checkpoints.accepts(policy, last.note) and _signed_by_all(policy.logs, last.note)
            stamped = checkpoints.newest_stamped(session, policy)
        if last is not None and not self._due(last, at, grown=size != last.size, settled=settled, hurry=hurry):
            return None
        about = self._signer.about()
        record_keys(about.keys)
        note, size = self._signed(about.size)
        note = self._witnesses.cosign(policy, note, size, lambda old: _consistency(old, size))
        token = self._stamp(note) if stamped is None or at - stamped.created_at >= STAMP_EVERY else None
        with db.transaction() as session:
            row = LedgerCheckpoint(log_id=LOG_ID, size=size, created_at=db.now(session), note=note, time_stamp=token)
            session.add(row)
        told = {"size": size, "signatures": len(Note.parse(note).signatures), "stamped": token is not None}
        log.info("checkpoint.kept", extra=told)
        return row

    def _due(self, last: LedgerCheckpoint, at: datetime, *, grown: bool, settled: bool, hurry: bool) -> bool:
        age = (at - last.created_at).total_seconds()
        if grown and hurry:
            return True
        often, seldom = self._settings.ledger_checkpoint_seconds, self._settings.ledger_checkpoint_idle_seconds
        return age >= (often if grown else seldom if settled else min(UNSETTLED_TIMES * often, seldom))

    def _signed(self, old: int) -> tuple[str, int]:
        """A note over the whole ledger, and its size. Raises: SignerUnavailable, SigningRefused, Stale."""
        for _ in range(TRIES):
            with db.reading() as session:
                size = repository.size(session)
                root = repository.root(session, size)
                # a ledger that lost its end has no proof to offer; the signer is asked all the same, so that its log says so
                proof = repository.consistency(session, old, size) if old <= size else []
            try:
                return self._signer.sign(old, size, root, proof), size
            except Stale as stale:
                old = stale.size
        raise Stale(old)

    def _stamp(self, note: str) -> bytes | None:
        url, trusted = self._settings.ledger_tsa_url, self._settings.ledger_tsa_certificates
        if not url or trusted is None:
            return None
        try:
            return timestamps.stamp(self._http, url, timestamps.certificates(trusted), note)
        except (StampRefused, OSError, ValueError) as error:
            log.warning("time_stamp.failed", extra={"kind": type(error).__name__, "why": str(error)})
            return None


def _consistency(old: int, size: int) -> list[bytes]:
    with db.reading() as session:
        return repository.consistency(session, old, size)


def _signed_by_all(keys: Sequence[Key], note: str) -> bool:
    signed = {(name, told) for name, told, _ in Note.parse(note).signatures}
    return all((key.name, key.id) in signed for key in keys)


# ----------------------------------------------------------------------------------------------------------------- keys


def record_keys(signing: Sequence[Key]) -> None:
    """Write down which keys came and went since the ledger last heard of them, before they sign what says so.

    Raises: SQLAlchemyError.
    """
    current = [str(key) for key in signing]
    with db.reading() as session:
        if _recorded(session) == set(current):
            return
    with db.transaction() as session:
        if session.get_bind().dialect.name == "postgresql":  # on SQLite the transaction itself is the lock
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEYS_LOCK})
        before = _recorded(session)
        facts: list[KeyAdded | KeyRetired] = [KeyAdded(vkey=vkey) for vkey in current if vkey not in before]
        facts += [KeyRetired(vkey=vkey) for vkey in sorted(before - set(current))]
        for fact in facts:
            ledger.append(session, fact, actor=NOTARY)
            log.warning(fact.action, extra={"vkey": fact.vkey})


def _recorded(session: OrmSession) -> set[str]:
    """The log's keys by the ledger's own account."""
    found: set[str] = set()
    for action, vkey in checkpoints.told_of_keys(session):
        (found.add if action == KeyAdded.action else found.discard)(vkey)
    return found
