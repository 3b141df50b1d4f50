"""The notary: signs what is due, asks whoever may have seen it, keeps the result, and waits for nobody."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from service import db
from service.audit import checkpoints, notary, repository, trust
from service.audit.logsigner import Stale
from service.audit.notary import Notary
from service.config import get_settings
from service.sockets import SignerUnavailable, SigningRefused
from service.tables import LedgerCheckpoint, LedgerEntry
from service.verifier.merkle import Frontier, leaf_hash
from service.verifier.note import Checkpoint, Key, Note, Policy
from tests.service.audit import logs
from tests.service.audit.logs import Network, a_witness, grow


def kept() -> list[LedgerCheckpoint]:
    with db.reading() as session:
        return list(checkpoints.every(session, policy()))


def size() -> int:
    with db.reading() as session:
        return repository.size(session)


def policy() -> Policy:
    return trust.policy(get_settings())


def later(monkeypatch: pytest.MonkeyPatch, **by: float) -> None:
    """Let the database's clock, as the notary reads it, run ahead."""
    true = db.now
    monkeypatch.setattr(notary.db, "now", lambda session: true(session) + timedelta(**by))


def witnessed(folder: Path, network: Network, *names: str, quorum: str, monkeypatch: pytest.MonkeyPatch) -> Notary:
    """A notary of a ledger with witnesses; what they may do is up to the test."""
    (key,) = logs.log_signer().about().keys
    made = [a_witness(network, name, key, folder) for name in names]
    lines = [f"witness {w._name.partition('.')[0]} {w.key} http://{w._name}" for w in made]
    (folder / "witnesses.txt").write_text("\n".join([*lines, quorum, ""]))
    monkeypatch.setenv("EXPUNGE_LEDGER_WITNESSES", str(folder / "witnesses.txt"))
    get_settings.cache_clear()
    return logs.notary(network)


def test_the_ledger_is_signed_with_the_entry_that_names_its_key(database: str) -> None:
    grow(3)
    row = logs.notary().round()
    assert row is not None
    found = policy().checkpoint(row.note)
    assert found.size == row.size == size() == 4
    tree = Frontier()
    with db.reading() as session:
        entries = list(session.scalars(select(LedgerEntry).order_by(LedgerEntry.seq)))
    for entry in entries:
        tree.append(leaf_hash(entry.leaf or b""))
    assert found.root == tree.root()
    told = json.loads(entries[-1].leaf or b"")
    assert (told["type"], told["public"]) == ("key.added", {"use": "ledger", "vkey": str(policy().logs[0])})


