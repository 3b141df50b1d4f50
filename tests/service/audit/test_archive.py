"""The ledger's export: all that a stranger needs, and nothing that opens a commitment."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from service import db
from service.audit import archive, checkpoints, export, repository, trust
from service.audit import notary as notaries
from service.audit.leaves import RequestReceived
from service.config import get_settings
from service.tables import LedgerCheckpoint, LedgerEntry, LedgerPrivate
from service.verifier.ledger import verify_ledger
from service.verifier.merkle import Frontier, leaf_hash
from service.verifier.note import Policy
from tests.service.audit import logs
from tests.service.audit.logs import grow
from tests.service.audit.people import ask_about
from tests.support import code_of


def unpack(client: TestClient, folder: Path) -> Path:
    answer = client.get("/audit/export.tar")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as packed:
        packed.extractall(folder, filter="data")
    return folder / "ledger"


def test_what_the_operations_guide_says_after_a_restore_works_as_it_is_written(client: TestClient, tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "operations.md").read_text()
    [fetch] = re.findall(r"^ +curl -s \S+/audit/export\.tar \| (tar [^#\n]*?) *(?:#.*)?$", guide, re.M)
    [verify] = re.findall(r"^ +expunge (verify ledger \S+ --policy \S+)$", guide, re.M)
    grow(3)
    logs.notary().round()
    (tmp_path / "kept.policy").write_text(client.get("/audit/policy").text)
    subprocess.run(fetch.split(), input=client.get("/audit/export.tar").content, cwd=tmp_path, check=True)
    command = [sys.executable, "-m", "service.verifier", *verify.split()[1:]]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_export_is_checked_by_what_lies_in_it(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert code_of(client.get("/audit/export.tar")) == "not_yet_signed"
    grow(258)
    grow(2, private={"reason": "mine"})
    notary = logs.notary()
    notary.round()
    with db.transaction() as session:
        last = checkpoints.newest(session, trust.policy(get_settings()))
        assert last is not None
        session.add(
            LedgerCheckpoint(log_id=1, size=last.size, created_at=db.now(session), note=last.note, time_stamp=b"a stamp")
        )
    grow(1)
    notary.round(hurry=True)
    grow(3)  # in no signed tree yet
    folder = unpack(client, tmp_path)

    policy = Policy.parse((folder / "policy.txt").read_text())
    found = policy.checkpoint((folder / "checkpoint").read_text())
    entries = lines(folder / "entries.ndjson")
    assert [e["seq"] for e in entries] == list(range(262))
    tree = Frontier()
    for entry in entries:
        leaf = str(entry["leaf"]).encode()
        told = json.loads(leaf)
        assert leaf_hash(leaf).hex() == entry["leaf_hash"]
        assert (told["type"], told["at"], told["tenant"], told["model"]) == tuple(
            entry[k] for k in ("action", "at", "tenant", "model_id")
        )
        tree.append(leaf_hash(leaf))
    assert (found.size, found.root) == (262, tree.root())
    assert (folder / "tile/0/001.p/6").read_bytes() == b"".join(bytes.fromhex(str(e["leaf_hash"])) for e in entries[256:])
    assert len((folder / "tile/1/000.p/1").read_bytes()) == 32
    assert {p.relative_to(folder).as_posix() for p in (folder / "tile/entries").rglob("*") if p.is_file()} == {
        "tile/entries/000", "tile/entries/001.p/6",
    }  # fmt: skip
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["261-0.note", "261-1.note", "261-1.tsr", "262-0.note"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["origin"], manifest["size"], manifest["redacted"]) == (found.origin, 262, [])
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0
    summed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert summed == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert list(scratch.iterdir()) == []


def test_the_newest_that_the_policy_accepts_comes_last(client: TestClient, tmp_path: Path) -> None:
    """A checkpoint that too few have seen, of the same size and signed later, is no part of the export."""
    grow(2)
    logs.notary().round()
    with db.transaction() as session:
        good = checkpoints.newest(session, trust.policy(get_settings()))
        assert good is not None
        text = good.note.partition("\n\n")[0] + "\n\n— nobody.example AAAAAAAA\n"
        session.add(LedgerCheckpoint(log_id=1, size=good.size, created_at=db.now(session), note=text))
    folder = unpack(client, tmp_path)
    assert (folder / "checkpoint").read_text() == good.note
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["3-0.note"]


def test_entries_that_are_no_longer_those_that_were_signed_are_not_exported(client: TestClient, tmp_path: Path) -> None:
    grow(2)
    logs.notary().round()
    with db.snapshot() as session:
        good, rows = checkpoints.newest(session, trust.policy(get_settings())), list(archive._entries(session, 3))
    assert good is not None
    told = {"private": [], "policy": "", "schemas": {}, "created_at": good.created_at}
    stored = [export.Stored(3, good.note)]
    with pytest.raises(export.Inconsistent, match="another tree"):
        export.write(tmp_path / "short", entries=rows[:2], checkpoints=stored, **told)
    with pytest.raises(export.Inconsistent, match="entry 0 is missing"):
        export.write(tmp_path / "cut", entries=rows[1:], checkpoints=stored, **told)


def test_what_happens_during_an_export_is_not_in_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries, a shred and a redaction between two batches: the export is of the moment before them, and verifies."""
    request_id = ask_about(client, tmp_path)
    grow(5, private={"reason": "mine"})
    logs.notary().round()
    monkeypatch.setattr(archive, "BATCH", 2)
    written, batch = [], repository.range_of

    def slow(session: Session, first: int, count: int) -> list[LedgerEntry]:
        found = batch(session, first, count)
        if not written:
            written.append(client.post("/audit/redactions", json={"seq": first + 3, "reason": "security"}))
            written.append(client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "operator"}))
            grow(2)
            logs.notary().round(hurry=True)
        return found

    monkeypatch.setattr(archive.repository, "range_of", slow)
    folder = unpack(client, tmp_path)
    assert [answer.status_code for answer in written] == [202, 200]
    (tmp_path / "policy").write_text((folder / "policy.txt").read_text())
    report = verify_ledger(folder, tmp_path / "policy")
    assert (report.valid, report.reason) == (True, report.reason), report.reason
    assert all("leaf" in line for line in lines(folder / "entries.ndjson"))
    assert {line["shredded_at"] for line in lines(folder / "private.ndjson")} == {None}
    size = json.loads((folder / "manifest.json").read_text())["size"]

    later = tmp_path / "later"
    later.mkdir()
    folder = unpack(client, later)  # the next one is of the moment after them, and verifies as well
    (tmp_path / "policy").write_text((folder / "policy.txt").read_text())
    assert verify_ledger(folder, tmp_path / "policy").valid
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["size"] > size, len(manifest["redacted"])) == (True, 1)


