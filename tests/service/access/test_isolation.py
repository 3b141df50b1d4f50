"""The rule that keeps projects apart, where routes do not reach: every table, counts, aliases, streams, the worker's side."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased

from service import db, tenancy
from service.access import isolation
from service.audit import ledger
from service.audit.leaves import Actor, RunStopped
from service.db import get_engine, reading, transaction
from service.tables import Dataset, Model, Row, UnlearnRequest
from service.tenancy import HOME
from tests.service.access.people import calling, person, project
from tests.service.audit.people import entries
from tests.support import ask, emit, move, register


def test_every_table_is_kept_apart_or_named_as_shared() -> None:
    """A new table fails here until it says whose its rows are."""
    names = {one.__tablename__ for one in isolation.isolated()}
    assert names | isolation.SHARED == set(Row.metadata.tables)
    for one in isolation.isolated():
        assert isolation.rule(one, "a", ("a",)) is not None


@pytest.fixture
def request_of_a(guarded: TestClient, tmp_path: Path) -> str:
    _, _, key = person(project("a"), "operator", "requester")
    with calling(guarded, key):
        return str(ask(guarded, register(guarded, tmp_path), 1, key="same").json()["id"])


def test_gets_aliases_counts_and_subqueries_see_one_s_own(request_of_a: str) -> None:
    other = aliased(UnlearnRequest)
    for who, seen in (("a", 1), ("b", 0), (None, 1)):
        with tenancy.acting(who), reading() as session:
            assert (session.get(UnlearnRequest, request_of_a) is not None) == bool(seen)
            assert len(session.execute(select(other.id, Model.id).join(Model, Model.id == other.model_id)).all()) == seen
            assert session.scalars(select(func.count(UnlearnRequest.id))).one() == seen
            nested = select(func.count()).select_from(select(UnlearnRequest).subquery())
            assert session.scalars(nested).one() == seen
            both = select(UnlearnRequest.id).union_all(select(Model.id))
            assert len(session.execute(both).all()) == 2 * seen
            inner = select(Model.id).limit(1).scalar_subquery()
            assert [one is not None for one in session.execute(select(UnlearnRequest.id, inner)).scalars()] == [True] * seen
            assert len(session.scalars(select(Dataset).where(Dataset.id.in_(select(Model.dataset_id)))).all()) == seen


def test_a_statement_that_the_rule_cannot_be_added_to_is_refused(request_of_a: str) -> None:
    with tenancy.acting("b"), reading() as session, pytest.raises(isolation.Unisolated):
        session.execute(select(func.count()).select_from(Model.__table__))
    with tenancy.acting("b"), reading() as session:
        assert db.now(session)  # a clock is nobody's


def test_a_row_stays_in_its_project_and_what_existed_before_is_the_first_project_s(client: TestClient, tmp_path: Path) -> None:
    register(client, tmp_path)
    with reading() as session:
        assert {session.scalars(select(kind.project_id)).one() for kind in (Dataset, Model)} == {"default"}
    for table in ("dataset", "model"):
        with pytest.raises(DBAPIError), get_engine().begin() as connection:
            connection.exec_driver_sql(f"UPDATE {table} SET project_id = 'b'")


def test_what_a_worker_writes_of_a_request_is_in_its_project_s_name(request_of_a: str) -> None:
    with transaction() as session:
        model = session.get_one(UnlearnRequest, request_of_a).model_id
        ledger.append(session, RunStopped(fence=1), actor=Actor(kind="worker", id="w"), request_id=request_of_a, model_id=model)
    assert {entry.tenant for entry in entries("run")} == {"a"}
    assert {entry.tenant for entry in entries("unlearning")} == {"a"}


def test_the_name_of_the_first_project_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenancy.get_settings(), "tenant", "acme")
    assert (tenancy.tenant("default"), tenancy.tenant("b")) == ("acme", "b")
    with tenancy.acting("b"):
        assert tenancy.own_tenant() == "b"
    assert tenancy.own_tenant() == "acme"


def test_the_same_idempotency_key_of_two_projects_is_two(request_of_a: str, guarded: TestClient, tmp_path: Path) -> None:
    _, _, key = person(project("b"), "operator", "requester")
    with calling(guarded, key):
        made = ask(guarded, register(guarded, tmp_path), 1, key="same")
    assert made.status_code == 202
    assert made.json()["id"] != request_of_a


@pytest.mark.parametrize("name", ["a", HOME])
def test_a_retry_that_is_repeated_with_its_key_is_made_once_in_every_project(
    guarded: TestClient, tmp_path: Path, name: str
) -> None:
    _, _, key = person(project(name), "operator", "requester")
    with calling(guarded, key):
        request_id = ask(guarded, register(guarded, tmp_path), 1).json()["id"]
        guarded.post(f"/unlearn-requests/{request_id}/cancel")
        first, second = (
            guarded.post(f"/unlearn-requests/{request_id}/retry", headers={"Idempotency-Key": "k"}) for _ in range(2)
        )
    assert (first.status_code, second.json()["id"]) == (202, first.json()["id"])


def test_a_stream_is_written_in_its_reader_s_project(request_of_a: str, guarded: TestClient) -> None:
    emit(request_of_a, "progress", done=1)
    move(request_of_a, "cancelled")
    stream = {"Accept": "text/event-stream"}
    _, _, ours = person("a", "requester")
    with calling(guarded, ours):
        assert "progress" in guarded.get(f"/unlearn-requests/{request_of_a}/events", headers=stream).text
    _, _, theirs = person(project("b"), "requester", "auditor")
    with calling(guarded, theirs):
        assert guarded.get(f"/unlearn-requests/{request_of_a}/events", headers=stream).status_code == 404
        assert request_of_a not in guarded.get("/audit/export", headers={"Accept": "text/csv"}).text
