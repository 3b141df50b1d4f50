"""The ledger as a transparency log over HTTP: what it serves rebuilds the tree, and receipts hold without it."""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from sqlalchemy import insert, select, text

from service import db
from service.audit import archive, ledger, proofs, repository, tiles
from service.audit.export import Inconsistent
from service.audit.leaves import LOCAL, CertificateIssued
from service.audit.merkle import is_extension
from service.config import get_settings
from service.tables import LedgerCheckpoint, LedgerEntry, LedgerNode
from service.verifier.ledger import verify_ledger
from service.verifier.merkle import Frontier, leaf_hash, root_of_inclusion
from service.verifier.note import Checkpoint, Key, Note, Policy, Refused, inclusion
from tests.service.audit import logs
from tests.service.audit.logs import grow, signed
from tests.support import ask, code_of, publish, register


def sign() -> None:
    assert logs.notary().round(hurry=True) is not None


def trusted(client: TestClient) -> Policy:
    return Policy.parse(client.get("/audit/policy").text)


def newest(client: TestClient) -> Checkpoint:
    return trusted(client).checkpoint(client.get("/audit/checkpoint").text)


def rebuilt(client: TestClient, size: int) -> bytes:
    """The root of a tree from its tiles alone; every tile is held against the one below it."""
    tree, below = Frontier(), list[bytes]()
    for level, index, width in tiles.tiles(size):
        answer = client.get(f"/audit/{tiles.tile_path(level, index, width)}")
        assert answer.status_code == 200, (level, index, width)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert len(answer.content) == 32 * width
        found = [answer.content[i : i + 32] for i in range(0, 32 * width, 32)]
        if level == 0:
            for one in found:
                tree.append(one)
        if index == 0:
            below, under = [], below
        for place, one in enumerate(found, start=index * 256):
            if level:
                part = Frontier()
                for leaf in under[place * 256 : place * 256 + 256]:
                    part.append(leaf)
                assert part.root() == one
        below.extend(found)
    return tree.root()


def bundles(client: TestClient, size: int) -> list[bytes]:
    """All entries."""
    found = []
    for level, index, width in tiles.tiles(size):
        if level == 0:
            data = client.get(f"/audit/{tiles.tile_path('entries', index, width)}").content
            while data:
                length = int.from_bytes(data[:2], "big")
                found.append(data[2 : 2 + length])
                data = data[2 + length :]
    return found


def test_nothing_is_signed_at_first(client: TestClient) -> None:
    grow(1)
    for path in ("checkpoint", "policy", "status", "proof/inclusion?seq=0", "proof/consistency?from=0"):
        answer = client.get(f"/audit/{path}")
        assert (answer.status_code, code_of(answer)) == (503, "not_yet_signed")
        assert answer.headers["retry-after"] == "10"


