"""What the ledger calls the first project. Its name is a setting that may change, and an entry keeps the one of its time: every
name that is no other project's is one of its own."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.db import get_engine, reading

_KNOWN: WeakKeyDictionary[Engine, tuple[str, ...]] = WeakKeyDictionary()
"""By the database, the present name first. A former one can only come with another setting, and so with another process."""

_FORMER = text("""
    WITH RECURSIVE named(tenant) AS (
        SELECT min(tenant) FROM ledger_entry
        UNION ALL
        SELECT (SELECT min(tenant) FROM ledger_entry WHERE tenant > named.tenant) FROM named WHERE named.tenant IS NOT NULL
    )
    SELECT tenant FROM named WHERE tenant <> :present AND tenant NOT IN (SELECT id FROM project WHERE id <> :home)
""")  # from name to name along the index: there is one look-up a project, however many entries
_TAKEN = text("SELECT count(*) FROM project WHERE id = :present AND id <> :home")


class NameTaken(RuntimeError):
    """The ledger would call the first project what it calls another one, and could never tell them apart."""


def of(session: OrmSession, project: str) -> tuple[str, ...]:
    """Every name under which the ledger has entries of a project, the present one first. Raises: NameTaken."""
    return (project,) if project != tenancy.HOME else _home(session.connection())


def _home(connection: Connection) -> tuple[str, ...]:
    engine, present = get_engine(), tenancy.tenant(tenancy.HOME)
    if (known := _KNOWN.get(engine, ("",)))[0] == present:
        return known
    asked = {"present": present, "home": tenancy.HOME}
    if connection.execute(_TAKEN, asked).scalar_one():
        raise NameTaken(f"EXPUNGE_TENANT is {present}, and another project has this id; the first one needs a name of its own")
    found = _KNOWN[engine] = present, *connection.execute(_FORMER, asked).scalars()
    return found


def require_own() -> None:
    """Raises: NameTaken."""
    with reading() as session:
        of(session, tenancy.HOME)
