"""The worker's part in the ledger's signatures: the sweeper reminds the notary, and a publication hurries it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from service import db
from service.audit import checkpoints, proofs, trust
from service.audit.notary import Notary
from service.config import get_settings
from service.sockets import SignerUnavailable
from service.verifier.merkle import leaf_hash
from service.verifier.note import inclusion
from tests.service.audit import logs
from tests.worker.conductor import house as h
from worker.conductor import app as bell
from worker.conductor import pipeline
from worker.conductor.control import Sweeper


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
