"""One reader for all who follow: no gap, nothing twice, and nobody's thread or connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from service import db, tenancy
from service.requests import stream, tailer
from service.requests.tailer import GIVE_UP_SECONDS, SETTLE_SECONDS, Frontier, Tailer, Told
from service.tables import RequestEvent, UnlearnRequest
from tests.support import ask, emit, move, register

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def request_id(client: TestClient, tmp_path: Path) -> str:
    """A request that runs; its event `created` has the id 1."""
    made = ask(client, register(client, tmp_path), 1).json()["id"]
    move(made, "running")
    return str(made)


def ids(frames: list[bytes]) -> list[int]:
    return [int(f.split(b"\n", 1)[0].removeprefix(b"id: ")) for f in frames if f.startswith(b"id: ")]


async def collect(frames: AsyncIterator[bytes], into: list[bytes]) -> None:
    async for frame in frames:
        into.append(frame)


async def until(true: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


# ----------------------------------------------------------------------------------------------------------- the frontier


def advance(frontier: Frontier, seen: list[int], *, at: float, oldest: int = 0, horizon: int = 0) -> list[int]:
    if missing := frontier.missing(seen):
        frontier.notice(missing, at=at, horizon=horizon)
    return seen[: frontier.advance(seen, at=at, oldest=oldest)]


def test_nothing_passes_a_missing_id_that_may_still_come() -> None:
    frontier = Frontier(10)
    assert advance(frontier, [11, 13, 14], at=0.0, horizon=700) == [11]
    assert advance(frontier, [13, 14], at=5.0, oldest=699) == []
    assert advance(frontier, [12, 13, 14], at=6.0, oldest=699) == [12, 13, 14]
    assert (frontier.id, frontier.gaps) == (14, [])


def test_an_id_that_was_rolled_back_is_passed_once_nobody_is_left_who_could_bring_it() -> None:
    frontier = Frontier(10)
    assert advance(frontier, [12], at=0.0, horizon=700) == []
    assert advance(frontier, [12], at=SETTLE_SECONDS / 2, oldest=700) == []
    assert advance(frontier, [12], at=SETTLE_SECONDS, oldest=700) == [12]


def test_somebody_else_s_endless_transaction_holds_nobody_up_for_ever() -> None:
    frontier = Frontier(10)
    advance(frontier, [12], at=0.0, horizon=700)
    assert advance(frontier, [12], at=GIVE_UP_SECONDS - 1, oldest=3) == []
    assert advance(frontier, [12], at=GIVE_UP_SECONDS, oldest=3) == [12]


def test_part_of_a_gap_that_fills_does_not_begin_the_wait_anew() -> None:
    frontier = Frontier(10)
    advance(frontier, [14], at=0.0, horizon=700)
    assert advance(frontier, [11, 14], at=SETTLE_SECONDS, oldest=700) == [11, 14]


def test_ids_that_become_visible_out_of_order_are_handed_on_in_order(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL: a transaction that drew its id first commits last. SQLite has one writer, so there is nothing to hold."""
    monkeypatch.setattr(tailer, "SETTLE_SECONDS", 0.0)
    frontier = tailer.begin()
    if db.get_engine().dialect.name == "sqlite":
        first, second = emit(request_id, "progress"), emit(request_id, "progress")
        assert [told.event.id for told in tailer.look(frontier)[0]] == [first, second]
        return
    with db.get_engine().connect() as slow:
        slow.execute(
            text("INSERT INTO request_event (request_id, type, data, at) VALUES (:r, 'unlearning_request.slow', '{}', now())"),
            {"r": request_id},
        )
        late = emit(request_id, "progress")
        assert tailer.look(frontier)[0] == []
        assert tailer.look(frontier)[0] == []
        slow.commit()
    assert [told.event.type.partition(".")[2] for told in tailer.look(frontier)[0]] == ["slow", "progress"]
    with db.get_engine().connect() as gone:
        gone.execute(text("SELECT nextval(pg_get_serial_sequence('request_event', 'id'))"))
        gone.rollback()
    last = emit(request_id, "progress")
    assert tailer.look(frontier)[0] == []
    assert [told.event.id for told in tailer.look(frontier)[0]] == [last] == [late + 2]


# ---------------------------------------------------------------------------------------------------------- the listeners


