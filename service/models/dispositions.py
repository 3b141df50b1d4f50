"""What an operator says has become of a version that still knows what a later one has forgotten."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, Disposition, ParentDisposed
from service.db import now
from service.errors import Conflict, NotFound
from service.models import repository
from service.tables import ModelVersion, VersionDisposition

ORDER: tuple[Disposition, ...] = ("withdrawn", "quarantined", "destroyed")


class VersionNotFound(NotFound):
    """The model has no version of this number."""

    code, title = "version_not_found", "The model has no version of this number"


class StillCurrent(Conflict):
    """The version is the one that is served: there is no later one to take its place."""

    code, title = "version_current", "The version is current"


class Gone(Conflict):
    """What was destroyed does not come back."""

    code, title = "version_destroyed", "The version was destroyed"


def record(session: OrmSession, model_id: str, number: int, state: Disposition, by: Actor) -> VersionDisposition:
    """Record what became of a version. Nothing is deleted here: it is a statement, under the caller's name, in the ledger.

    Raises:
        ModelNotFound, VersionNotFound, StillCurrent, Gone.
    """
    model = repository.get(session, model_id, lock=True)
    version = session.scalars(
        select(ModelVersion).where(ModelVersion.model_id == model.id, ModelVersion.number == number)
    ).one_or_none()
    if version is None:
        raise VersionNotFound
    if number >= model.current_version:
        raise StillCurrent
    before = latest(session, version.id)
    if before is not None and before.state == "destroyed":
        raise Gone
    made = VersionDisposition(
        version_id=version.id, number=0 if before is None else before.number + 1, state=state, by=str(by), at=now(session)
    )
    session.add(made)
    fact = ParentDisposed(version_id=version.id, number=number, digest=version.digest, state=state)
    ledger.append(session, fact, actor=by, model_id=model.id)
    return made


def latest(session: OrmSession, version_id: str) -> VersionDisposition | None:
    """What was last said of a version; None: nothing, and it may be served still."""
    chosen = select(VersionDisposition).where(VersionDisposition.version_id == version_id)
    return session.scalars(chosen.order_by(VersionDisposition.number.desc()).limit(1)).first()
