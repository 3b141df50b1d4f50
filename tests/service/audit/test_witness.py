"""The witness, by its protocol (C2SP tlog-witness): what it answers, and what it remembers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient

from service.audit import notes
from service.audit.witness import InUse, Witness, make_app
from service.verifier.merkle import leaf_hash
from service.verifier.note import Note, Policy
from tests.service.audit.logs import Tree, signed, vkey

ORIGIN = "log.example/l"
LOG, KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
LEAVES = [leaf_hash(bytes([n])) for n in range(30)]
TREE, FORK = Tree(LEAVES), Tree([leaf_hash(b"another"), *LEAVES[1:]])


def body(old: int, size: int, tree: Tree = TREE, *, key: Ed25519PrivateKey = LOG, origin: str = ORIGIN) -> str:
    return notes.add_checkpoint(old, tree.proof(old, size), signed(origin, key, size, tree.roots[size]))


TOO_LONG = notes.add_checkpoint(1, [bytes(32)] * 64, signed(ORIGIN, LOG, 9, TREE.roots[9]))
"""More hashes than any tree can need."""


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness("w.example/1", KEY, [vkey(ORIGIN, LOG)], tmp_path / "state.json")
    yield made
    made.close()


@pytest.fixture
def client(witness: Witness) -> TestClient:
    return TestClient(make_app(witness))


def send(client: TestClient, text: str) -> Any:
    return client.post("/add-checkpoint", content=text.encode())


def test_an_extension_is_cosigned_and_can_be_looked_up(client: TestClient, witness: Witness) -> None:
    policy = Policy.parse(f"log {vkey(ORIGIN, LOG)}\nwitness w {witness.key}\nquorum w\n")
    address = f"/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint"
    assert client.get(address).status_code == 404
    for old, size in ((0, 10), (10, 11), (11, 30), (30, 30)):
        answer = send(client, body(old, size))
        assert answer.status_code == 200
        note = signed(ORIGIN, LOG, size, TREE.roots[size]) + answer.text
        assert policy.checkpoint(note).size == size
        shown = client.get(address)
        assert policy.checkpoint(shown.text).size == size
        assert len(Note.parse(shown.text).signatures) == 2


def test_history_is_not_rewritten_before_a_witness(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    assert send(client, body(0, 10)).status_code == 200
    for text in (
        body(10, 20, FORK),
        body(10, 10, FORK),
        notes.add_checkpoint(10, [], signed(ORIGIN, LOG, 20, TREE.roots[20])),
        notes.add_checkpoint(10, TREE.proof(10, 20), signed(ORIGIN, LOG, 20, FORK.roots[20])),
    ):
        assert send(client, text).status_code == 422
    assert "log.inconsistent" in caplog.messages
    assert send(client, body(10, 20)).status_code == 200


def test_a_proof_that_starts_elsewhere_is_told_the_size(client: TestClient) -> None:
    assert send(client, body(0, 10)).status_code == 200
    for text in (body(0, 20), body(5, 20), body(5, 5), body(0, 5, FORK)):
        answer = send(client, text)
        assert (answer.status_code, answer.text) == (409, "10\n")
        assert answer.headers["content-type"] == "text/x.tlog.size"


def test_an_old_size_above_the_checkpoint_is_malformed(client: TestClient) -> None:
    assert send(client, notes.add_checkpoint(11, [], signed(ORIGIN, LOG, 10, TREE.roots[10]))).status_code == 400


def test_an_unknown_log_and_an_unknown_key(client: TestClient) -> None:
    assert send(client, body(0, 10, origin="other.example")).status_code == 404
    assert send(client, body(0, 10, key=Ed25519PrivateKey.generate())).status_code == 403
    forged = body(0, 10).replace("\n10\n", "\n11\n")
    assert send(client, forged).status_code == 403
    assert client.get("/" + hashlib.sha256(b"other.example").hexdigest() + "/checkpoint").status_code == 404


@pytest.mark.parametrize("size", [0])
def test_the_empty_tree_has_one_root(client: TestClient, size: int) -> None:
    assert send(client, notes.add_checkpoint(0, [], signed(ORIGIN, LOG, size, TREE.roots[1]))).status_code == 422
    assert send(client, notes.add_checkpoint(0, [TREE.roots[1]], signed(ORIGIN, LOG, 9, TREE.roots[9]))).status_code == 422
    assert send(client, body(0, 0)).status_code == 200
    assert send(client, body(0, 9)).status_code == 200


@pytest.mark.parametrize(
    "text",
    ["", "old 0\n", "old x\n\nx", body(0, 10).replace("old 0", "old 00"), body(0, 10).replace("old 0", "new 0"),
     body(0, 10).replace("old 0\n", "old 0\nAAAA\n"), TOO_LONG,
     "x" * 70_000, "old 0\n\n" + ORIGIN + "\n1\n"],
)  # fmt: skip
def test_what_is_no_request(client: TestClient, text: str) -> None:
    assert send(client, text).status_code == 400


def test_a_body_that_is_no_text_is_malformed(client: TestClient) -> None:
    assert client.post("/add-checkpoint", content=b"old 0\n\n\xff\xfe").status_code == 400


def test_what_was_seen_survives_a_restart(witness: Witness, tmp_path: Path) -> None:
    assert witness.add(body(0, 10).encode()).status == 200
    with pytest.raises(InUse):
        Witness("w.example/1", KEY, [vkey(ORIGIN, LOG)], tmp_path / "state.json")
    witness.close()
    again = Witness("w.example/1", KEY, [vkey(ORIGIN, LOG)], tmp_path / "state.json")
    assert again.add(body(0, 20, FORK).encode()).status == 409
    assert again.add(body(10, 20, FORK).encode()).status == 422
    assert again.add(body(10, 20).encode()).status == 200
    again.close()


def test_of_two_histories_at_once_one_is_cosigned(witness: Witness) -> None:
    texts = [body(0, 10), body(0, 10, FORK)] * 8
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda text: witness.add(text.encode()).status, texts))
    assert answers.count(200) == 1
    assert set(answers) == {200, 409}


def test_both_keys_of_a_rotation_are_known(tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    made = Witness("w", KEY, [vkey(ORIGIN, LOG), vkey(ORIGIN, new)], tmp_path / "s.json")
    assert made.add(body(0, 10).encode()).status == 200
    assert made.add(body(10, 20, key=new).encode()).status == 200
    made.close()
