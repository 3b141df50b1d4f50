"""What a certificate says of the ledger, of the version before it and of each forgotten item, and what lies beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from service import db
from service.audit import ledger, redaction, shredding
from service.audit.leaves import LOCAL, Actor, RequestClosed
from service.certificates import commitment, limits
from service.certificates.dsse import payload_of
from service.checkpoints import membership, revocation
from service.checkpoints import service as checkpoints
from service.datasets import items
from service.tables import Checkpoint, CheckpointEvidence, ForgetCommitment, ModelVersion
from tests.worker.conductor import house as h
from worker.conductor import app as bell
from worker.conductor import pipeline, purging
from worker.conductor.control import Sweeper

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


def two_versions(house: h.House) -> tuple[str, str]:
    """Two requests, of class 3 and then of class 5; their checkpoints."""
    asked = h.ask(house, 3), h.ask(house, 5)
    for request_id in asked:
        assert pipeline.run(request_id, h.make_room()) == "succeeded"
    return h.request(asked[0]).checkpoint_id or "", h.request(asked[1]).checkpoint_id or ""


def test_a_person_can_prove_that_an_item_was_forgotten_and_learns_of_no_other(house: h.House) -> None:
    first, second = h.ask(house, 3), h.ask(house, 5)
    for request_id in (first, second):
        assert pipeline.run(request_id, h.make_room()) == "succeeded"
    checkpoint_id = h.request(second).checkpoint_id
    said = h.certificate(second)["forgetSet"]["commitment"]
    assert said["count"] == 6  # three images of each of the two classes
    opened = membership.opening(checkpoint_id, "13").model_dump()  # of class 3, forgotten by the first request
    assert opened["commitment"] == said
    assert commitment.holds(opened)
    for item in ("14", "1", "nobody"):
        with pytest.raises(membership.NotForgotten):
            membership.opening(checkpoint_id, item)
    with db.transaction() as session:
        session.execute(update(ForgetCommitment).values(secret=None))
    with pytest.raises(membership.CommitmentErased):
        membership.opening(checkpoint_id, "13")


def test_erasing_one_requests_key_closes_its_items_on_the_whole_lineage_and_no_others(house: h.House) -> None:
    first, second = two_versions(house)
    with db.transaction() as session:
        session.execute(update(ForgetCommitment).where(ForgetCommitment.checkpoint_id == first).values(secret=None))
    for checkpoint_id in (first, second):
        with pytest.raises(membership.CommitmentErased):
            membership.opening(checkpoint_id, "13")  # of class 3
    with pytest.raises(membership.CommitmentErased):  # nor can it be told that an item was not among them
        membership.opening(second, "14")
    assert commitment.holds(membership.opening(second, "15").model_dump())  # of class 5
    third = h.ask(house, 7)
    assert pipeline.run(third, h.make_room()) == "succeeded"
    newest = h.request(third).checkpoint_id or ""
    assert h.certificate(third)["forgetSet"]["commitment"]["count"] == 9
    with pytest.raises(membership.CommitmentErased):  # a later certificate does not open what was erased before
        membership.opening(newest, "13")
    assert commitment.holds(membership.opening(newest, "15").model_dump())


def test_membership_is_proved_without_the_dataset(house: h.House) -> None:
    """It may be erased, too, once it is forgotten; and nobody can have it read over and over."""
    first, _ = two_versions(house)
    (house.data / "digits.npz").unlink()
    assert commitment.holds(membership.opening(first, "13").model_dump())


def test_commitments_whose_leaves_were_not_kept_are_opened_from_the_dataset(
    house: h.House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release before kept the key alone, over everything that was forgotten on the lineage."""
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    old, secret = h.request(request_id).checkpoint_id or "", b"k" * 32
    with db.transaction() as session:
        session.execute(text("DROP TRIGGER forget_commitment_erase_only" + on("forget_commitment")))
        session.execute(update(ForgetCommitment).values(secret=secret, leaves=None))
    reads, read = [], items.read
    monkeypatch.setattr(items, "read", lambda where: reads.append(where) or read(where))
    for item in ("3", "13", "23"):
        assert commitment.holds(membership.opening(old, item).model_dump())
    assert len(reads) == 1
    later = h.ask(house, 5)
    assert pipeline.run(later, h.make_room()) == "succeeded"
    newer = h.request(later).checkpoint_id or ""
    assert commitment.holds(membership.opening(newer, "13").model_dump())
    with db.transaction() as session:
        session.execute(update(ForgetCommitment).where(ForgetCommitment.checkpoint_id == old).values(secret=None))
    with pytest.raises(membership.CommitmentErased):
        membership.opening(newer, "13")


