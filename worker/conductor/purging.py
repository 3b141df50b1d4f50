"""Letting go, on this host, of what was computed from data that a published checkpoint has forgotten, and saying so.

The worker that publishes does it at once. Each worker looks again every so often, for it alone reaches its host's disk: the
lineage may have moved on elsewhere, or a worker may have died between its publication and the deed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import aliased

from service import db
from service.audit import ledger
from service.audit.leaves import Actor, CachesPurged
from service.config import Settings
from service.tables import Checkpoint, ModelVersion
from worker.conductor import caches


@dataclass(frozen=True)
class Replaced:
    """Weights (a version's tree digest) that a lineage has replaced, and the publication that did."""

    weights: str
    model_id: str
    request_id: str
    fence: int


def purge(settings: Settings, replaced: Replaced, actor: Actor, *, say_none: bool = False) -> None:
    """Delete what this host keeps of these weights, then record how much that was; `say_none`: even when it was nothing."""
    purged = caches.purge_fishers(settings, replaced.weights)
    if not (purged or say_none):
        return
    fact = CachesPurged(fence=replaced.fence, entries=purged)
    with db.transaction() as session:
        ledger.append(session, fact, actor=actor, request_id=replaced.request_id, model_id=replaced.model_id)


def sweep(settings: Settings, actor: Actor) -> None:
    """Purge whatever this host still keeps of replaced weights."""
    kept = caches.weights_of_fishers(settings)
    if not kept:
        return
    with db.reading() as session:
        replaced = _replaced(session, kept)
    for one in replaced:
        purge(settings, one, actor)


def _replaced(session: OrmSession, weights: Iterable[str]) -> list[Replaced]:
    successor = aliased(ModelVersion)
    query = (
        select(ModelVersion.digest, Checkpoint.model_id, Checkpoint.request_id, Checkpoint.fence)
        .join(successor, successor.parent_id == ModelVersion.id)
        .join(Checkpoint, Checkpoint.id == successor.checkpoint_id)
        .where(ModelVersion.digest.in_(set(weights)))
    )
    return [Replaced(*row) for row in session.execute(query)]
