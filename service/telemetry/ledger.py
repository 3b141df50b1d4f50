"""Is the ledger what it was: entries hashed again from their text, folded, and held against stored hashes and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import checkpoints, repository, trust
from service.audit.ledger import LOG_ID
from service.config import Settings
from service.tables import LedgerCheckpoint
from service.verifier.merkle import Frontier, leaf_hash
from service.verifier.note import Malformed

log = logging.getLogger("expunge.exporter")

BATCH = 5_000
"""Entries that one look reads at most: a scrape must stay short, and a long ledger is read over many of them."""
PASS_SECONDS = 24 * 3600.0
"""A pass over all entries begins so long after the last one did."""


@dataclass(frozen=True)
class Seen:
    """What a look at the ledger found."""

    ok: bool
    entries: int
    checked: int
    unsigned: int
    checkpoint_at: datetime | None


class Check:
    """A pass over the ledger, a batch a look. What was found wrong once stays wrong until the process ends."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._tree = Frontier()
        self._began = clock()
        self._wrong = False

    def look(self, session: OrmSession) -> Seen:
        """One batch, and the newest checkpoints. `session` sees one moment (`db.snapshot`)."""
        size = repository.size(session)
        newest = session.scalars(
            select(LedgerCheckpoint)
            .where(LedgerCheckpoint.log_id == LOG_ID)
            .order_by(LedgerCheckpoint.size.desc(), LedgerCheckpoint.created_at.desc())
            .limit(1)
        ).first()
        if not self._wrong:
            for why in (*self._signed(session), *self._entries(session, size)):
                log.critical("ledger.wrong", extra={"why": why})
                self._wrong = True
        signed = newest.size if newest else 0
        return Seen(not self._wrong, size, self._tree.size, max(size - signed, 0), newest.created_at if newest else None)

    def _signed(self, session: OrmSession) -> list[str]:
        try:
            policy = trust.policy(self._settings)
        except trust.NoLogKey:  # nobody signs it yet, or the public half is not mounted here
            return []
        except (OSError, Malformed) as error:
            log.error("ledger.policy_unreadable", extra={"kind": type(error).__name__})
            return []
        return checkpoints.problems(session, policy)

    def _entries(self, session: OrmSession, size: int) -> list[str]:
        tree = self._tree
        if size < tree.size:
            return [f"{tree.size} entries were there, and {size} are"]
        if size == tree.size and self._clock() - self._began > PASS_SECONDS:
            self._tree = tree = Frontier()
            self._began = self._clock()
        for entry in repository.range_of(session, tree.size, min(BATCH, size - tree.size)):
            if entry.seq != tree.size:
                return [f"entry {tree.size} is missing"]
            if entry.leaf is not None and leaf_hash(entry.leaf) != entry.leaf_hash:
                return [f"entry {entry.seq} is not what was hashed"]
            tree.append(entry.leaf_hash)
        try:
            stored = repository.root(session, tree.size)
        except LookupError:
            return ["a stored hash is missing"]
        return [] if stored == tree.root() else [f"the first {tree.size} entries do not have the stored root"]