def on(table: str) -> str:
    """PostgreSQL's triggers belong to a table."""
    return f" ON {table}" if db.get_engine().dialect.name == "postgresql" else ""


def test_a_commitment_loses_what_opens_it_and_nothing_else(house: h.House) -> None:
    two_versions(house)
    for change in ("leaves = NULL, secret = NULL", "leaves = secret", "checkpoint_id = 'x', secret = NULL", "secret = leaves"):
        with pytest.raises(DBAPIError, match="a commitment is kept"), db.transaction() as session:
            session.execute(text(f"UPDATE forget_commitment SET {change}"))


@pytest.mark.parametrize("how", ["shred", "redact"])
def test_what_opens_a_commitment_goes_with_the_requests_private_data(house: h.House, how: str) -> None:
    first, second = two_versions(house)
    request_id = h.request_of(first)
    seq = h.seq_of(request_id, "run.finished")
    with db.transaction() as session:
        if how == "shred":
            shredding.erase_commitment(session, request_id)
        else:
            redaction.request(session, seq=seq, ground="personal_data", actor=LOCAL, four_eyes="solo")
    for checkpoint_id in (first, second):
        with pytest.raises(membership.CommitmentErased):
            membership.opening(checkpoint_id, "13")
    assert commitment.holds(membership.opening(second, "15").model_dump())


def test_what_was_redacted_before_the_publication_leaves_nothing_to_open(house: h.House) -> None:
    request_id = h.ask(house, 3)
    with db.transaction() as session:
        seq = ledger.append(session, RequestClosed(status="queued"), actor=LOCAL, request_id=request_id)
    with db.transaction() as session:
        redaction.request(session, seq=seq, ground="personal_data", actor=LOCAL, four_eyes="solo")
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    with pytest.raises(membership.CommitmentErased):
        membership.opening(h.request(request_id).checkpoint_id or "", "13")


def test_a_certificate_says_that_the_one_before_it_was_taken_back(house: h.House) -> None:
    """Forgetting more is still accepted; nobody who holds the new certificate can overlook it."""
    first, second = two_versions(house)
    said = h.certificate(h.request_of(second))
    assert (said["parent"]["certificate"]["state"], "revokedAncestors" in said["parent"]) == ("valid", False)
    assert limits.REVOKED_PARENT not in said["limits"]
    with db.transaction() as session:
        revocation.ask(session, second, reason="result_wrong", by=LOCAL)
    third, fourth = h.ask(house, 7), h.ask(house, 8)
    assert pipeline.run(third, h.make_room()) == "succeeded"
    said = h.certificate(third)
    parent = said["parent"]["certificate"]
    assert (parent["state"], parent["reason"]) == ("revoked", "result_wrong")
    assert parent["revokedAt"] < said["certificate"]["issuedAt"]
    assert limits.REVOKED_PARENT in said["limits"]
    assert pipeline.run(fourth, h.make_room()) == "succeeded"
    said = h.certificate(fourth)  # of a parent that stands, on a lineage that does not
    assert (said["parent"]["certificate"]["state"], said["parent"]["revokedAncestors"]) == ("valid", [second])
    assert limits.REVOKED_ANCESTORS in said["limits"]
    assert limits.REVOKED_PARENT not in said["limits"]
    assert first not in said["parent"]["revokedAncestors"]


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
    assert said["parent"]["certificate"] == {"sha256": hashlib.sha256(payload).hexdigest(), "state": "valid"}


