"""The worker's part in the ledger's signatures: the sweeper reminds the notary, and a publication hurries it."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from service import db
from service.audit import checkpoints, ledger, proofs, trust
from service.audit.leaves import rfc3339
from service.audit.notary import Notary
from service.certificates import publication
from service.checkpoints import evidence
from service.config import get_settings
from service.sockets import SignerUnavailable
from service.storage import get_store
from service.tables import Checkpoint, CheckpointFile, LedgerEntry
from service.verifier.certificate import verify_directory
from service.verifier.merkle import leaf_hash
from service.verifier.note import inclusion
from service.verifier.proofs import proved
from service.verifier.reading import Report
from tests.service.audit import logs
from tests.worker.conductor import house as h
from worker.conductor import app as bell
from worker.conductor import certifying, pipeline
from worker.conductor.control import Sweeper


def download(checkpoint_id: str, folder: Path) -> Path:
    """What `expunge checkpoint download` fetches."""
    with db.reading() as session:
        row = session.get_one(Checkpoint, checkpoint_id)
        files = session.scalars(select(CheckpointFile).where(CheckpointFile.checkpoint_id == checkpoint_id))
        found = {one.path: get_store().open(one.sha256).read() for one in files}
        found |= {one.path: one.content for one in evidence.listed(session, row)}
        found |= {path: evidence.read(session, checkpoint_id, path).content for path in evidence.later(session, row)}
    for path, content in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def verified(folder: Path, policy: str) -> Report:
    """By whoever has this policy; why not, where it is not."""
    file = folder.with_suffix(".policy")
    file.write_text(policy)
    return verify_directory(folder, get_settings().public_key_file, file)


def swept(notary: Notary, room: pipeline.Room) -> None:
    Sweeper(bell.make_app(room.settings), room).sweep()
    assert notary._thread is not None
    notary._thread.join(20)


def test_a_publication_is_signed_at_the_next_sweep_and_has_a_receipt(database: str, tmp_path: Path, kept: Path) -> None:
    room, house = h.make_room(), h.furnish(tmp_path)
    room.notary = notary = logs.notary()
    room.draining.set()
    swept(notary, room)
    room.draining.clear()
    with db.reading() as session:
        first = checkpoints.newest(session, trust.policy(get_settings()))
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    room.draining.set()  # nothing is rung for
    swept(notary, room)  # well within the minute
    with db.reading() as session:
        newest = checkpoints.newest(session, trust.policy(get_settings()))
        assert first is not None
        assert newest is not None
        assert newest.size > first.size
        seq = proofs.entry_of(session, request_id, "certificate.issued")
        assert seq is not None
        proof = proofs.tlog_proof(session, seq)
    assert proof is not None
    leaf = base64.b64decode(proof.splitlines()[1].removeprefix("extra "))
    assert inclusion(proof, leaf_hash(leaf), trust.policy(get_settings()))[0] == seq
    assert json.loads(leaf)["public"]["checkpointId"] == h.request(request_id).checkpoint_id


def test_a_ledger_that_cannot_be_signed_stops_no_request(database: str, tmp_path: Path, kept: Path) -> None:
    class Away:
        def about(self) -> None:
            raise SignerUnavailable("nobody answers")

    room, house = h.make_room(), h.furnish(tmp_path)
    room.notary = notary = Notary(Away(), get_settings())  # type: ignore[arg-type]
    logs.log_signer()
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    room.draining.set()
    swept(notary, room)
    with db.reading() as session:
        assert checkpoints.newest(session, trust.policy(get_settings())) is None


def test_a_certificate_is_proved_under_the_name_that_its_ledger_had(
    database: str, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its key was lost the log goes on under another name; what was certified before is not worth less for that."""
    house = h.furnish(tmp_path)
    before = h.ask(house, 3)
    assert pipeline.run(before, h.make_room()) == "succeeded"
    assert logs.notary().round() is not None
    old = trust.policy_text(get_settings())
    checkpoint_id = h.request(before).checkpoint_id or ""
    assert verified(download(checkpoint_id, tmp_path / "first"), old).valid

    get_settings().log_folder.rename(tmp_path / "aside")
    get_settings().log_keys_file.unlink(missing_ok=True)
    monkeypatch.setenv("EXPUNGE_LEDGER_ORIGIN", "new.example/l")
    get_settings.cache_clear()
    after = h.ask(house, 5)
    assert pipeline.run(after, h.make_room()) == "succeeded"
    assert logs.notary().round(hurry=True) is not None
    new = trust.policy_text(get_settings())
    assert trust.origin(get_settings()) == "new.example/l"
    again = verified(download(checkpoint_id, tmp_path / "again"), old)
    assert again.valid, again.reason
    later = verified(download(h.request(after).checkpoint_id or "", tmp_path / "later"), new)
    assert later.valid, later.reason


def test_a_certificate_whose_name_never_signed_it_is_proved_under_the_present_one(
    database: str, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is in the ledger, and that can be shown; whose it was before nobody can sign any more."""
    before = h.ask(h.furnish(tmp_path), 3)
    assert pipeline.run(before, h.make_room()) == "succeeded"
    get_settings().log_folder.rename(tmp_path / "aside")
    get_settings().log_keys_file.unlink(missing_ok=True)
    monkeypatch.setenv("EXPUNGE_LEDGER_ORIGIN", "new.example/l")
    get_settings.cache_clear()
    assert logs.notary().round(hurry=True) is not None
    proof = (download(h.request(before).checkpoint_id or "", tmp_path / "got") / publication.ISSUED).read_bytes()
    assert proved(proof, trust.policy(get_settings()))[2].origin == "new.example/l"


def test_a_clock_that_is_set_back_does_not_put_the_plan_after_the_run(
    database: str, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's time stays at what it was before; a run that began earlier than its plan would never be believed."""
    behind = SimpleNamespace(**vars(db) | {"now": lambda session: db.now(session) - timedelta(hours=1)})
    for room in (certifying, pipeline):
        monkeypatch.setattr(room, "db", behind)
    request_id = h.ask(h.furnish(tmp_path), 3)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    logs.notary().round()
    said = h.certificate(request_id)
    with db.reading() as session:
        plan = session.get_one(LedgerEntry, (ledger.LOG_ID, said["certificate"]["ledger"]["planSeq"]))
        assert said["run"]["startedAt"] == rfc3339(plan.at)
    assert said["run"]["startedAt"] <= said["run"]["finishedAt"] <= said["certificate"]["issuedAt"]
    report = verified(download(h.request(request_id).checkpoint_id or "", tmp_path / "got"), trust.policy_text(get_settings()))
    assert report.valid, report.reason
