"""What a certificate says of the ledger, of the version before it and of each forgotten item, and what lies beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service import db
from service.certificates import commitment
from service.certificates.dsse import payload_of
from service.checkpoints import service as checkpoints
from service.tables import Checkpoint, CheckpointEvidence, ForgetCommitment, ModelVersion
from tests.worker.conductor import house as h
from worker.conductor import pipeline

pytestmark = pytest.mark.usefixtures("database")
one_database = pytest.mark.one_database


@pytest.fixture
def house(tmp_path: Path) -> h.House:
    return h.furnish(tmp_path)


def versions_digest(number: int) -> str:
    with db.reading() as session:
        return session.scalars(select(ModelVersion.digest).where(ModelVersion.number == number)).one()


def evidence_of(checkpoint_id: str) -> dict[str, bytes]:
    with db.reading() as session:
        rows = session.scalars(select(CheckpointEvidence).where(CheckpointEvidence.checkpoint_id == checkpoint_id))
        return {row.path: row.content for row in rows}


def test_a_person_can_prove_that_an_item_was_forgotten_and_learns_of_no_other(house: h.House) -> None:
    first, second = h.ask(house, 3), h.ask(house, 5)
    for request_id in (first, second):
        assert pipeline.run(request_id, h.make_room()) == "succeeded"
    checkpoint_id = h.request(second).checkpoint_id
    said = h.certificate(second)["forgetSet"]["commitment"]
    assert said["count"] == 6  # three images of each of the two classes
    opened = checkpoints.opening(checkpoint_id, "13").model_dump()  # of class 3, forgotten by the first request
    assert opened["commitment"] == said
    assert commitment.holds(opened)
    for item in ("14", "1", "nobody"):
        with pytest.raises(checkpoints.NotForgotten):
            checkpoints.opening(checkpoint_id, item)
    with db.transaction() as session:
        session.execute(update(ForgetCommitment).values(secret=None))
    with pytest.raises(checkpoints.CommitmentErased):
        checkpoints.opening(checkpoint_id, "13")


def test_a_later_publication_supersedes_the_certificate_before_it(house: h.House) -> None:
    first, second = h.ask(house, 3), h.ask(house, 5)
    for request_id in (first, second):
        assert pipeline.run(request_id, h.make_room()) == "succeeded"
    older, newer = h.request(first).checkpoint_id, h.request(second).checkpoint_id
    assert h.facts(second, "certificate.superseded") == {"checkpointId": older, "by": newer}
    said = h.certificate(second)
    assert said["certificate"]["supersedes"] == said["parent"]["checkpoint"] == older
    with db.reading() as session:
        assert [checkpoints.read(session, one).status for one in (older, newer)] == ["superseded", "current"]
        payload = payload_of(session.get_one(Checkpoint, older).certificate)
    assert said["parent"]["certificate"] == {"sha256": hashlib.sha256(payload).hexdigest()}


@one_database
def test_information_computed_from_forgotten_data_is_purged_once_it_is_published(house: h.House) -> None:
    room = h.make_room()
    kept = room.settings.fishers_dir
    for name, record in (("old", {"weights": versions_digest(1)}), ("other", {"weights": "0" * 64}), ("nameless", {})):
        (kept / name).mkdir(parents=True)
        (kept / name / "fisher.json").write_text(json.dumps(record))
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    assert [path.name for path in kept.iterdir()] == ["other"]
    assert h.facts(request_id, "caches.purged")["entries"] == 2


def test_plan_run_and_certificate_are_in_order_and_what_lies_beside_is_named(house: h.House) -> None:
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    said = h.certificate(request_id)
    assert said["parent"] == {
        "version_id": house.version_id, "digest": versions_digest(1), "checkpoint": None, "certificate": None,
        "disposition": {"state": "still-served"},
    }  # fmt: skip
    assert h.actions(request_id)[1] == "plan.committed"
    assert said["certificate"]["ledger"]["planSeq"] == h.seq_of(request_id, "plan.committed")
    assert said["run"]["startedAt"] < said["run"]["finishedAt"] < said["certificate"]["issuedAt"]
    beside = evidence_of(h.request(request_id).checkpoint_id)
    assert set(beside) == {"model.sig", "UNLEARNING/provenance.sigstore.json", "UNLEARNING/mlbom.cdx.json"}
    digests = {one["digest"]["sha256"] for one in said["attestations"]}
    assert hashlib.sha256(beside["UNLEARNING/mlbom.cdx.json"]).hexdigest() in digests
    assert hashlib.sha256(payload_of(json.loads(beside["UNLEARNING/provenance.sigstore.json"]))).hexdigest() in digests
