"""Tenancy as a rule of the session, not of each query: whoever acts in a project reads and changes that project's rows alone.

Every table is either kept apart by a rule below or named as shared: one that is neither is an error at the first statement, so
a new one cannot be forgotten. A statement that the rule cannot be added to is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Table, event, select
from sqlalchemy.orm import ORMExecuteState, with_loader_criteria
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.sql.visitors import iterate

from service import tenancy
from service.access import names
from service.access.tables import Principal, Project
from service.audit.ledger import LOG_ID
from service.tables import Checkpoint, LedgerEntry, Model, ModelVersion, Row, UnlearnRequest

SHARED = frozenset({"ledger_head", "ledger_node", "ledger_checkpoint", "revocation_list", "shared_secret", "worker"})
"""The tree is one for all, and holds hashes; the list of revocations is everybody's. Nobody is shown the secret.
Workers work for every project."""
OWNERS: dict[str, Any] = {
    "model_id": Model,
    "request_id": UnlearnRequest,
    "checkpoint_id": Checkpoint,
    "version_id": ModelVersion,
    "principal_id": Principal,
}
"""By the column that refers to it: a row belongs to whom its owner belongs."""


class Unisolated(RuntimeError):
    """A statement, or a table, that no rule keeps a project's rows apart in."""


def owned(columns: Mapping[str, Any], table: str, project: str, called: tuple[str, ...]) -> ColumnElement[bool]:
    """True for the project's rows.

    Args:
        columns: of the class where the rule must follow an alias, of the table where it must not be added again.
        called: the project's names in the ledger; one, as a rule.

    Raises:
        Unisolated: no rule is for this table.
    """
    if table == Project.__tablename__:
        return columns["id"] == project  # type: ignore[no-any-return]
    if "project_id" in columns:
        return columns["project_id"] == project  # type: ignore[no-any-return]
    if "tenant" in columns:
        name = columns["tenant"]  # of one name the index has the entries in their order
        return name == called[0] if len(called) == 1 else name.in_(called)  # type: ignore[no-any-return]
    if "seq" in columns and "log_id" in columns:
        entries: Any = LedgerEntry.__table__
        mine = select(entries.c.seq).where(entries.c.log_id == LOG_ID, owned(entries.c, entries.name, project, called))
        return columns["seq"].in_(mine)  # type: ignore[no-any-return]
    for name, owner in OWNERS.items():
        if name in columns:
            theirs: Any = owner.__table__
            owns = owned(theirs.c, theirs.name, project, called)
            return columns[name].in_(select(theirs.c.id).where(owns))  # type: ignore[no-any-return]
    raise Unisolated(f"the table {table} belongs to no project and is not named as shared")


def isolated() -> tuple[type[Row], ...]:
    """Every class of rows that is kept apart."""
    classes = (mapper.class_ for mapper in Row.registry.mappers)
    return tuple(one for one in classes if one.__tablename__ not in SHARED)


def rule(kind: type[Row], project: str, called: tuple[str, ...]) -> ColumnElement[bool]:
    """The rule for a class of rows. Raises: Unisolated."""
    columns = {column.name: attribute for attribute in kind.__mapper__.column_attrs for column in attribute.columns}
    return owned({name: getattr(kind, one.key) for name, one in columns.items()}, kind.__tablename__, project, called)


@lru_cache(maxsize=1)
def _classes() -> dict[str, type[Row]]:
    return {one.__tablename__: one for one in isolated()}


@lru_cache(maxsize=4096)
def _option(table: str, project: str, called: tuple[str, ...]) -> Any:
    kind = _classes()[table]
    return with_loader_criteria(kind, rule(kind, project, called), include_aliases=True)


@event.listens_for(OrmSession, "do_orm_execute")
def _keep_apart(state: ORMExecuteState) -> None:
    """Only what the statement names gets a rule: twenty of them would cost it half a millisecond."""
    project = tenancy.project()
    if project is None or state.is_insert or state.is_column_load or state.is_relationship_load:
        return
    statement: Any = state.statement
    named = {element.name for element in iterate(statement) if isinstance(element, Table)} - SHARED
    if not named:
        return
    if not state.is_orm_statement:
        raise Unisolated("a statement that names no class of rows cannot be kept within a project")
    called = names.of(state.session, project)
    state.statement = statement.options(*(_option(table, project, called) for table in sorted(named)))
