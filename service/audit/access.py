"""Writing down who read the ledger. One entry for each HTTP read, in a transaction of its own, before the answer is given."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session as OrmSession

from service.audit import ledger
from service.audit.leaves import Actor, canonical
from service.audit.legal import AuditRead, ExportMade
from service.edge import writing


def filters_digest(filters: BaseModel | dict[str, Any]) -> str:
    """SHA-256 of the RFC 8785 JSON of the filters that were given; cursor and page size are no filters."""
    given = filters if isinstance(filters, dict) else filters.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return hashlib.sha256(canonical({k: v for k, v in given.items() if k not in ("after", "limit")})).hexdigest()


def note_read(actor: Actor, what: str, filters: BaseModel | dict[str, Any], count: int) -> None:
    """`audit.read`. When it cannot be written, nothing is shown: the error is the answer."""
    with writing() as session:
        add_read(session, actor, what, filters, count)


def add_read(session: OrmSession, actor: Actor, what: str, filters: BaseModel | dict[str, Any], count: int) -> None:
    """The same in the caller's transaction, after its other writes."""
    fact = AuditRead(what=what, filters_sha256=filters_digest(filters), count=count)
    ledger.append(session, fact, actor=actor)


def note_export(actor: Actor, what: str, filters: BaseModel | dict[str, Any], count: int) -> None:
    """`export.made`: a file that whoever asked can keep."""
    fact = ExportMade(what=what, filters_sha256=filters_digest(filters), count=count)
    with writing() as session:
        ledger.append(session, fact, actor=actor)