def test_checkpoint_and_policy_are_what_a_stranger_needs(client: TestClient) -> None:
    grow(300)
    sign()
    answer = client.get("/audit/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert newest(client).size == 301
    assert rebuilt(client, 301) == newest(client).root
    entries = bundles(client, 301)
    tree = Frontier()
    for leaf in entries:
        tree.append(leaf_hash(leaf))
    assert tree.root() == newest(client).root
    status = client.get("/audit/status").json()
    assert (status["size"], status["signed"]["size"], status["accepted"]["size"]) == (303, 301, 301)  # two bundles were read
    assert status["origin"] == newest(client).origin
    assert status["time_stamped"] is None


def store(size: int, note: str, *, seconds: float = 0, stamp: bytes | None = None) -> None:
    """A row as whoever holds the application's login may insert it."""
    with db.transaction() as session:
        at = db.now(session) + timedelta(seconds=seconds)
        session.add(LedgerCheckpoint(log_id=1, size=size, created_at=at, note=note, time_stamp=stamp))


def test_rows_that_are_no_checkpoints_are_named_and_passed_over(
    client: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grow(4)
    sign()
    good = client.get("/audit/checkpoint").text
    said = client.get("/audit/status").json()
    assert (said["status"], said["problems"]) == ("ok", [])
    text, _, lines = good.partition("\n\n")
    junk = {
        "expected a text, an empty line": (5, "junk"),
        "its origin is other.example": (5, signed("other.example", Ed25519PrivateKey.generate(), 5, bytes(32))),
        "no key of this ledger has signed it": (4, signed(newest(client).origin, Ed25519PrivateKey.generate(), 4, bytes(32))),
        "its note is of 5 entries": (9_000_000, good),
        "does not hold": (3, text.replace("\n5\n", "\n3\n") + "\n\n" + lines),
    }
    for number, (size, note) in enumerate(junk.values()):
        store(size, note, seconds=number, stamp=b"a stamp")
    said = client.get("/audit/status").json()
    assert said["status"] == "degraded"
    for why, (size, _) in junk.items():
        assert [p for p in said["problems"] if why in p and f"size {size}," in p], (why, said["problems"])
    assert len(said["problems"]) == len(junk)
    assert (said["signed"]["size"], said["accepted"]["size"], said["time_stamped"]) == (5, 5, None)
    # and everybody else goes on with what there was
    assert client.get("/audit/checkpoint").text == good
    assert client.get("/audit/proof/inclusion?seq=0").status_code == 200
    assert client.get("/audit/proof/consistency?from=1").json()["to"] == 5
    archive.write(tmp_path / "export", get_settings())
    (tmp_path / "policy").write_text(client.get("/audit/policy").text)
    report = verify_ledger(tmp_path / "export", tmp_path / "policy")
    assert (report.valid, report.facts["checkpoints"]) == (True, 2), report  # `checkpoint`, and the same once more
    assert caplog.messages.count("checkpoint.skipped") == len(junk)
    grow(1)
    sign()
    assert newest(client).size == size_of_ledger()


def size_of_ledger() -> int:
    with db.reading() as session:
        return repository.size(session)


def test_a_ledger_shorter_than_what_was_signed_is_degraded_and_not_exported(client: TestClient, tmp_path: Path) -> None:
    grow(4)
    sign()
    (key,) = logs.log_signer()._folder.signing()
    store(8, signed(newest(client).origin, key, 8, bytes(32)))
    said = client.get("/audit/status").json()
    assert said["status"] == "degraded"
    assert "size 8," in said["problems"][0]
    assert "the ledger has 5 entries: its end is missing" in said["problems"][0]
    with pytest.raises(Inconsistent, match="8 entries were signed, and here are 5"):
        archive.write(tmp_path / "export", get_settings())


def test_a_tree_other_than_the_signed_one_is_degraded(client: TestClient) -> None:
    grow(4)
    sign()
    with db.transaction() as session:
        for (name,) in triggers(session, "ledger_node"):
            session.execute(text(f"DROP TRIGGER {name}" + ("" if sqlite(session) else " ON ledger_node")))
        session.execute(text("UPDATE ledger_node SET hash = (SELECT leaf_hash FROM ledger_entry WHERE seq = 0)"))
    said = client.get("/audit/status").json()
    assert (said["status"], said["problems"]) == ("degraded", ["the ledger's first 5 entries are not those that were signed"])
    with db.transaction() as session:
        session.execute(text("DELETE FROM ledger_node"))
    assert client.get("/audit/status").json()["problems"] == said["problems"]


def sqlite(session: Any) -> bool:
    return bool(session.get_bind().dialect.name == "sqlite")


def triggers(session: Any, table: str) -> list[Any]:
    if sqlite(session):
        asked = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table"
    else:
        asked = "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal"
    return list(session.execute(text(asked), {"table": table}).all())


@pytest.mark.one_database
def test_tiles_rebuild_the_root_around_their_edges(client: TestClient) -> None:
    tree = logs.Tree([hashlib.sha256(b"%d" % n).digest() for n in range(70_000)])
    rows = [{"log_id": 1, "level": level, "idx": idx, "hash": value} for (level, idx), value in tree.nodes.items()]
    with db.transaction() as session:
        session.execute(text("DROP TRIGGER ledger_node_no_replace"))  # it asks about every row
        session.execute(insert(LedgerNode), rows)
    for size in (1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000):
        with db.reading() as session:
            assert repository.root(session, size) == tree.roots[size]
        if size < 1000 or size == 70_000:
            assert rebuilt(client, size) == tree.roots[size]
    assert len(client.get("/audit/tile/2/000.p/1").content) == 32
    for path in ("tile/0/273", "tile/0/273.p/113", "tile/1/001.p/18", "tile/2/000.p/2", "tile/3/000.p/1", "tile/2/001.p/1"):
        assert code_of(client.get(f"/audit/{path}")) == "entry_not_found"


@pytest.mark.parametrize(
    "path",
    ["tile/0/0", "tile/0/000.p/0", "tile/00/000", "tile/64/000", "tile/x/000", "tile/0/x000/000", "tile/0/000.p/256",
     "tile/entries/000.p/9", "tile/entries/00", "tile/0/999", "tile/entries/x999/x999/x999/x999/x999/999", "entries/9",
     "entries/-1", "entries/99999999999999999999", "proof/inclusion?seq=9", "proof/inclusion?seq=1&size=1",
     "proof/consistency?from=2&to=9", "proof/consistency?from=2&to=1"],
)  # fmt: skip
def test_what_is_not_there(client: TestClient, path: str) -> None:
    grow(2)
    sign()
    assert code_of(client.get(f"/audit/{path}")) == "entry_not_found"


@pytest.mark.parametrize("path", ["proof/inclusion", "proof/inclusion?seq=-1", "proof/consistency?from=x", "entries/x"])
def test_what_makes_no_sense(client: TestClient, path: str) -> None:
    assert code_of(client.get(f"/audit/{path}")) == "validation_failed"


def test_one_entry_by_its_number(client: TestClient) -> None:
    grow(3)
    listed = client.get("/audit/entries").json()["data"][1]
    assert client.get("/audit/entries/1").json() == listed


def test_an_inclusion_proof_as_a_file_and_as_hashes(client: TestClient) -> None:
    grow(5)
    sign()
    grow(4)
    proof = client.get("/audit/proof/inclusion?seq=2").text
    leaf = base64.b64decode(proof.splitlines()[1].removeprefix("extra "))
    assert inclusion(proof, leaf_hash(leaf), trusted(client)) == (2, newest(client))
    assert client.get("/audit/proof/inclusion?seq=2&size=6").text == proof
    told = client.get("/audit/proof/inclusion?seq=2&size=9", headers={"Accept": "application/json"}).json()
    hashes = [base64.b64decode(one) for one in told["hashes"]]
    root = root_of_inclusion(2, 9, bytes.fromhex(told["leaf_hash"]), hashes)
    assert root == base64.b64decode(told["root"])
    with db.reading() as session:
        assert root == repository.root(session, 9)
    assert client.get("/audit/proof/inclusion?seq=2", headers={"Accept": "application/json"}).json()["size"] == 10
    for path in ("seq=2&size=9", "seq=8"):
        assert code_of(client.get(f"/audit/proof/inclusion?{path}")) == "not_yet_signed"


def test_a_consistency_proof_leads_from_a_checkpoint_that_was_kept(client: TestClient) -> None:
    grow(5)
    sign()
    before = newest(client)
    grow(7)
    sign()
    after = newest(client)
    told = client.get(f"/audit/proof/consistency?from={before.size}").json()
    hashes = [base64.b64decode(one) for one in told["hashes"]]
    assert (told["from"], told["to"]) == (6, 13)
    assert is_extension(before.size, before.root, after.size, after.root, hashes)
    assert [base64.b64decode(told[k]) for k in ("from_root", "to_root")] == [before.root, after.root]
    assert client.get("/audit/proof/consistency?from=0&to=0").json()["hashes"] == []


def test_a_redacted_entry_is_empty_in_its_bundle_and_still_proven(client: TestClient) -> None:
    grow(3)
    sign()
    size = newest(client).size
    assert client.post("/audit/redactions", json={"seq": 1, "reason": "personal_data"}).status_code == 202
    sign()
    answer = client.get("/audit/tile/entries/000.p/3")
    assert "immutable" not in answer.headers["cache-control"]  # an entry's bytes must not outlive its redaction
    assert [len(leaf) > 0 for leaf in bundles(client, size)] == [True, False, True, True]
    proof = client.get("/audit/proof/inclusion?seq=1").text
    assert "extra" not in proof
    with db.reading() as session:
        kept = session.scalars(select(LedgerEntry.leaf_hash).where(LedgerEntry.seq == 1)).one()
    assert inclusion(proof, kept, trusted(client))[0] == 1


# ------------------------------------------------------------------------------------------------------------- receipts


def checked(proof: str, policy: Policy) -> tuple[int, bytes]:
    """A receipt as whoever got it checks it: offline, with the entry that it carries."""
    leaf = base64.b64decode(proof.splitlines()[1].removeprefix("extra "))
    return inclusion(proof, leaf_hash(leaf), policy)[0], leaf


def test_a_request_is_told_where_it_is_recorded_and_gets_its_receipt(client: TestClient, tmp_path: Path) -> None:
    created = ask(client, register(client, tmp_path), 3, key="k").json()
    entry = client.get(f"/audit/entries/{created['ledger_seq']}").json()
    assert (entry["action"], entry["request_id"]) == ("unlearning.request.received", created["id"])
    assert created["receipt_url"] == f"/unlearn-requests/{created['id']}/receipt"
    early = client.get(created["receipt_url"])
    assert (early.status_code, code_of(early), early.headers["retry-after"]) == (503, "not_yet_signed", "10")
    sign()
    receipt = client.get(created["receipt_url"])
    assert receipt.headers["content-type"] == "text/plain; charset=utf-8"
    seq, leaf = checked(receipt.text, trusted(client))
    assert seq == created["ledger_seq"]
    assert created["id"].encode() in leaf
    stranger = Policy.parse(f"log {Key(trusted(client).logs[0].name, 1, bytes(32))}\nquorum none\n")
    with pytest.raises(Refused):
        checked(receipt.text, stranger)
    with pytest.raises(Refused):
        checked(receipt.text.replace(f"index {seq}", f"index {seq - 1}"), trusted(client))


def test_a_checkpoint_has_the_receipt_of_its_certificate(client: TestClient, tmp_path: Path) -> None:
    model = register(client, tmp_path)
    request = ask(client, model, 3).json()
    checkpoint = publish(model, request["id"], {"w.safetensors": b"w"}, tmp_path)
    address = f"/checkpoints/{checkpoint}/receipt"
    assert code_of(client.get(address)) == "receipt_not_found"
    issued = CertificateIssued(checkpoint_id=checkpoint, payload_sha256="0" * 64, key_id="1" * 64)
    with db.transaction() as session:
        seq = ledger.append(session, issued, actor=LOCAL, request_id=request["id"], model_id=model["id"])
    assert code_of(client.get(address)) == "not_yet_signed"
    sign()
    found, leaf = checked(client.get(address).text, trusted(client))
    assert found == seq
    assert checkpoint.encode() in leaf
    assert code_of(client.get("/checkpoints/nope/receipt")) == "checkpoint_not_found"
    assert code_of(client.get("/unlearn-requests/nope/receipt")) == "request_not_found"


def test_a_receipt_waits_for_the_quorum(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    """One that its own policy refuses would be worth nothing."""
    grow(2)
    sign()
    with db.reading() as session:
        before: Any = proofs.tlog_proof(session, 1)
    assert checked(before, trusted(client))[0] == 1
    network = logs.Network()
    (key,) = trusted(client).logs
    witness = logs.a_witness(network, "w.example", key, tmp_path)
    (tmp_path / "witnesses").write_text(f"witness w {witness.key} http://w.example\nquorum w\n")
    monkeypatch.setenv("EXPUNGE_LEDGER_WITNESSES", str(tmp_path / "witnesses"))
    db.get_settings.cache_clear()
    with db.reading() as session:
        assert proofs.tlog_proof(session, 1) is None
    grow(1)
    assert logs.notary(network).round(hurry=True) is not None
    with db.reading() as session:
        after: Any = proofs.tlog_proof(session, 1)
        assert proofs.tlog_proof(session, 99) is None
    assert checked(after, Policy.parse(f"log {key}\nwitness w {witness.key}\nquorum w\n"))[0] == 1
    assert len(Note.parse(after.partition("\n\n")[2]).signatures) == 2
