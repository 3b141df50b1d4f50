"""The ledger's tree in both databases: grown with the entries, guarded like them, and carried over from older schemas."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.exc import DBAPIError

from service import db, migrate
from service.audit import ledger, repository
from service.audit.leaves import LOCAL, ModelRegistered
from service.audit.merkle import is_extension
from service.tables import LedgerCheckpoint, LedgerEntry, LedgerHead, LedgerNode
from service.verifier.merkle import EMPTY, Frontier, leaf_hash, root_of_inclusion
from tests.architecture.test_schema import clear
from tests.service.audit import logs

FACT = ModelRegistered(family="ddpm", dataset_id="d", version_id="v", digest="0" * 64)


def grow(count: int, **more: Any) -> None:
    for _ in range(count):
        with db.transaction() as session:
            ledger.append(session, FACT, actor=LOCAL, **more)


def leaves() -> list[bytes]:
    with db.reading() as session:
        return [leaf_hash(leaf or b"") for leaf in session.scalars(select(LedgerEntry.leaf).order_by(LedgerEntry.seq))]


def test_stored_subtrees_are_those_of_the_entries(database: str) -> None:
    """Every node, the head's cache, and every proof at every size, from entries that several writers appended."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda _: grow(6), range(4)))
    tree, expected, roots = Frontier(), {}, [EMPTY]
    for leaf in leaves():
        expected |= {(level, idx): value for level, idx, value in tree.append(leaf)}
        roots.append(tree.root())
    with db.reading() as session:
        stored = session.execute(select(LedgerNode.level, LedgerNode.idx, LedgerNode.hash))
        assert {(level, idx): value for level, idx, value in stored} == expected
        head = session.scalars(select(LedgerHead)).one()
        assert (head.size, head.frontier) == (24, b"".join(tree.hashes))
        for size in range(25):
            assert repository.root(session, size) == roots[size]
            assert is_extension(size, roots[size], 24, roots[24], repository.consistency(session, size, 24))
        for seq, leaf in enumerate(leaves()):
            assert root_of_inclusion(seq, 24, leaf, repository.inclusion(session, seq, 24)) == roots[24]
        with pytest.raises(LookupError):
            repository.root(session, 25)


@pytest.mark.parametrize("statement", ["UPDATE {t} SET {c} = {c}", "DELETE FROM {t}"])
def test_nodes_and_checkpoints_are_append_only(database: str, statement: str) -> None:
    grow(2)
    with db.transaction() as session:
        session.add(LedgerCheckpoint(log_id=1, size=2, created_at=db.now(session), note="x"))
    for table, column in (("ledger_node", "hash"), ("ledger_checkpoint", "note")):
        with pytest.raises(DBAPIError, match="append-only"), db.transaction() as session:
            session.execute(text(statement.format(t=table, c=column)))


def test_an_entry_without_its_node_does_not_move_the_head(database: str) -> None:
    grow(1)
    with db.transaction() as session:
        (entry,) = session.scalars(select(LedgerEntry))
        copy = {c.key: getattr(entry, c.key) for c in LedgerEntry.__table__.columns} | {"seq": 1}
        session.execute(LedgerEntry.__table__.insert().values(**copy))
        with pytest.raises(DBAPIError, match="moves one forward"):
            session.execute(text("UPDATE ledger_head SET size = 2"))
        session.rollback()


OLD_ENTRY = (
    "INSERT INTO ledger_entry (log_id, seq, leaf, leaf_hash, action, outcome, at, tenant, actor) "
    "VALUES (1, :seq, :leaf, :hash, 'model.registered', 'succeeded', :at, 't', 'a')"
)
OLD_ENTRY_OF_REQUEST = OLD_ENTRY.replace("actor)", "actor, request_id, request_ordinal)").replace(
    "'a')", "'a', 'ureq_old', :ordinal)"
)


