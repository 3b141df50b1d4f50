"""What people decide about certificates and versions afterwards: revocation by two, disposition, and what the ledger keeps."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from service import db, sockets
from service.audit import access
from service.audit.leaves import Actor
from service.auth import current_actor
from service.certificates import commitment, dsse, revocations, signing
from service.checkpoints import membership, revocation_list
from service.config import get_settings
from service.storage import get_store
from service.tables import Checkpoint, ForgetCommitment, LedgerEntry, RevocationList, new_id
from tests.service.certificates.doubles import is_signed_by
from tests.support import ask, code_of, publish, register

ALICE, BOB = Actor(kind="user", id="alice"), Actor(kind="user", id="bob")


@pytest.fixture
def published(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    model = register(client, tmp_path)
    checkpoint = publish(model, ask(client, model, 1).json()["id"], {"w.safetensors": b"x"}, tmp_path)
    return {"model": model["id"], "id": checkpoint}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, client: TestClient) -> Iterator[Any]:
    """Two people are needed; `two(ALICE)` says who calls from now on."""
    monkeypatch.setenv("EXPUNGE_FOUR_EYES", "two")
    get_settings.cache_clear()

    def speaks(actor: Actor) -> None:
        client.app.dependency_overrides[current_actor] = lambda: actor  # type: ignore[attr-defined]

    speaks(ALICE)
    yield speaks
    client.app.dependency_overrides.clear()  # type: ignore[attr-defined]
    get_settings.cache_clear()


def told(action: str) -> list[dict[str, Any]]:
    with db.reading() as session:
        chosen = select(LedgerEntry.leaf).where(LedgerEntry.action == action).order_by(LedgerEntry.seq)
        return [json.loads(leaf or b"")["public"] for leaf in session.scalars(chosen)]


def test_a_revocation_takes_two_people(client: TestClient, published: dict[str, Any], two: Any) -> None:
    address = f"/checkpoints/{published['id']}"
    assert code_of(client.post(f"{address}/revoke/approve")) == "revocation_not_asked"
    asked = client.post(f"{address}/revoke", json={"reason": "result_wrong"})
    assert (asked.status_code, asked.json()["status"], asked.json()["approved_by"]) == (201, "asked", None)
    assert code_of(client.post(f"{address}/revoke", json={"reason": "other"})) == "revocation_exists"
    assert client.get(address).json()["status"] == "current"
    assert client.get(f"{address}/files/w.safetensors").status_code == 200
    assert code_of(client.post(f"{address}/revoke/approve")) == "four_eyes"
    two(BOB)
    done = client.post(f"{address}/revoke/approve").json()
    assert (done["status"], done["asked_by"], done["approved_by"], done["self_approved"]) == (
        "approved", "user:alice", "user:bob", False,
    )  # fmt: skip
    gone = client.get(f"{address}/files/w.safetensors")
    assert (gone.status_code, code_of(gone)) == (410, "checkpoint_revoked")
    assert client.get(address).json()["status"] == "revoked"
    assert client.get(f"{address}/certificate").status_code == 200  # what was said stays readable
    (fact,) = told("certificate.revoked")
    assert (fact["checkpointId"], fact["reason"], fact["selfApproved"]) == (published["id"], "result_wrong", False)


def test_one_person_is_enough_where_the_operator_says_so_and_the_record_shows_it(
    client: TestClient, published: dict[str, Any]
) -> None:
    done = client.post(f"/checkpoints/{published['id']}/revoke", json={"reason": "withdrawn"}).json()
    assert (done["status"], done["self_approved"]) == ("approved", True)
    assert told("certificate.revoked")[0]["selfApproved"] is True


def test_the_database_itself_refuses_the_same_person_twice(client: TestClient, published: dict[str, Any], two: Any) -> None:
    client.post(f"/checkpoints/{published['id']}/revoke", json={"reason": "other"})
    row = "INSERT INTO checkpoint_revocation VALUES (:id, 'approved', 'other', 'user:alice', :at, :self)"
    with pytest.raises(DBAPIError, match="two people"), db.transaction() as session:
        session.execute(text(row), {"id": published["id"], "at": "2026-11-21 10:00:00", "self": False})
    for statement in ("UPDATE checkpoint_revocation SET reason = 'x'", "DELETE FROM checkpoint_revocation"):
        with pytest.raises(DBAPIError, match="append-only"), db.transaction() as session:
            session.execute(text(statement))


@pytest.mark.one_database
def test_bad_wishes(client: TestClient, published: dict[str, Any]) -> None:
    address = f"/checkpoints/{published['id']}"
    assert client.post(f"{address}/revoke", json={"reason": "whim"}).status_code == 422
    assert client.post(f"{address}/revoke", json={"reason": "other", "note": "x"}).status_code == 422
    assert client.post("/checkpoints/ckpt_x/revoke", json={"reason": "other"}).status_code == 404
    assert code_of(client.get(f"{address}/membership", params={"item": "x"})) == "commitment_erased"
    assert client.get(f"{address}/files/UNLEARNING/other.json").status_code == 404


def test_asking_for_membership_is_a_read_that_the_ledger_knows_and_that_names_no_item(
    client: TestClient, published: dict[str, Any]
) -> None:
    secret, leaves = b"k" * 32, commitment.leaves(b"k" * 32, ["jane.png"])
    with db.transaction() as session:
        session.add(ForgetCommitment(checkpoint_id=published["id"], secret=secret, leaves=commitment.packed(leaves)))
    address = f"/checkpoints/{published['id']}/membership"
    opened = client.get(address, params={"item": "jane.png"})
    assert (opened.status_code, commitment.holds(opened.json())) == (200, True)
    assert code_of(client.get(address, params={"item": "joe.png"})) == "item_not_forgotten"
    reads = [fact for fact in told("audit.read") if fact["what"] == "membership"]
    assert [fact["count"] for fact in reads] == [1, 0]
    # a digest of the item would confirm a guess for as long as the ledger stands
    assert {fact["filtersSha256"] for fact in reads} == {access.filters_digest({"checkpoint_id": published["id"]})}


def test_shredding_a_request_erases_what_opens_its_commitment(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request_id = ask(client, model, 1, reason="Jane wants it").json()["id"]
    checkpoint_id = publish(model, request_id, {"w.safetensors": b"x"}, tmp_path)
    leaves = commitment.leaves(b"k" * 32, ["jane.png"])
    with db.transaction() as session:
        session.add(ForgetCommitment(checkpoint_id=checkpoint_id, secret=b"k" * 32, leaves=commitment.packed(leaves)))
    address, item = f"/checkpoints/{checkpoint_id}/membership", {"item": "jane.png"}
    hold = f"/unlearn-requests/{request_id}/legal-hold"
    client.post(hold, json={"hold": True, "ground": "legal_claim"})
    entry = next(e for e in client.get(f"/audit/entries?request_id={request_id}").json()["data"])
    client.post("/audit/redactions", json={"seq": entry["seq"], "reason": "personal_data"})
    assert client.get(address, params=item).status_code == 200  # held: what a redaction would erase stays
    client.post(hold, json={"hold": False, "ground": "legal_claim"})
    assert client.post(f"/unlearn-requests/{request_id}/shred", json={"ground": "erasure_request"}).status_code == 200
    assert code_of(client.get(address, params=item)) == "commitment_erased"
    with db.reading() as session:
        assert session.get_one(ForgetCommitment, checkpoint_id).secret is None
        assert not membership.may_keep(session, request_id)


@contextmanager
def a_signer(client: TestClient, key: ec.EllipticCurvePrivateKey) -> Iterator[list[int]]:
    """A signer at its socket; yields the numbers of the lists that it signed."""
    stop, ready, numbers = threading.Event(), threading.Event(), list[int]()
    desks = signing.desks(signing.KeySigner(dsse.key_of(key), get_store()))

    def counted(statement: Any) -> dict[str, Any]:
        time.sleep(0.1)  # long enough for others to ask as well
        numbers.append(statement["predicate"]["number"])
        return desks["revocations"](statement)

    path = client.app.state.settings.socket_path  # type: ignore[attr-defined]
    arguments = (path, {**desks, "revocations": counted})
    thread = threading.Thread(target=sockets.serve, args=arguments, kwargs={"ready": ready.set, "stop": stop})
    thread.start()
    try:
        assert ready.wait(10)
        yield numbers
    finally:
        stop.set()
        thread.join(10)


def test_the_list_of_revocations_is_signed(client: TestClient, published: dict[str, Any], tmp_path: Path) -> None:
    assert code_of(client.get("/revocations")) == "signer_away"
    key = ec.generate_private_key(ec.SECP256R1())
    with a_signer(client, key):
        before = client.get("/revocations").json()
        client.post(f"/checkpoints/{published['id']}/revoke", json={"reason": "key_compromised"})
        after = client.get("/revocations").json()
    lists = []
    for bundle in (before, after):
        assert is_signed_by(bundle, key.public_key())
        said = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        assert revocations.objections(said, datetime.now(UTC)) == []
        lists.append(said["predicate"])
    assert lists[0]["revoked"] == []
    assert [one["checkpoint"] for one in lists[1]["revoked"]] == [published["id"]]
    assert lists[1]["ledgerSize"] == lists[0]["ledgerSize"] + 2


def test_the_list_is_signed_once_for_each_change(client: TestClient, published: dict[str, Any]) -> None:
    """However many ask, at the same moment or later; and it is answered where the signer is away but nothing changed."""
    key = ec.generate_private_key(ec.SECP256R1())
    with a_signer(client, key) as numbers:

        def ask_at_once() -> Any:
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(lambda _: client.get("/revocations"), range(12)))
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.content for answer in answers}) == 1
            return answers[0]

        first = ask_at_once()
        assert len(numbers) == 1
        client.post(f"/checkpoints/{published['id']}/revoke", json={"reason": "other"})
        second = ask_at_once()
        assert len(numbers) == 2
        client.get("/audit/entries")  # the ledger grows, the list stays
        assert client.get("/revocations").content == second.content
    assert client.get("/revocations").content == second.content
    assert first.headers["etag"] == f'"sha256:{hashlib.sha256(first.content).hexdigest()}"'
    assert second.headers["cache-control"] == "public, max-age=60"
    assert client.get("/revocations", headers={"If-None-Match": first.headers["etag"]}).status_code == 200
    same = client.get("/revocations", headers={"If-None-Match": second.headers["etag"]})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", second.headers["etag"])
    told = json.loads(base64.b64decode(second.json()["dsseEnvelope"]["payload"]))["predicate"]
    begun, ends = (datetime.fromisoformat(told[name]) for name in ("asOf", "nextUpdate"))
    assert numbers[0] < numbers[1]
    assert (told["number"], ends - begun) == (numbers[1], timedelta(hours=24))


def test_the_number_of_a_list_does_not_go_back_when_the_database_does(client: TestClient) -> None:
    """Whoever saw a higher one would take the list that names more for the old one."""
    with a_signer(client, ec.generate_private_key(ec.SECP256R1())) as numbers:
        client.get("/revocations")
        with db.reading() as session:
            row = session.scalars(select(RevocationList)).one()
            kept = {column.key: getattr(row, column.key) for column in RevocationList.__table__.columns}
        for _ in range(2):
            with db.transaction() as session:
                session.execute(update(RevocationList).values(next_update=datetime.now(UTC) - timedelta(seconds=1)))
            time.sleep(1.1)  # numbers are of seconds
            client.get("/revocations")
        with db.transaction() as session:
            session.execute(update(RevocationList).values({**kept, "next_update": datetime.now(UTC) - timedelta(seconds=1)}))
        time.sleep(1.1)
        client.get("/revocations")
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 4


def test_a_list_that_ran_out_or_is_of_another_key_is_signed_anew(client: TestClient, published: dict[str, Any]) -> None:
    def set_to(column: str, value: datetime) -> None:
        with db.transaction() as session:
            session.execute(update(RevocationList).values({column: value}))

    past, future = (datetime.now(UTC) + timedelta(seconds=by) for by in (-1, 3600))
    with a_signer(client, ec.generate_private_key(ec.SECP256R1())) as numbers:
        client.get("/revocations")
        set_to("next_update", past)
        assert client.get("/revocations").status_code == 200
        assert len(numbers) == 2
        public: Path = client.app.state.settings.public_key_file  # type: ignore[attr-defined]
        public.parent.mkdir(parents=True, exist_ok=True)
        public.write_bytes(b"another key")
        client.get("/revocations")
        set_to("next_update", past)
        set_to("claimed_until", past)  # whoever claimed it died
        assert client.get("/revocations").status_code == 200
        assert len(numbers) == 4
        set_to("next_update", past)
        set_to("claimed_until", future)  # whoever claimed it takes long: an old list is no answer
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(revocation_list, "SIGNER_SECONDS", 0.2)
            assert code_of(client.get("/revocations")) == "signer_away"
        assert len(numbers) == 4
    set_to("claimed_until", past)
    assert code_of(client.get("/revocations")) == "signer_away"
    with db.reading() as session:
        row = session.scalars(select(RevocationList)).one()
        assert (row.number, row.claimed_until) == (numbers[-1], None)  # given back, for the next who asks


def test_what_became_of_a_replaced_version_is_recorded(client: TestClient, published: dict[str, Any]) -> None:
    address = f"/models/{published['model']}/versions"
    assert code_of(client.post(f"{address}/2/disposition", json={"state": "withdrawn"})) == "version_current"
    assert code_of(client.post(f"{address}/9/disposition", json={"state": "withdrawn"})) == "version_not_found"
    for state in ("withdrawn", "destroyed"):
        assert client.post(f"{address}/1/disposition", json={"state": state}).json()["state"] == state
    assert code_of(client.post(f"{address}/1/disposition", json={"state": "quarantined"})) == "version_destroyed"
    assert [fact["state"] for fact in told("model.parent.disposed")] == ["withdrawn", "destroyed"]
    assert client.post(f"{address}/1/disposition", json={"state": "sold"}).status_code == 422


def test_certificates_of_older_releases_are_bare_envelopes_and_are_revoked_all_the_same(
    client: TestClient, tmp_path: Path
) -> None:
    model = register(client, tmp_path)
    request_id, old = ask(client, model, 1).json()["id"], new_id("ckpt")
    with db.transaction() as session:
        session.add(
            Checkpoint(id=old, request_id=request_id, model_id=model["id"], fence=1, digest="0" * 64,
                       certificate={"payload": "e30=", "payloadType": "x", "signatures": []}, created_at=db.now(session))
        )  # fmt: skip
    assert client.post(f"/checkpoints/{old}/revoke", json={"reason": "other"}).status_code == 201
    assert client.get("/audit/questions/without-third-party-evidence").status_code == 200
    assert client.get(f"/checkpoints/{old}/files/UNLEARNING/plan.tlog-proof").status_code == 404


@pytest.mark.parametrize("number", [0, 2**31, 2**63])
def test_a_version_number_that_none_can_have(client: TestClient, published: dict[str, Any], number: int) -> None:
    address = f"/models/{published['model']}/versions/{number}/disposition"
    assert client.post(address, json={"state": "withdrawn"}).status_code == 422


def test_ids_that_are_none_are_not_looked_up(client: TestClient) -> None:
    assert client.post("/audit/redactions/%00/approve").status_code == 404
    for query in ("request-history?request_id=%00", "requests-of-model?model_id=%00"):
        assert client.get(f"/audit/questions/{query}").status_code == 422