def test_what_is_due(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = logs.notary()
    assert mine.round() is not None
    grow(1)
    assert mine.round() is None  # within the minute
    assert mine.round(hurry=True) is not None  # but for a publication
    assert mine.round(hurry=True) is None  # nothing new
    grow(1)
    with monkeypatch.context() as patch:
        later(patch, seconds=61)
        assert mine.round() is not None
    with monkeypatch.context() as patch:
        later(patch, seconds=3600)
        assert mine.round() is None  # nothing new
        later(patch, days=1)
        assert mine.round() is not None  # daily always
    assert [row.size for row in kept()] == [1, 2, 3, 3]


def test_a_ledger_that_was_restored_from_a_backup_is_not_signed(database: str, caplog: pytest.LogCaptureFixture) -> None:
    mine = logs.notary()
    grow(4)
    mine.round(hurry=True)
    signer: Any = mine._signer
    state = signer._folder.state()
    signer._folder.remember(type(state)(state.origin, state.size + 5, state.root))
    grow(1)
    with pytest.raises(SigningRefused, match="its end is missing"):
        mine.round(hurry=True)
    assert "checkpoint.refused" in caplog.messages
    assert [row.size for row in kept()] == [5]


def test_a_second_notary_starts_again_where_the_signer_is(database: str) -> None:
    first, second = logs.notary(), logs.notary()
    first.round()
    grow(3)

    signer: Any = second._signer
    about = signer.about
    signer.about = lambda: (about(), first.round(hurry=True))[0]  # it loses the race
    grow(1)
    row = second.round(hurry=True)
    assert row is not None
    assert [one.size for one in kept()] == [1, 5, 5]


def test_a_signer_that_is_always_elsewhere_is_given_up(database: str) -> None:
    mine = logs.notary()
    mine.round()
    grow(1)
    signer: Any = mine._signer

    def stale(*_: Any) -> str:
        raise Stale(1)

    signer.sign = stale
    with pytest.raises(Stale):
        mine.round(hurry=True)


def test_rotation_is_in_the_ledger_and_makes_a_checkpoint_due(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = logs.notary()
    mine.round()
    old, new = logs.rotate(mine)
    with monkeypatch.context() as patch:
        later(patch, seconds=301)
        row = mine.round()
    assert row is not None
    assert len(Note.parse(row.note).signatures) == 2
    for key in (old, new):
        assert Policy.parse(f"log {key}\nquorum none\n").checkpoint(row.note).size == 2
    logs.retire(mine, old)
    grow(1)
    row = mine.round(hurry=True)
    assert row is not None
    assert Policy.parse(f"log {new}\nquorum none\n").checkpoint(row.note).size == 4
    with db.reading() as session:
        chosen = select(LedgerEntry).where(LedgerEntry.action.startswith("key.")).order_by(LedgerEntry.seq)
        told = [(e.action, json.loads(e.leaf or b"")["public"]["vkey"]) for e in session.scalars(chosen)]
    assert told == [("key.added", str(old)), ("key.added", str(new)), ("key.retired", str(old))]
    assert f"# retired {old}" in trust.policy_text(get_settings())


def test_witnesses_cosign_and_the_policy_says_how_many_it_takes(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network()
    mine = witnessed(
        tmp_path, network, "a.example", "b.example", "c.example", quorum="group G 2 a b c\nquorum G", monkeypatch=monkeypatch
    )
    network.down.add("b.example")
    grow(2)
    row = mine.round()
    assert row is not None
    assert policy().checkpoint(row.note).size == 3
    assert len(Note.parse(row.note).signatures) == 3
    network.down.clear()
    grow(2)
    row = mine.round(hurry=True)
    assert row is not None
    assert len(Note.parse(row.note).signatures) == 4
    network.asked.clear()
    grow(1)
    mine.round(hurry=True)
    assert network.asked == ["a.example", "b.example", "c.example"]  # each remembered: no 409 on the way
    logs.notary(network)._witnesses.seen.clear()
    network.asked.clear()
    grow(1)
    row = logs.notary(network).round(hurry=True)  # after a restart it asks, and is told the size
    assert row is not None
    assert len(Note.parse(row.note).signatures) == 4
    assert network.asked == [name for name in ("a.example", "b.example", "c.example") for _ in range(2)]


def test_witnesses_that_fail_block_nothing_and_are_asked_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network()
    mine = witnessed(tmp_path, network, "a.example", quorum="quorum a", monkeypatch=monkeypatch)
    network.down.add("a.example")
    grow(2)
    row = mine.round()
    assert row is not None
    assert "witness.failed" in caplog.messages
    with db.reading() as session:
        assert checkpoints.newest(session, policy()) is not None
        assert checkpoints.accepted(session, policy()) is None
    network.down.clear()
    assert mine.round() is None
    with monkeypatch.context() as patch:
        later(patch, seconds=301)
        mine.round()  # nothing was added, but the quorum is missing
    with db.reading() as session:
        good = checkpoints.accepted(session, policy())
        assert good is not None
        assert good.size == 3


def answers(status: int, body: Callable[[str], str] | str, kind: str = "text/plain") -> Any:
    """A witness that says this, whatever it is asked."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def say(request: Request) -> Response:
        asked = (await request.body()).decode()
        text = body if isinstance(body, str) else body(asked.partition("\n\n")[2])
        return Response(text, status, headers={"Content-Type": kind})

    return TestClient(Starlette(routes=[Route("/add-checkpoint", say, methods=["POST"])]))


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("status", "body", "kind", "fact", "level"),
    [
        pytest.param(200, "", "text/plain", "witness.failed", logging.WARNING, id="no signature"),
        pytest.param(200, "— x AAAAAAAA\n", "text/plain", "witness.failed", logging.WARNING, id="of somebody else"),
        pytest.param(200, "hello", "text/plain", "witness.failed", logging.WARNING, id="no line"),
        pytest.param(200, "x" * 70_000, "text/plain", "witness.failed", logging.WARNING, id="too long"),
        pytest.param(422, "", "text/plain", "witness.refused", logging.CRITICAL, id="history rewritten"),
        pytest.param(500, "", "text/plain", "witness.refused", logging.WARNING, id="broken"),
        pytest.param(307, "", "text/plain", "witness.refused", logging.WARNING, id="elsewhere"),
        pytest.param(409, "9\n", "text/x.tlog.size", "witness.ahead", logging.CRITICAL, id="has seen more"),
        pytest.param(409, "0\n", "text/x.tlog.size", "witness.refused", logging.WARNING, id="never content"),
        pytest.param(409, "many\n", "text/x.tlog.size", "witness.failed", logging.WARNING, id="no number"),
    ],
)
def test_a_strange_witness_is_a_line_in_the_log(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    status: int, body: str, kind: str, fact: str, level: int,
) -> None:  # fmt: skip
    network = Network()
    mine = witnessed(tmp_path, network, "a.example", quorum="quorum none", monkeypatch=monkeypatch)
    network.apps["a.example"] = answers(status, body, kind)
    grow(2)
    row = mine.round()
    assert row is not None
    assert len(Note.parse(row.note).signatures) == 1
    assert [r.levelno for r in caplog.records if r.getMessage() == fact] == [level]


@pytest.mark.one_database
def test_a_forged_cosignature_is_not_kept(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    mine = witnessed(tmp_path, network, "a.example", quorum="quorum none", monkeypatch=monkeypatch)
    key = policy().witnesses["a"]
    forged = f"— {key.name} {logs.b64(key.id + (7).to_bytes(8, 'big') + bytes(64))}\n"
    network.apps["a.example"] = answers(200, forged)
    row = mine.round()
    assert row is not None
    assert len(Note.parse(row.note).signatures) == 1


@pytest.mark.one_database
def test_a_rewritten_ledger_gets_no_cosignature_even_with_the_logs_key(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator with every key but the witness's own: the signer's record is theirs to write, and the database, too."""
    network = Network()
    mine = witnessed(tmp_path, network, "a.example", quorum="quorum a", monkeypatch=monkeypatch)
    grow(4)
    mine.round()
    signer: Any = mine._signer
    state = signer._folder.state()
    with db.transaction() as session:
        for (name,) in session.execute(
            text("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'ledger%'")
        ).all():
            session.execute(text(f"DROP TRIGGER {name}"))
        session.execute(text("UPDATE ledger_node SET hash = zeroblob(32) WHERE level = 2"))
        root = repository.root(session, state.size)
    signer._folder.remember(type(state)(state.origin, state.size, root))
    grow(1)
    row = mine.round(hurry=True)
    assert row is not None
    assert "witness.refused" in caplog.messages
    assert not checkpoints.accepts(policy(), row.note)


def test_a_look_never_raises_and_works_in_the_background(database: str, caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def about(self) -> Any:
            raise SignerUnavailable("nobody answers")

        def sign(self, *_: Any) -> str:
            raise AssertionError("not asked")

    grow(1)
    mine = Notary(Away(), get_settings())
    mine.look()  # no key yet
    assert mine._thread is not None
    mine._thread.join(10)
    logs.log_signer()
    mine.wake()
    mine.look()
    mine._thread.join(10)
    assert caplog.messages.count("checkpoint.missing") == 2
    assert kept() == []
    thread = mine._thread
    mine.look()
    assert mine._thread is thread  # after a failure it rests
    good = logs.notary()
    good.look()
    assert good._thread is not None
    good._thread.join(10)
    assert [row.size for row in kept()] == [2]


def test_checkpoints_are_chosen_by_size_and_policy(database: str) -> None:
    mine = logs.notary()
    for _ in range(3):
        grow(1)
        mine.round(hurry=True)
    (key,) = policy().logs
    stranger = Key(key.name, key.kind, bytes(32))
    with db.reading() as session:
        assert [row.size for row in checkpoints.every(session, policy())] == [2, 3, 4]
        for above, expected in ((0, 4), (3, 4)):
            found = checkpoints.accepted(session, policy(), above=above)
            assert found is not None
            assert found.size == expected
        assert checkpoints.accepted(session, policy(), above=4) is None
        found = checkpoints.accepted(session, policy(), size=3)
        assert found is not None
        assert Checkpoint.parse(Note.parse(found.note).text).size == 3
        assert checkpoints.accepted(session, Policy.parse(f"log {stranger}\nquorum none\n")) is None


def test_a_copy_with_a_late_date_keeps_no_signature_waiting(database: str) -> None:
    mine = logs.notary()
    grow(1)
    first = mine.round(hurry=True)
    assert first is not None
    with db.transaction() as session:
        late = db.now(session) + timedelta(days=300)
        session.add(LedgerCheckpoint(log_id=first.log_id, size=first.size, created_at=late, note=first.note))
    with db.reading() as session:
        found = checkpoints.newest(session, policy())
        assert found is not None
        assert found.created_at == first.created_at
        assert [checkpoints.EARLY in told for told in checkpoints.problems(session, policy())] == [True]
    assert mine.round() is None  # it is as young as it is
    grow(1)
    assert mine.round(hurry=True) is not None


def test_a_witness_that_is_away_for_long_costs_no_signature_checks(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What too few have seen is passed over by what its note says; a line that only looks like a witness's is checked."""
    network = Network()
    quorum = "group G 2 a b c_d\ngroup H all G e\nquorum H"
    mine = witnessed(
        tmp_path, network, "a.example", "b.example", "c_d.example", "e.example", quorum=quorum, monkeypatch=monkeypatch
    )
    seen = []
    for down in ("b.example", "c_d.example", None, "a.example", "e.example", "a.example b.example"):
        network.down = set((down or "").split())
        grow(1)
        row = mine.round(hurry=True)
        assert row is not None
        seen.append(row)
    forged = seen[4].note + f"— e.example {logs.b64(policy().witnesses['e'].id + bytes(72))}\n"
    with db.transaction() as session:
        session.add(LedgerCheckpoint(log_id=1, size=seen[4].size, created_at=db.now(session), note=forged))
    looked_at: list[str] = []
    accepts = checkpoints.accepts
    monkeypatch.setattr(checkpoints, "accepts", lambda policy, note: looked_at.append(note) or accepts(policy, note))
    with db.reading() as session:
        found = checkpoints.accepted(session, policy())
        assert found is not None
        assert (found.size, looked_at) == (seen[3].size, [forged, seen[3].note])
        for row, expected in zip(seen, (True, True, True, True, False, False), strict=True):
            assert accepts(policy(), row.note) == expected
            assert (checkpoints.accepted(session, policy(), size=row.size) is not None) == expected


def test_a_clock_that_was_ahead_stops_no_time_stamps(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = logs.notary()
    stamped: list[str] = []
    monkeypatch.setattr(mine, "_stamp", lambda note: stamped.append(note) or b"a stamp")
    true = db.now
    for days, expected in ((300, 1), (0, 2), (0, 2), (2, 3)):  # ahead; put right: asked anew; the same day; days later
        monkeypatch.setattr(notary.db, "now", lambda session, days=days: true(session) + timedelta(days=days))
        grow(1)
        assert mine.round(hurry=True) is not None
        assert len(stamped) == expected


def test_an_entry_of_a_key_that_nobody_can_read_stops_nobody(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = logs.notary()
    mine.round()
    with db.reading() as session:
        (before,) = checkpoints.told_of_keys(session)
        real = session.scalars

        for leaf in (b"", b"[]", b"{}", b'{"public":[]}', b'{"public":{"use":"ledger"},"type":"key.added"}'):
            monkeypatch.setattr(session, "scalars", lambda chosen, leaf=leaf: [leaf, *real(chosen)])
            assert list(checkpoints.told_of_keys(session)) == [before]