def keep_fishers(kept: Path, **records: dict[str, str]) -> None:
    for name, record in records.items():
        (kept / name).mkdir(parents=True)
        (kept / name / "fisher.json").write_text(json.dumps(record))


@one_database
def test_information_computed_from_forgotten_data_is_purged_once_it_is_published(house: h.House) -> None:
    room = h.make_room()
    kept = room.settings.fishers_dir
    keep_fishers(kept, old={"weights": versions_digest(1)}, other={"weights": "0" * 64}, nameless={})
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    assert [path.name for path in kept.iterdir()] == ["other"]
    assert h.facts(request_id, "caches.purged")["entries"] == 2


@pytest.mark.parametrize("dies", ["while it deletes", "before the entry"])
def test_what_was_purged_is_recorded_though_its_worker_died_before_it_could(
    house: h.House, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    room = h.make_room()
    kept = room.settings.fishers_dir
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "_purge", lambda *_: None)
        request_id = h.ask(house, 1, fisher_bytes=10)
        assert pipeline.run(request_id, room) == "succeeded"
    (whole,) = kept.iterdir()
    shutil.copytree(whole, kept / "another")
    actor = Actor(kind="worker", id="a")

    class Killed(BaseException):
        """As SIGKILL: nothing after it is run."""

    def delete_one(folder: Path, **_: object) -> None:
        remove(folder)
        raise Killed

    def refuse(*_: object, **__: object) -> None:
        raise Killed

    remove = shutil.rmtree
    with monkeypatch.context() as killed:
        if dies == "before the entry":
            killed.setattr(purging.ledger, "append", refuse)
        else:
            killed.setattr(purging.shutil, "rmtree", delete_one)
        with pytest.raises(Killed):
            purging.sweep(room.settings, actor)
    assert "caches.purged" not in h.actions(request_id)
    assert len([path for path in kept.iterdir() if path.is_dir()]) == (0 if dies == "before the entry" else 1)
    purging.sweep(room.settings, actor)
    assert h.facts(request_id, "caches.purged")["entries"] == 2
    purging.sweep(room.settings, actor)
    assert (h.actions(request_id).count("caches.purged"), list(kept.iterdir())) == (1, [])


@pytest.mark.one_database
def test_what_another_worker_of_the_host_purges_just_now_is_left_to_it(house: h.House, monkeypatch: pytest.MonkeyPatch) -> None:
    room = h.make_room()
    request_id = h.ask(house, 1, fisher_bytes=10)
    actor, append = Actor(kind="worker", id="a"), purging.ledger.append

    def meanwhile(*given: Any, **named: Any) -> int:
        monkeypatch.setattr(purging.ledger, "append", append)
        purging.sweep(room.settings, Actor(kind="worker", id="b"))
        return append(*given, **named)

    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "_purge", lambda *_: None)
        assert pipeline.run(request_id, room) == "succeeded"
    monkeypatch.setattr(purging.ledger, "append", meanwhile)
    purging.sweep(room.settings, actor)
    assert h.facts(request_id, "caches.purged")["entries"] == 1
    assert list(room.settings.fishers_dir.iterdir()) == []


def test_what_the_publishing_worker_could_not_purge_its_host_s_sweeper_does(
    house: h.House, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = h.make_room()
    sweeper = Sweeper(bell.make_app(room.settings), room)
    request_id = h.ask(house, 3)
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "_purge", lambda *_: None)  # a worker that dies right after its publication
        assert pipeline.run(request_id, room) == "succeeded"
    kept = room.settings.fishers_dir
    keep_fishers(
        kept, old={"weights": versions_digest(1)}, current={"weights": versions_digest(2)}, other={"weights": "0" * 64}
    )
    sweeper.sweep()
    assert sorted(path.name for path in kept.iterdir()) == ["current", "other"]
    assert h.facts(request_id, "caches.purged")["entries"] == 1
    said = h.actions(request_id)
    sweeper.caches_at = 0.0
    sweeper.sweep()
    assert h.actions(request_id) == said, "nothing is said of nothing"


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
