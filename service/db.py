"""The database: one engine per process, one request or one task = one transaction, and the database's own clock.

SQLite and PostgreSQL run the same queries. Where they differ is here and in the migrations, nowhere else.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import DateTime, Dialect, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import sessionmaker
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from service.config import get_settings

SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=15000",
    "PRAGMA foreign_keys=ON",
    "PRAGMA recursive_triggers=ON",  # else INSERT OR REPLACE deletes a row without firing its DELETE trigger
    "PRAGMA secure_delete=ON",
)


BELIEVED_SECONDS = 1.0
"""A connection of PostgreSQL that was used so recently is not asked whether it is still there."""


MOST_CONNECTIONS = 40
"""Of the processes of one API together; as many as the threads that one has for requests."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time: timestamptz on PostgreSQL, ISO text with microseconds on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("expected an aware datetime, got a naive one")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Clock(FunctionElement[datetime]):
    """The database's clock as a column, so that it can be read with rows that are wanted anyway."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(Clock, "sqlite")
def _clock_sqlite(_element: Clock, _compiler: Any, **_options: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


@compiles(Clock, "postgresql")
def _clock_postgresql(_element: Clock, _compiler: Any, **_options: Any) -> str:
    return "clock_timestamp()"


_CLOCK = select(Clock())


def make_engine(url: str, *, processes: int = 1) -> Engine:
    """An engine with our rules for each database; it connects on first use.

    SQLite: every write transaction is BEGIN IMMEDIATE, since a deferred one that upgrades fails at once with "database is
    locked", whatever the busy timeout. PostgreSQL: short statement and lock limits, so that a stuck peer is an error, not a
    hang.

    Args:
        processes: that share what connections there are: a server has a hundred as a rule.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds people's reasons
        engine = create_engine(
            parsed,
            connect_args={"check_same_thread": False},
            pool_size=10,
            max_overflow=30,
            hide_parameters=True,
        )
        _sqlite_rules(engine)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    options = "-c statement_timeout=5000 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=10000"
    most = max(MOST_CONNECTIONS // processes, 5)
    engine = create_engine(
        parsed,
        hide_parameters=True,  # an error's text ends in a log, and a parameter may be somebody's reason
        pool_size=min(10, most),
        max_overflow=most - min(10, most),
        connect_args={"options": options, "connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5},
    )
    _ping_after_rest(engine)
    return engine


def _ping_after_rest(engine: Engine) -> None:
    """A connection that has rested is asked whether it is still good, and one that was used just now is believed: under load
    the question is a tenth of all ways to the server. Should the server have gone in between, the error says so, and SQLAlchemy
    lets go of all connections that are as old.
    """

    @event.listens_for(engine, "checkin")
    def _returned(_connection: Any, record: Any) -> None:
        record.info["returned"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _taken(connection: Any, record: Any, _proxy: Any) -> None:
        returned = record.info.get("returned")  # None: it is new
        if returned is None or time.monotonic() - returned < BELIEVED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error


def _sqlite_rules(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in SQLITE_PRAGMAS:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        reading = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@lru_cache(maxsize=1)
def get_engine() -> Engine:
    """The process's engine."""
    return make_engine(get_settings().database, processes=get_settings().api_workers)


@lru_cache(maxsize=1)
def _writers() -> sessionmaker[OrmSession]:
    return sessionmaker(get_engine(), expire_on_commit=False)


@lru_cache(maxsize=1)
def _readers() -> sessionmaker[OrmSession]:
    return sessionmaker(get_engine().execution_options(read_only=True), expire_on_commit=False)


def reset() -> None:
    """Forget the process's engine and settings: for tests that change the environment."""
    if get_engine.cache_info().currsize:
        get_engine().dispose()
    for cached in (get_engine, _writers, _readers, get_settings):
        cached.cache_clear()


@contextmanager
def transaction() -> Iterator[OrmSession]:
    """One write transaction: commits at the end, rolls back on any error."""
    with _writers().begin() as session:
        yield session


@contextmanager
def reading() -> Iterator[OrmSession]:
    """One read: takes no write lock on SQLite."""
    with _readers()() as session:
        yield session


@contextmanager
def snapshot() -> Iterator[OrmSession]:
    """Many reads of one moment: what others commit meanwhile is not seen, and nobody waits for it.

    PostgreSQL: REPEATABLE READ, and a minute's patience with whoever does something slow between two reads. SQLite: one read
    transaction, which sees the write-ahead log as it was; the log cannot be emptied until it ends, so keep it short.
    """
    engine = get_engine().execution_options(read_only=True)
    if engine.dialect.name != "sqlite":
        engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with OrmSession(engine, expire_on_commit=False) as session:
        if engine.dialect.name != "sqlite":
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        yield session


def now(session: OrmSession) -> datetime:
    """The database's clock, UTC, microseconds (milliseconds on SQLite). Leases compare with no other clock."""
    at: datetime = session.connection().execute(_CLOCK).scalar_one()  # of no row: the session has nothing to add to it
    return at
