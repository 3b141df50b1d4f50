"""Deleting from the store what no row names: uploads that never got a name, and files of attempts that published nothing.

Deleted is only what is older than the grace period and named by no published file, no version, no attempt's evidence and no
attempt that is under way. A worker writes down what it is about to put into the store before it does (`claim`), and a deletion
looks at the rows once more, under a lock that keeps such claims out until it is done. So a file is either claimed first, and
stays, or deleted first, and the worker, who looks only then, writes it again.

A store may serve one deployment only: each leaves its mark there, and nobody deletes where there is a second one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, StoredFilesGivenUp
from service.db import now, reading, transaction
from service.requests import leases
from service.requests.leases import Lease
from service.storage import Missing, Store, StoreError
from service.storage.objects import Object
from service.tables import Attempt, CheckpointFile, LedgerEntry, ModelVersion, SharedSecret, UnlearnRequest

log = logging.getLogger("expunge.garbage")

COLLECTOR = Actor(kind="service", id="garbage")
STORED = "stored"
"""In the detail of a run: digests of what it puts into the store."""
NAME = "deployment"
_LOCK = int.from_bytes(b"expungeg", "big")
BATCH = 1000


class SharedStore(StoreError):
    """Another deployment's rows name objects in this store, and we cannot see them."""


@dataclass
class Collected:
    """What one run deleted, or would have."""

    temporaries: int = 0
    unfinished: int = 0
    """Uploads in parts that were never completed."""
    objects: int = 0
    size: int = 0
    """Bytes of temporaries and objects."""
    failed: int = 0
    """What the store would not delete now; the next run tries again."""


# ------------------------------------------------------------------------------------------------------------- claiming


def claim(session: OrmSession, lease: Lease, digests: Iterable[str]) -> None:
    """Write down what a running attempt will put into the store, before it looks whether it is there. Raises: LeaseLost."""
    _lock(session, exclusive=False)
    row = leases.locked(session, lease)
    attempt = session.get_one(Attempt, (lease.request_id, lease.fence))
    before = attempt.detail or {}
    attempt.detail = {**before, STORED: sorted({*before.get(STORED, ()), *digests})}
    row.version += 1  # it is shown


def _lock(session: OrmSession, *, exclusive: bool) -> None:
    """Until the transaction ends. SQLite needs none: its write transactions exclude each other."""
    if session.get_bind().dialect.name == "postgresql":
        take = func.pg_advisory_xact_lock if exclusive else func.pg_advisory_xact_lock_shared
        session.execute(select(take(_LOCK)))


# ----------------------------------------------------------------------------------------------------------- collecting


def collect(store: Store, *, older: timedelta, at: datetime | None = None, dry_run: bool = False) -> Collected:
    """One run. Many at once are as good as one.

    Args:
        older: age that an object must have at least; the grace period.
        at: the present, aware; unset: this host's clock. The store's own clock dates the objects.
        dry_run: count, and change nothing.

    Raises:
        SharedStore: nothing was deleted.
        StoreUnavailable, StoreRefused: the store cannot be listed.
    """
    before = (at or datetime.now(UTC)) - older
    _require_alone(store, dry_run=dry_run)
    done = Collected(unfinished=store.abort_unfinished(before, dry_run=dry_run))
    for found in store.temporaries(before):
        if dry_run or _tried(partial(store.delete_temporary, found), done):
            done.temporaries += 1
            done.size += found.size
    garbage = _unnamed(store, before)
    if garbage and not dry_run:
        _say(frozenset(garbage))
    for digest, found in garbage.items():
        if dry_run or _tried(partial(_delete, store, digest, before), done):
            done.objects += 1
            done.size += found.size
    if not dry_run and done != Collected():
        log.info("garbage.collected", extra=vars(done))
    return done


def _require_alone(store: Store, *, dry_run: bool) -> None:
    """Our mark in the store, and nobody else's. Raises: SharedStore."""
    with transaction() as session:
        ours = _deployment(session)
    if not dry_run:
        store.sign_in(ours)
    if store.deployments() - {ours}:
        raise SharedStore("another deployment has left its mark in the store; nothing is deleted where its rows are not seen")


