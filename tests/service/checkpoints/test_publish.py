"""All of a publication or none of it, and only by who holds the request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select

from service import db
from service.certificates.dsse import key_of, seal
from service.checkpoints.membership import Committed
from service.checkpoints.publish import BaseMoved, Result, publish
from service.files import FileEntry, tree_digest
from service.requests import endings, leases
from service.requests.leases import Lease, LeaseLost
from service.tables import (
    Checkpoint,
    CheckpointEvidence,
    CheckpointFile,
    ForgetCommitment,
    LedgerEntry,
    Model,
    ModelVersion,
    RequestEvent,
    new_id,
)
from tests.worker.conductor import house as h

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def house(tmp_path: Path) -> h.House:
    return h.furnish(tmp_path)


def claimed(house: h.House) -> Lease:
    request_id = h.ask(house, 3)
    with db.transaction() as session:
        lease = leases.claim(session, request_id, owner="w1", lease_seconds=60)
    assert lease is not None
    return lease


def result() -> Result:
    files = (FileEntry("config.json", 2, "a" * 64), FileEntry("model.safetensors", 9, "b" * 64))
    bundle = seal({"subject": []}, key_of(ec.generate_private_key(ec.SECP256R1())))
    return Result(new_id("ckpt"), tree_digest(files), files, bundle, {"model.sig": b"{}"}, Committed(b"k" * 32, [b"l" * 32]))


def counts() -> tuple[int, ...]:
    tables = (Checkpoint, CheckpointFile, CheckpointEvidence, ForgetCommitment, ModelVersion, LedgerEntry, RequestEvent)
    with db.reading() as session:
        return tuple(session.execute(select(func.count()).select_from(t)).scalar_one() for t in tables)


def reaped(lease: Lease) -> None:
    with db.transaction() as session:
        endings.reap(session, lease.request_id, lease.fence, max_attempts=9, reason="x", only_expired=False)


def taken_over(lease: Lease, owner: str = "w2") -> None:
    reaped(lease)
    h.make_due(lease.request_id)
    with db.transaction() as session:
        assert leases.claim(session, lease.request_id, owner=owner, lease_seconds=60)


STALE: dict[str, Callable[[Lease], None]] = {
    "its lease was reaped": reaped,
    "another worker holds it": taken_over,
    "the same worker holds it again, under a new fence": lambda lease: taken_over(lease, owner=lease.owner),
    "somebody cancelled": lambda lease: h.withdraw(lease.request_id),
}


@pytest.mark.parametrize("why", STALE)
def test_a_worker_that_lost_the_request_publishes_nothing(house: h.House, why: str) -> None:
    lease = claimed(house)
    STALE[why](lease)
    before, row = counts(), h.request(lease.request_id)
    with pytest.raises(LeaseLost), db.transaction() as session:
        publish(session, lease, result())
    after = h.request(lease.request_id)
    assert counts() == before
    assert (after.status, after.fence, after.version, after.checkpoint_id) == (row.status, row.fence, row.version, None)
    with db.reading() as session:
        assert session.get_one(Model, house.model_id).current_version == 1


def test_a_result_of_another_base_is_not_published(house: h.House) -> None:
    lease = claimed(house)
    with db.transaction() as session:
        session.get_one(Model, house.model_id).current_version = 2
    before = counts()
    with pytest.raises(BaseMoved), db.transaction() as session:
        publish(session, lease, result())
    assert counts() == before
    assert h.request(lease.request_id).status == "running"


def test_publishing_again_after_a_lost_answer_changes_nothing(house: h.House) -> None:
    lease, what = claimed(house), result()
    with db.transaction() as session:
        publish(session, lease, what)
    before = counts()
    with db.transaction() as session:
        publish(session, lease, what)
    assert counts() == before
    with pytest.raises(LeaseLost), db.transaction() as session:
        publish(session, lease, result())  # another result of the same attempt
    assert counts() == before


def test_a_publication_closes_the_request_last(house: h.House) -> None:
    lease, what = claimed(house), result()
    with db.transaction() as session:
        publish(session, lease, what)
    assert h.actions(lease.request_id) == [
        "run.started", "certificate.issued", "model.published", "unlearning.request.closed",
    ]  # fmt: skip
    row = h.request(lease.request_id)
    assert (row.status, row.checkpoint_id, row.lease_owner) == ("succeeded", what.checkpoint_id, None)
    assert h.attempts(lease.request_id)[0].outcome == "succeeded"
    assert h.events(lease.request_id) == ["started", "checkpoint.certified", "succeeded"]