def test_what_opens_a_commitment_stays_here(client: TestClient, tmp_path: Path) -> None:
    grow(2, private={"reason": "mine"})
    logs.notary().round()
    with db.reading() as session:
        salts = [row.salt for row in session.query(LedgerPrivate)]
    folder = unpack(client, tmp_path)
    told = [json.loads(line) for line in (folder / "entries.ndjson").read_text().splitlines()][:2]
    assert [(row["seq"], row["private_sha256"], row["shredded_at"]) for row in lines(folder / "private.ndjson")] == [
        (entry["seq"], json.loads(entry["leaf"])["privateSha256"], None) for entry in told
    ]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not any(salt and (salt in path.read_bytes() or salt.hex().encode() in path.read_bytes()) for salt in salts)


def test_every_event_type_has_its_schema() -> None:
    schemas = archive.schemas()
    assert schemas["unlearning.request.received"] == RequestReceived.model_json_schema(by_alias=True)
    assert {"key.added", "key.retired", "evaluation.rejected", "model.published"} <= set(schemas)
    assert "" not in schemas


@pytest.mark.one_database
def test_an_export_that_fails_leaves_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grow(1)
    logs.notary().round()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(export._Folder, "close", full)
    with pytest.raises(OSError, match="no space"):
        archive.tar(get_settings(), tmp_path)
    monkeypatch.undo()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("expunge-export")]
    assert tarfile.is_tarfile(archive.tar(get_settings(), tmp_path))


def test_an_export_keeps_what_a_retired_key_signed_alone_and_is_sound(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notary = logs.notary()
    monkeypatch.setattr(notary, "_stamp", lambda note: b"stamped")
    monkeypatch.setattr(notaries, "STAMP_EVERY", timedelta(0))
    grow(1)
    notary.round()  # by the old key alone
    old, _ = logs.rotate(notary)
    grow(1)
    notary.round(hurry=True)  # by both
    logs.retire(notary, old)
    grow(1)
    notary.round(hurry=True)  # by the new one alone
    made = unpack(client, tmp_path)
    names = sorted(path.name.partition("-")[0] for path in (made / "checkpoints").glob("*.note"))
    with db.reading() as session:
        sizes = [row.size for row in checkpoints.every(session, trust.policy(get_settings()))]
    assert sorted(map(int, names)) == sorted(sizes), "the one that the old key signed alone is there, and its time stamp"
    assert [path.read_bytes() for path in (made / "checkpoints").glob("*.tsr")] == [b"stamped"] * len(sizes)
    both = tmp_path / "both.txt"
    both.write_text(f"log {old}\n" + (made / "policy.txt").read_text())
    for policy, apart in ((made / "policy.txt", 1), (both, 0)):
        report = verify_ledger(made, policy)
        counted = report.facts["checkpoints"], report.facts["checkpoints_by_retired_keys"]
        assert (report.valid, counted) == (True, (1 + len(sizes) - apart, apart)), report.reason  # the newest is there twice
        if db.get_engine().dialect.name == "sqlite":
            report = verify_ledger(made, policy, database=Path(str(db.get_engine().url.database)))
            assert (report.valid, report.facts["checkpoints_by_retired_keys"]) == (True, 2 * apart), report.reason


def test_an_export_under_another_origin_brings_the_checkpoints_of_the_one_before(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(1)
    kept = logs.notary().round()
    (old,) = trust.log_keys(get_settings())
    shutil.move(get_settings().log_folder, tmp_path / "aside")
    monkeypatch.setenv("EXPUNGE_LEDGER_ORIGIN", "new.example/ledger")
    get_settings.cache_clear()
    grow(1)
    logs.notary().round(hurry=True)
    archive.write(tmp_path / "ledger", get_settings())
    policy, both, saved = tmp_path / "ledger" / "policy.txt", tmp_path / "both.txt", tmp_path / "saved"
    both.write_text(f"log {old}\n" + policy.read_text())
    assert kept is not None
    saved.write_text(kept.note)
    for believed, files, counted in ((policy, [], (2, 1)), (both, [saved], (4, 0))):
        report = verify_ledger(tmp_path / "ledger", believed, files)
        assert report.valid, report.reason
        assert (report.facts["checkpoints"], report.facts["checkpoints_by_retired_keys"]) == counted
        if db.get_engine().dialect.name == "sqlite":
            report = verify_ledger(tmp_path / "ledger", believed, files, database=Path(str(db.get_engine().url.database)))
            assert report.valid, report.reason