def test_replay_then_live_without_gap_or_double(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are written all the while: before the listener comes, while it reads the table, and after."""
    monkeypatch.setattr(tailer, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tailer, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(stream, "BATCH", 3)
    written = [emit(request_id, "progress", n=n) for n in range(8)]
    all_there = threading.Event()

    def write() -> None:
        for n in range(30):
            written.append(emit(request_id, "progress", n=n))
        all_there.wait(60)  # the request itself goes on running: the last event ends only those streams that hear it live
        written.append(emit(request_id, "failed"))

    async def main() -> list[list[int]]:
        source = Tailer()
        heard: list[list[bytes]] = [[] for _ in range(4)]
        writer = threading.Thread(target=write)
        writer.start()
        tasks = []
        for into in heard:
            tasks.append(asyncio.create_task(collect(stream.follow(source, request_id, written[2]), into)))
            await asyncio.sleep(0.05)
        await until(lambda: all(ids(into) for into in heard))
        all_there.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        writer.join()
        assert not source.running
        return [ids(into) for into in heard]

    assert asyncio.run(main()) == [written[3:]] * 4


def test_listeners_cost_neither_threads_nor_connections(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_crowd(request_id, monkeypatch, 40))


@pytest.mark.slow
def test_five_hundred_listeners_in_one_process(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_crowd(request_id, monkeypatch, 500))


async def _crowd(request_id: str, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(tailer, "POLL_SECONDS", 0.05)
    looks: list[int] = []
    look = tailer.look
    monkeypatch.setattr(tailer, "look", lambda frontier: looks.append(1) or look(frontier))
    source, heard = Tailer(), [[] for _ in range(count)]  # type: ignore[var-annotated]
    first = [asyncio.create_task(collect(stream.follow(source, request_id, 0), heard[0]))]
    await until(lambda: ids(heard[0]) == [1])
    tasks = [asyncio.create_task(collect(stream.follow(source, request_id, 0), into)) for into in heard[1:]]
    await until(lambda: all(ids(into) == [1] for into in heard), 60.0)
    await asyncio.sleep(0.2)
    threads, before, began = threading.active_count(), len(looks), time.monotonic()
    most = 0
    while time.monotonic() - began < 1.0:
        most = max(most, db.get_engine().pool.checkedout())  # type: ignore[attr-defined]
        await asyncio.sleep(0.005)
    assert most <= 1  # the reader's
    assert len(looks) - before <= 1.0 / 0.05 + 2  # one reader, however many listen
    assert threading.active_count() <= threads
    last = await asyncio.to_thread(emit, request_id, "succeeded")
    await asyncio.wait_for(asyncio.gather(*first, *tasks), 60)
    assert [ids(into) for into in heard] == [[1, last]] * count
    assert not source.running


def test_a_slow_listener_is_dropped_and_the_others_hear_on(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tailer, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tailer, "QUEUE", 5)

    async def main() -> None:
        source, heard = Tailer(), []  # type: ignore[var-annotated]
        slow = stream.follow(source, request_id, 0)
        got = [await anext(slow), await anext(slow)]
        quick = asyncio.create_task(collect(stream.follow(source, request_id, 0), heard))
        await until(lambda: ids(heard) == [1])
        written = []
        for n in range(12):
            written.append(await asyncio.to_thread(emit, request_id, "progress", n=n))
            await until(lambda: ids(heard)[-1] == written[-1])
        got += [frame async for frame in slow]  # it ends by itself
        assert ids(got) == [1, *written[: len(ids(got)) - 1]]
        assert len(ids(got)) < 13
        again: list[bytes] = []  # its client comes back, and has missed nothing
        back = asyncio.create_task(collect(stream.follow(source, request_id, ids(got)[-1]), again))
        await until(lambda: len(ids(got) + ids(again)) == 13)
        assert ids(got) + ids(again) == [1, *written]
        for task in (quick, back):
            task.cancel()
        await asyncio.gather(quick, back, return_exceptions=True)
        await until(lambda: not source.running)

    asyncio.run(main())


def test_a_listener_of_a_project_hears_of_its_own_requests_alone(request_id: str) -> None:
    with tenancy.acting("elsewhere"):
        theirs = tailer.Listener(None, tenancy.project(), 0)
    own, all_of_them = tailer.Listener(None, "default", 0), tailer.Listener(None, None, 0)
    with db.reading() as session:
        project = session.get_one(UnlearnRequest, request_id).project_id
        event = tailer.shown(session.get_one(RequestEvent, 1))
    for listener in (theirs, own, all_of_them):
        listener.hand(Told(project, event))
    assert [one.queue.qsize() for one in (theirs, own, all_of_them)] == [0, 1, 1]


def test_what_the_first_listener_may_see_is_no_limit_for_the_others(request_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tailer, "POLL_SECONDS", 0.01)

    async def main() -> None:
        source, heard = Tailer(), []  # type: ignore[var-annotated]
        with tenancy.acting("elsewhere"):
            theirs = asyncio.create_task(collect(stream.follow(source, None, None), []))
        await until(lambda: source.running)
        ours = asyncio.create_task(collect(stream.follow(source, None, 0), heard))
        await until(lambda: ids(heard) == [1])
        last = await asyncio.to_thread(emit, request_id, "progress")
        await until(lambda: ids(heard) == [1, last])
        for task in (theirs, ours):
            task.cancel()
        await asyncio.gather(theirs, ours, return_exceptions=True)

    asyncio.run(main())


def test_the_list_of_all_events_is_in_pages_the_newest_first(client: TestClient, request_id: str) -> None:
    written = [1, *(emit(request_id, "progress", n=n) for n in range(4))]
    first = client.get("/events?limit=3").json()
    rest = client.get(f"/events?limit=3&after={first['next_cursor']}").json()
    assert [e["id"] for e in first["data"] + rest["data"]] == written[::-1]
    assert {e["request_id"] for e in first["data"]} == {request_id}