def _deployment(session: OrmSession) -> str:
    """What the marks are told apart by: a digest of a number that the database drew once."""
    found = session.get(SharedSecret, NAME)
    if found is None:
        try:
            with session.begin_nested():
                found = SharedSecret(name=NAME, value=os.urandom(32), created_at=now(session))
                session.add(found)
        except IntegrityError:  # another host was first
            found = session.get_one(SharedSecret, NAME, populate_existing=True)
    return hashlib.sha256(b"expunge deployment\0" + found.value).hexdigest()


def _unnamed(store: Store, before: datetime) -> dict[str, Object]:
    """Objects that are old and that no row names, as far as a first look tells."""
    old = {digest: found for digest, found in store.objects() if found.modified < before}
    with reading() as session:
        for digest in _named(session):
            old.pop(digest, None)
    return old


def _named(session: OrmSession) -> Iterator[str]:
    """Every digest that a row names. Files of versions that lie elsewhere are among them, and do no harm."""
    yield from session.scalars(select(CheckpointFile.sha256).execution_options(yield_per=BATCH))
    lists = (
        select(ModelVersion.files),
        select(Attempt.evidence).where(Attempt.evidence.is_not(None)),
    )
    for query in lists:
        for files in session.scalars(query.execution_options(yield_per=BATCH)):
            yield from (str(file["sha256"]) for file in files or ())
    for detail in session.scalars(select(Attempt.detail).where(Attempt.ended_at.is_(None))):
        yield from (detail or {}).get(STORED, ())


def _is_named(session: OrmSession, digest: str) -> bool:
    """The same question of one digest, answered by what is committed now; in doubt, yes."""

    def mentions(column: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
        return cast(column, Text).contains(digest)  # it is hex: nothing in it is a wildcard

    # In this order: each statement sees what is committed by then, and a run that publishes between two of them goes from the
    # first question to the others, never back.
    questions = (
        select(Attempt.fence).where(Attempt.ended_at.is_(None), mentions(Attempt.detail)),
        select(Attempt.fence).where(mentions(Attempt.evidence)),
        select(CheckpointFile.path).where(CheckpointFile.sha256 == digest),
        select(ModelVersion.id).where(mentions(ModelVersion.files)),
    )
    return any(session.execute(question.limit(1)).first() is not None for question in questions)


def _delete(store: Store, digest: str, before: datetime) -> bool:
    """Delete an object unless a row names it by now or somebody wrote it again. False: it stays, or is gone already."""
    with transaction() as session:
        _lock(session, exclusive=True)
        try:
            if store.stat(digest).modified >= before:
                return False
        except Missing:
            return False
        # After the store's answer, however long it took: that the rows still answer shows that the lock is still ours.
        if _is_named(session, digest):
            return False
        store.delete(digest)
        return True


def _tried(deed: Callable[[], bool | None], done: Collected) -> bool:
    """One deletion. That the store refuses one keeps no other from being deleted."""
    try:
        return deed() is not False
    except StoreError as error:
        log.warning("garbage.not_deleted", extra={"why": str(error)})
        done.failed += 1
        return False


# --------------------------------------------------------------------------------------------------------------- saying


def _say(garbage: frozenset[str]) -> None:
    """In the ledger, before the deed: which runs put these files into the store. What was said before is not said again."""
    with reading() as session:
        ended = select(Attempt.request_id, Attempt.fence, Attempt.detail).where(Attempt.ended_at.is_not(None))
        runs = [
            (request_id, fence, files)
            for request_id, fence, detail in session.execute(ended.execution_options(yield_per=BATCH))
            if (files := garbage.intersection((detail or {}).get(STORED, ())))
        ]
    for request_id, fence, files in runs:
        with transaction() as session:
            new = files - _said(session, request_id, fence)
            if not new:
                continue
            request = session.get_one(UnlearnRequest, request_id)
            fact = StoredFilesGivenUp(fence=fence, files=tuple(sorted(new)))
            ledger.append(session, fact, actor=COLLECTOR, request_id=request_id, model_id=request.model_id)


def _said(session: OrmSession, request_id: str, fence: int) -> set[str]:
    of_request = LedgerEntry.request_id == request_id, LedgerEntry.action == StoredFilesGivenUp.action
    leaves = session.scalars(select(LedgerEntry.leaf).where(*of_request, LedgerEntry.leaf.is_not(None)))
    facts = [json.loads(leaf)["public"] for leaf in leaves if leaf]
    return {digest for fact in facts if fact["fence"] == fence for digest in fact["files"]}