def test_entries_of_an_older_schema_get_their_tree(database: str) -> None:
    clear(database)
    command.upgrade(migrate._config(database), "0003")
    for seq in range(11):
        leaf = b"%d" % seq
        with db.transaction() as session:
            told = {"seq": seq, "leaf": leaf, "hash": leaf_hash(leaf), "at": "2026-11-21 10:00:00"}
            told |= {"ordinal": seq - 9} if seq >= 9 else {}
            session.execute(text(OLD_ENTRY_OF_REQUEST if seq >= 9 else OLD_ENTRY), told)
            session.execute(text("UPDATE ledger_head SET size = size + 1"))
    migrate.upgrade()
    grow(1)
    grow(1, request_id="ureq_old")  # its chain goes on where the older release left it
    with db.reading() as session:
        last = session.get_one(LedgerEntry, (1, 12))
    assert (last.request_ordinal, json.loads(last.leaf or b"")["request"]["prev"]) == (2, leaf_hash(b"10").hex())
    tree = Frontier()
    for leaf in leaves():
        tree.append(leaf)
    with db.reading() as session:
        assert repository.root(session, 13) == tree.root()
        assert session.scalars(select(LedgerHead.frontier)).one() == b"".join(tree.hashes)
    for statement in ("UPDATE ledger_entry SET actor = 'b'", "DELETE FROM ledger_entry", "UPDATE ledger_head SET size = 3"):
        with pytest.raises(DBAPIError, match=r"append-only|forward"), db.transaction() as session:
            session.execute(text(statement))


@pytest.fixture
def login(database: str) -> Any:
    """A login that is a member of a role, and nothing else."""

    def make(role: str) -> Any:
        name = f"{role}_{make_url(database).database}"
        with db.transaction() as session:
            session.execute(text(f"CREATE ROLE {name} LOGIN IN ROLE {role}"))
        made.append(name)
        return create_engine(make_url(database).set(username=name))

    if "postgresql" not in database:
        pytest.skip("SQLite has no roles: whoever may open the file may write it")
    made: list[str] = []
    yield make
    with db.transaction() as session:
        for name in made:
            session.execute(text(f"DROP ROLE {name}"))


REFUSED = (
    "INSERT INTO ledger_node VALUES (1, 0, 1, 'x')",
    "UPDATE ledger_entry SET actor = 'b'",
    "DELETE FROM ledger_entry",
    "TRUNCATE ledger_entry",
    "UPDATE ledger_head SET size = 0",
    "ALTER TABLE ledger_entry DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "UPDATE alembic_version SET version_num = '0001'",
)


def test_the_services_own_login_appends_and_keeps_checkpoints_and_no_more(
    database: str, login: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = login("expunge_app")
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    owner = db.make_engine(database)
    db.reset()
    grow(3)
    row = logs.notary().round()
    assert row is not None
    with db.reading() as session:
        assert repository.size(session) == row.size == 4
    for statement in REFUSED:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", database)
    db.reset()
    owner.dispose()


def test_an_auditor_reads_the_ledger_alone(login: Any) -> None:
    engine = login("expunge_auditor")
    with engine.begin() as connection:
        assert connection.execute(text("SELECT size FROM ledger_head")).scalar_one() == 0
    for statement in (*REFUSED, "SELECT * FROM unlearn_request", "SELECT * FROM ledger_private",
                      "SELECT expunge_ledger_append(1, 0, 'x', 'a', 'b', now(), 't', 'a', NULL, NULL, NULL)"):  # fmt: skip
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


def test_not_even_a_superuser_in_replica_mode_passes_the_triggers(database: str) -> None:
    if "postgresql" not in database:
        pytest.skip("PostgreSQL alone has replica mode")
    grow(1)
    for statement in ("UPDATE ledger_entry SET actor = 'b'", "TRUNCATE ledger_entry", "DELETE FROM ledger_node"):
        with db.transaction() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            with pytest.raises(DBAPIError, match="append-only"):
                session.execute(text(statement))
            session.rollback()
