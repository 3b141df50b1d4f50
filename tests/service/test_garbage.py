"""Garbage is what is old and what no row names, and nothing else, whoever publishes meanwhile."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from service import cli, db, failpoints, garbage
from service.requests import leases
from service.storage import Store, get_store
from service.tables import Attempt, CheckpointFile, LedgerEntry, ModelVersion, new_id
from tests.worker.conductor import house as h
from worker.conductor import pipeline

WEEK = timedelta(days=7)
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, database: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The deployment's own store, of each kind."""
    if request.param == "s3":
        monkeypatch.setenv("EXPUNGE_STORE_URL", f"s3://{request.getfixturevalue('s3_bucket')}/store")
        monkeypatch.setenv("EXPUNGE_STORE_ENDPOINT_URL", request.getfixturevalue("s3_url"))
        db.reset()
    return get_store()


@pytest.fixture
def put(store: Store, tmp_path: Path) -> Callable[[bytes], str]:
    def put(content: bytes) -> str:
        (tmp_path / "scratch").write_bytes(content)
        return store.put(tmp_path / "scratch").sha256

    return put


def later(days: float = 8.0) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def test_old_and_unnamed_goes_young_stays(store: Store, put: Callable[[bytes], str]) -> None:
    orphan = put(b"nobody names me")
    assert garbage.collect(store, older=WEEK) == garbage.Collected()
    assert garbage.collect(store, older=WEEK, at=later(), dry_run=True) == garbage.Collected(objects=1, size=15)
    assert store.exists(orphan)
    assert garbage.collect(store, older=WEEK, at=later()) == garbage.Collected(objects=1, size=15)
    assert not store.exists(orphan)


def test_what_never_got_a_name_goes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"half")
    store._objects.write(tmp_path / "half", "incoming/of-a-worker-that-died")
    assert garbage.collect(store, older=WEEK).temporaries == 0
    assert garbage.collect(store, older=WEEK, at=later()) == garbage.Collected(temporaries=1, size=4)
    assert list(store._objects.list("incoming/")) == []


def test_nothing_that_a_row_names_goes(store: Store, put: Callable[[bytes], str], tmp_path: Path) -> None:
    """A whole run, published: its files and its pictures."""
    house = h.furnish(tmp_path / "house")
    assert pipeline.run(h.ask(house, 3), h.make_room()) == "succeeded"
    here = {digest for digest, _ in get_store().objects()}
    orphan = put(b"orphan")
    assert garbage.collect(store, older=WEEK, at=later()).objects == 1
    assert {digest for digest, _ in get_store().objects()} == here - {orphan}
    with db.reading() as session:
        assert set(session.scalars(select(CheckpointFile.sha256))) <= here


def _claimed(tmp_path: Path, digest: str) -> leases.Lease:
    request_id = h.ask(h.furnish(tmp_path / "house"))
    with db.transaction() as session:
        lease = leases.claim(session, request_id, owner="w", lease_seconds=60)
        assert lease is not None
    with db.transaction() as session:
        garbage.claim(session, lease, [digest])
    return lease


def test_what_a_running_attempt_claimed_stays_and_goes_once_it_failed_with_an_entry(
    store: Store, put: Callable[[bytes], str], tmp_path: Path
) -> None:
    digest = put(b"a candidate")
    lease = _claimed(tmp_path, digest)
    assert garbage.collect(store, older=WEEK, at=later()).objects == 0
    with db.transaction() as session:
        session.get_one(Attempt, (lease.request_id, lease.fence)).ended_at = db.now(session)
    assert garbage.collect(store, older=WEEK, at=later(), dry_run=True).objects == 1
    assert "store.files.given_up" not in h.actions(lease.request_id)
    assert garbage.collect(store, older=WEEK, at=later()).objects == 1
    assert h.facts(lease.request_id, "store.files.given_up") == {"fence": lease.fence, "files": [digest]}


