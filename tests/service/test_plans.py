"""How the databases find the rows of a page: along an index in the page's own order, however many rows there are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.orm import InstrumentedAttribute

from service import db, tenancy
from service.access import isolation  # noqa: F401 — the rule that adds the project to every statement
from service.access.names import require_own
from service.audit import repository as entries
from service.audit.schemas import EntryQuery
from service.datasets import repository as datasets
from service.models import repository as models
from service.paging import fetch_page
from service.requests import repository as requests
from service.requests.schemas import RequestQuery
from service.tables import Dataset, LedgerEntry, Model, UnlearnRequest

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
CURSOR_SEQ = "Wzdd"  # [7]
CURSOR_AT = "WyIyMDI2LTAxLTAxVDAwOjAwOjA3KzAwOjAwIiwiYSJd"  # ["2026-01-01T00:00:07+00:00","a"]
ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "": ({}, "pk_ledger_entry"),
    "model": ({"model_id": "m"}, "ix_ledger_entry_model"),
    "request": ({"request_id": "r"}, "ix_ledger_entry_request"),
    "actor": ({"actor": "user:a"}, "ix_ledger_entry_actor"),
    "action": ({"action": ["run.started"]}, "ix_ledger_entry_action"),
    "tenant": ({"tenant": "t"}, "ix_ledger_entry_tenant"),
    "outcome": ({"outcome": "denied"}, "ix_ledger_entry_outcome"),
    "since": ({"at[gte]": "2026-01-01T00:05:00Z"}, "ix_ledger_entry_at"),
    "until": ({"at[lt]": "2026-01-01T00:05:00Z"}, "ix_ledger_entry_at"),
}
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "": ({}, "ix_unlearn_request_created"),
    "status": ({"status": ["queued"]}, "ix_unlearn_request_status_created"),
    "model": ({"model_id": "mdl_7"}, "ix_unlearn_request_model_created"),
    "external": ({"external_id": "case-7"}, "ix_unlearn_request_external"),
    "since": ({"created_at[gte]": "2026-01-01T00:05:00Z"}, "ix_unlearn_request_created"),
    "overdue": ({"overdue": True}, "ix_unlearn_request_created"),
    "not overdue": ({"overdue": False}, "ix_unlearn_request_created"),
    "due": ({"due_before": "2026-01-01T00:05:00Z"}, "ix_unlearn_request_created"),
}
PLANS = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}


def plan_of(statement: Any, keys: tuple[InstrumentedAttribute[Any], ...], query: Any, order: Any) -> str:
    """The database's own words on the statement that a page sends, its tables full enough for a choice.

    PostgreSQL's choice of a scan or a sort over little is ruled out, as over much it would be: what is left of them has no
    index to go by.
    """
    found: list[str] = []
    require_own()  # what a process asks once, before the first statement in a project
    with db.transaction() as session:
        connection = session.connection()
        dialect = connection.dialect.name
        if dialect == "postgresql":
            for way in ("seqscan", "sort", "bitmapscan", "incremental_sort"):
                connection.execute(text(f"SET LOCAL enable_{way} = off"))

        def explained(conn: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
            if not found and sql.startswith("SELECT"):
                found.append("")
                raw = conn.connection.driver_connection.cursor()
                raw.execute(PLANS[dialect] + sql, parameters)
                found[0] = "\n".join(str(row[-1]) for row in raw.fetchall())

        event.listen(connection, "before_cursor_execute", explained)
        fetch_page(session, statement, keys, query, order)
    return found[0]


def fair(plan: str, index: str) -> bool:
    """Along the index, with no sort and nothing read from end to end."""
    names = [index, "sqlite_autoindex_ledger_entry_1"] if index == "pk_ledger_entry" else [index]
    aside = [line for line in plan.splitlines() if line.startswith("SCAN") and "USING" not in line and "CONSTANT" not in line]
    return (
        any(name in plan for name in names)
        and not aside
        and "Seq Scan" not in plan
        and "TEMP B-TREE" not in plan
        and "Sort" not in plan
    )


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_are_read_along_an_index(database: str, name: str, order: str) -> None:
    filters, index = ENTRIES[name]
    query = EntryQuery.model_validate({**filters, "after": CURSOR_SEQ})
    plan = plan_of(entries.filtered(query), (LedgerEntry.seq,), query, order)
    assert fair(plan, index), plan


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_read_along_an_index(database: str, name: str) -> None:
    filters, index = REQUESTS[name]
    query = RequestQuery.model_validate({**filters, "after": CURSOR_AT})
    plan = plan_of(requests.filtered(query), (UnlearnRequest.created_at, UnlearnRequest.id), query, "desc")
    assert fair(plan, index), plan


@pytest.mark.parametrize("table", [Dataset, Model, UnlearnRequest])
@pytest.mark.parametrize("project", [None, "default"])
def test_lists_are_read_along_an_index_in_and_outside_of_a_project(database: str, table: Any, project: str | None) -> None:
    listed = {Dataset: datasets.listed(), Model: models.listed(), UnlearnRequest: requests.filtered(RequestQuery())}[table]
    query = RequestQuery.model_validate({"after": CURSOR_AT})
    with tenancy.acting(project):
        plan = plan_of(listed, (table.created_at, table.id), query, "desc")
    assert fair(plan, f"ix_{table.__tablename__}_{'project' if project else 'created'}"), plan


@pytest.mark.parametrize("filters", [{"overdue": True}, {"due_before": "2026-01-01T00:05:00Z"}])
def test_a_project_finds_its_deadlines_along_an_index(database: str, filters: dict[str, Any]) -> None:
    query = RequestQuery.model_validate({**filters, "after": CURSOR_AT})
    with tenancy.acting("default"):
        plan = plan_of(requests.filtered(query), (UnlearnRequest.created_at, UnlearnRequest.id), query, "desc")
    assert fair(plan, "ix_unlearn_request_project"), plan
    assert plan.count("ix_unlearn_request_project") == 1, plan  # it is not looked through once more for the law's side


def test_a_project_reads_its_entries_along_an_index(database: str) -> None:
    query = EntryQuery.model_validate({"after": CURSOR_SEQ})
    with tenancy.acting("default"):
        plan = plan_of(entries.filtered(query), (LedgerEntry.seq,), query, "asc")
    assert fair(plan, "ix_ledger_entry_tenant"), plan
