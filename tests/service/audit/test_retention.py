"""What was kept long enough is shredded, and the month's key is destroyed once nothing needs it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from typer.testing import CliRunner

from service import cli, db
from service.audit import retention, vault
from service.audit.vault import KekGone, get_keys, kek_id
from service.compliance.rules import add_months
from service.config import get_settings
from service.errors import InvalidTransition, KekNotFound, LegalHold
from service.tables import LedgerPrivate
from tests.service.audit.people import SAID, ask_about, entries, finish, private, received, require_clean, said
from tests.support import ask, register

MONTHS = 24
PAST = "default.2020-01"


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written now is sealed under a key of a month that is over."""
    monkeypatch.setattr(vault, "kek_id", lambda tenant, at: f"{tenant}.2020-01")


def sweep() -> retention.Swept:
    return retention.sweep(get_keys(), MONTHS)


def let_time_pass(seq: int) -> None:
    """The row's last day was yesterday."""
    with db.transaction() as session:
        session.execute(
            update(LedgerPrivate).where(LedgerPrivate.seq == seq).values(retain_until=db.now(session) - timedelta(days=1))
        )


def test_the_clock_begins_when_a_request_ends(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    seq = received(request_id)
    assert sweep() == retention.Swept()
    assert private(seq).retain_until is None
    finish(request_id)
    assert sweep() == retention.Swept(scheduled=1)
    ended = datetime.fromisoformat(client.get(f"/unlearn-requests/{request_id}").json()["finished_at"])
    assert private(seq).retain_until == add_months(ended, MONTHS)
    assert sweep() == retention.Swept()  # not due, and given its day once: another setting does not move it


def test_where_the_law_wants_an_answer_the_clock_waits_for_it(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path, jurisdiction="gdpr", received_at="2026-01-01T00:00:00Z")
    finish(request_id)
    assert sweep().scheduled == 0
    told = {"type": "answered", "answered_at": "2026-02-01T00:00:00Z", "result": "erased", "note": "told by mail"}
    note = client.post(f"/unlearn-requests/{request_id}/compliance-events", json=told).json()["seq"]
    assert sweep().scheduled == 2
    ended = datetime.fromisoformat(client.get(f"/unlearn-requests/{request_id}").json()["finished_at"])
    begun = max(ended, datetime(2026, 2, 1, tzinfo=UTC))  # the later of the two
    assert private(note).retain_until == private(received(request_id)).retain_until == add_months(begun, MONTHS)


def test_what_is_due_is_shredded_and_its_key_destroyed(client: TestClient, tmp_path: Path, long_ago: None) -> None:
    model = register(client, tmp_path)
    first, second = (ask(client, model, k, **SAID).json()["id"] for k in (1, 2))
    for request_id in (first, second):
        client.post(f"/unlearn-requests/{request_id}/cancel")
    seqs = [received(first), received(second)]
    sweep()
    let_time_pass(seqs[0])
    assert sweep() == retention.Swept(shredded=[seqs[0]])  # the other one still needs the key
    assert private(seqs[1]).salt is not None
    let_time_pass(seqs[1])
    assert sweep() == retention.Swept(shredded=[seqs[1]], keys=[PAST])
    assert sweep() == retention.Swept()
    assert [said(e)["ground"] for e in entries("private.shredded")] == ["retention_ended"] * 2
    assert [said(e) for e in entries("kek.destroyed")] == [{"kekId": PAST}]
    assert {e.actor for e in entries("private.shredded")} == {"service:retention"}
    with pytest.raises(KekGone):
        get_keys().unwrap(PAST, bytes(40))
    require_clean()


def test_a_hold_stops_the_clock(client: TestClient, tmp_path: Path, long_ago: None) -> None:
    request_id = ask_about(client, tmp_path)
    note = {"type": "recipient.notified", "recipient": "x", "at": "2026-01-01T00:00:00Z", "note": "n"}
    where = f"/unlearn-requests/{request_id}"
    client.post(f"{where}/legal-hold", json={"hold": True, "ground": "authority"})
    later = client.post(f"{where}/compliance-events", json=note).json()["seq"]  # has no flag of its own
    client.post(f"{where}/cancel")
    sweep()
    for seq in (received(request_id), later):
        let_time_pass(seq)
    assert sweep() == retention.Swept()
    with pytest.raises(LegalHold):
        retention.destroy_key(get_keys(), PAST, actor=retention.OPERATOR)
    assert get_keys().wrap(PAST, bytes(32))  # still there
    client.post(f"{where}/legal-hold", json={"hold": False, "ground": "authority"})
    assert sweep() == retention.Swept(shredded=[received(request_id), later], keys=[PAST])


def test_the_key_of_a_month_that_is_not_over_stays(client: TestClient, tmp_path: Path) -> None:
    request_id = ask_about(client, tmp_path)
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})
    assert sweep().keys == []
    current = kek_id(get_settings().tenant, datetime.now(UTC))
    with pytest.raises(InvalidTransition):
        retention.destroy_key(get_keys(), current, actor=retention.OPERATOR)
    with pytest.raises(ValueError, match="expected the name"):
        retention.destroy_key(get_keys(), "../x", actor=retention.OPERATOR)