def test_a_deletion_that_failed_is_said_once_and_done_later(
    store: Store, put: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(b"a candidate")
    lease = _claimed(tmp_path, digest)
    with db.transaction() as session:
        session.get_one(Attempt, (lease.request_id, lease.fence)).ended_at = db.now(session)
    monkeypatch.setenv("EXPUNGE_ALLOW_FAILPOINTS", "1")
    monkeypatch.setenv("EXPUNGE_FAILPOINTS", "store.delete=refused*1")
    failpoints.reset()
    db.reset()
    assert garbage.collect(store, older=WEEK, at=later()) == garbage.Collected(failed=1)
    assert garbage.collect(store, older=WEEK, at=later()) == garbage.Collected(objects=1, size=11)
    assert len(h.all_facts(lease.request_id, "store.files.given_up")) == 1


def test_a_claim_between_look_and_deletion_keeps_the_object(
    store: Store, put: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(b"orphan, for now")
    looked = garbage._unnamed

    def look_and_be_overtaken(*arguments: object) -> dict[str, object]:
        found = looked(*arguments)  # type: ignore[arg-type]
        _claimed(tmp_path, digest)
        return found

    monkeypatch.setattr(garbage, "_unnamed", look_and_be_overtaken)
    assert garbage.collect(store, older=WEEK, at=later()).objects == 0
    assert store.exists(digest)


def test_a_claim_during_a_deletion_waits_and_the_file_is_written_again(
    store: Store, put: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = put(b"orphan, for now")
    request_id = h.ask(h.furnish(tmp_path / "house"))
    with db.transaction() as session:
        lease = leases.claim(session, request_id, owner="w", lease_seconds=60)
        assert lease is not None
    order: list[str] = []
    claiming = threading.Event()

    def claim() -> None:
        claiming.set()
        with db.transaction() as session:
            garbage.claim(session, lease, [digest])
        order.append("claimed")
        put(b"orphan, for now")

    worker = threading.Thread(target=claim)
    delete = store.delete

    def slowly(wanted: str) -> None:
        worker.start()
        claiming.wait(5)
        worker.join(0.5)  # it has every chance to overtake us here
        delete(wanted)
        order.append("deleted")

    monkeypatch.setattr(store, "delete", slowly)
    assert garbage.collect(store, older=WEEK, at=later()).objects == 1
    worker.join(10)
    assert order == ["deleted", "claimed"]
    assert store.exists(digest)


@pytest.mark.parametrize("question", [1, 2, 3, 4])
def test_what_is_published_between_two_questions_is_named(tmp_path: Path, question: int) -> None:
    """PostgreSQL's statements each see what is committed by then: who ends is first among runs, then among results."""
    digest = hashlib.sha256(b"weights").hexdigest()
    lease = _claimed(tmp_path, digest)
    asked = 0

    def publish() -> None:
        with db.transaction() as session:
            session.get_one(Attempt, (lease.request_id, lease.fence)).ended_at = db.now(session)
            base = session.scalars(select(ModelVersion)).one()
            columns = {c.key: getattr(base, c.key) for c in ModelVersion.__mapper__.column_attrs}
            files = [{"path": "w", "size": 7, "sha256": digest}]
            session.add(ModelVersion(**{**columns, "id": new_id("mver"), "number": 2, "parent_id": base.id, "files": files}))

    with db.reading() as session:
        execute = session.execute

        def execute_and_be_overtaken(*arguments: Any) -> Any:
            nonlocal asked
            answer, asked = execute(*arguments), asked + 1
            if asked == question:
                publish()
            return answer

        session.execute = execute_and_be_overtaken  # type: ignore[method-assign,assignment]
        assert garbage._is_named(session, digest)


def test_an_object_written_again_after_the_look_stays(
    store: Store, put: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, before = put(b"orphan"), datetime.now(UTC) + timedelta(seconds=2)
    threading.Event().wait(3.1)
    put(b"orphan")  # touched: younger than what the look saw
    assert garbage._delete(store, digest, before) is False
    assert store.exists(digest)


def test_a_second_deployment_stops_every_deletion(store: Store, put: Callable[[bytes], str]) -> None:
    orphan = put(b"perhaps theirs")
    store.sign_in("somebody-else")
    for dry_run in (True, False):
        with pytest.raises(garbage.SharedStore):
            garbage.collect(store, older=WEEK, at=later(), dry_run=dry_run)
    assert store.exists(orphan)


def test_the_command_says_what_it_would_do_and_does_it(store: Store, put: Callable[[bytes], str]) -> None:
    orphan = put(b"orphan")
    run = CliRunner().invoke
    said = json.loads(run(cli.app, ["gc", "--dry-run", "--json"]).stdout)
    assert (said["dry_run"], said["objects"]) == (True, 0)
    threading.Event().wait(1.1)
    assert json.loads(run(cli.app, ["gc", "--older-than", "0m", "--dry-run", "--json"]).stdout)["objects"] == 1
    assert store.exists(orphan)
    assert "deleted 1 objects" in run(cli.app, ["gc", "--older-than", "0m"]).stdout
    assert not store.exists(orphan)
    assert run(cli.app, ["gc", "--older-than", "soon"]).exit_code == 2


def test_the_ledger_never_names_what_belonged_to_no_request(store: Store, put: Callable[[bytes], str]) -> None:
    put(b"orphan")
    garbage.collect(store, older=WEEK, at=later())
    with db.reading() as session:
        assert session.scalars(select(LedgerEntry.action)).all() == []
    assert hashlib.sha256(b"orphan").hexdigest() not in {digest for digest, _ in store.objects()}