def test_a_key_whose_destruction_failed_is_destroyed_by_the_next_call(
    client: TestClient, tmp_path: Path, long_ago: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word comes before the deed, so a crash between them leaves a key, never a silent loss."""
    request_id = ask_about(client, tmp_path)
    client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"})

    class Broken(vault.FileKeyStore):
        def destroy(self, kek_id: str) -> bool:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        retention.sweep(Broken(get_settings().kek_folder), MONTHS)
    assert len(entries("kek.destroyed")) == 1
    assert sweep().keys == [PAST]
    assert len(entries("kek.destroyed")) == 1
    with pytest.raises(KekGone):
        get_keys().wrap(PAST, bytes(32))


def test_a_key_that_never_was_is_not_destroyed(client: TestClient, tmp_path: Path) -> None:
    """A name with a slip in it must not end in the ledger as a month's key that is gone."""
    ask_about(client, tmp_path)
    before, folder = len(entries()), get_settings().kek_folder
    files = sorted(folder.iterdir())
    for name in (PAST, "defualt.2020-01", "default.2999-01"):
        with pytest.raises(KekNotFound):
            retention.destroy_key(get_keys(), name, actor=retention.OPERATOR)
        shown = CliRunner().invoke(cli.app, ["ledger", "destroy-kek", name, "--yes"])
        assert (shown.exit_code, "No key has this name" in shown.output) == (1, True), shown.output
    assert (len(entries()), sorted(folder.iterdir())) == (before, files)


def test_a_key_that_sealed_nothing_is_destroyed_once(client: TestClient) -> None:
    """Made for an entry whose transaction was rolled back."""
    get_keys().wrap(PAST, bytes(32))
    assert retention.destroy_key(get_keys(), PAST, actor=retention.OPERATOR) is True
    assert retention.destroy_key(get_keys(), PAST, actor=retention.OPERATOR) is False
    assert [said(e) for e in entries("kek.destroyed")] == [{"kekId": PAST}]


def test_the_command_shreds_and_destroys(client: TestClient, tmp_path: Path, long_ago: None) -> None:
    request_id = ask_about(client, tmp_path)
    shown = CliRunner().invoke(cli.app, ["ledger", "destroy-kek", PAST, "--yes"])
    assert (shown.exit_code, "is destroyed" in shown.output) == (0, True), shown.output
    assert client.get(f"/unlearn-requests/{request_id}").json()["reason"] is None
    assert [e.actor for e in entries("kek.destroyed")] == ["user:operator"]
    assert "before" in CliRunner().invoke(cli.app, ["ledger", "destroy-kek", PAST, "--yes"]).output
    assert CliRunner().invoke(cli.app, ["ledger", "destroy-kek", "nonsense", "--yes"]).exit_code == 1
    assert CliRunner().invoke(cli.app, ["ledger", "retain"]).output.startswith("0 entries shredded")
    require_clean()
