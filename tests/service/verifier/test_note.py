"""C2SP's formats: the examples of the specifications, and what must be refused."""

from __future__ import annotations

import base64
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.audit import merkle
from service.verifier.merkle import Frontier, leaf_hash
from service.verifier.note import (
    COSIGNATURE,
    ED25519,
    Checkpoint,
    Key,
    Malformed,
    Note,
    Policy,
    Refused,
    cosigned,
    inclusion,
)

EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
LOG, WITNESSES = Ed25519PrivateKey.from_private_bytes(b"\1" * 32), [Ed25519PrivateKey.generate() for _ in range(3)]
ORIGIN = "log.example/2026"


def vkey(name: str, key: Ed25519PrivateKey, kind: int = ED25519) -> Key:
    return Key(name, kind, key.public_key().public_bytes_raw())


def line(key: Key, signature: bytes) -> str:
    return f"— {key.name} {base64.b64encode(key.id + signature).decode()}\n"


def signed(size: int, root: bytes, *, witnesses: int = 0, origin: str = ORIGIN) -> str:
    text = Checkpoint(origin, size, root).text
    note = text + "\n" + line(vkey(origin, LOG), LOG.sign(text.encode()))
    for n in range(witnesses):
        signature = (7).to_bytes(8, "big") + WITNESSES[n].sign(cosigned(text, 7))
        note += line(vkey(f"w{n}.example", WITNESSES[n], COSIGNATURE), signature)
    return note


def policy(quorum: str = "quorum none") -> str:
    witnesses = [f"witness W{n} {vkey(f'w{n}.example', key, COSIGNATURE)} https://w{n}" for n, key in enumerate(WITNESSES)]
    return "\n".join(["# ours", f"log {vkey(ORIGIN, LOG)}", "", *witnesses, quorum, ""])


def test_the_example_of_signed_note() -> None:
    key = Key.parse(EXAMPLE_KEY)
    assert str(key) == EXAMPLE_KEY
    assert Note.parse(EXAMPLE).by(key)
    assert not Note.parse(EXAMPLE).by(vkey("example.com/foo", LOG))
    with pytest.raises(Refused, match=r"example\.com/foo does not hold"):
        Note.parse(EXAMPLE.replace("message", "massage")).by(key)


@pytest.mark.parametrize("change", [("\n\n", "\n"), ("— ", "- "), ("AkyA", "?"), ("\n— ", "\n\n— x\n— "), (".\n", ".\x07\n")])
def test_what_is_no_note(change: tuple[str, str]) -> None:
    text = EXAMPLE.replace(*change)
    if text == EXAMPLE:
        text = EXAMPLE[:-3]
    with pytest.raises(Malformed):
        Note.parse(text)


@pytest.mark.parametrize("size", ["01", "-1", "1e3", "", " 1", "٣"])
def test_a_checkpoint_has_a_plain_size(size: str) -> None:
    root = base64.b64encode(b"\0" * 32).decode()
    with pytest.raises(Malformed):
        Checkpoint.parse(f"o\n{size}\n{root}\n")


def test_a_checkpoint_is_believed_for_its_logs_signature_and_its_quorum() -> None:
    note = signed(9, b"\3" * 32, witnesses=2)
    assert Policy.parse(policy()).checkpoint(note) == Checkpoint(ORIGIN, 9, b"\3" * 32)
    for quorum in ("group G 2 W0 W1 W2\nquorum G", "group G any W1 W2\nquorum G", "quorum W0"):
        assert Policy.parse(policy(quorum)).checkpoint(note).size == 9
    for quorum in ("group G all W0 W1 W2\nquorum G", "quorum W2", "group A any W2\ngroup B all A W0\nquorum B"):
        with pytest.raises(Refused, match="too few witnesses"):
            Policy.parse(policy(quorum)).checkpoint(note)
    with pytest.raises(Refused, match="no key of the log"):
        Policy.parse(policy()).checkpoint(signed(9, b"\3" * 32, origin="other.example"))
    forged = re.sub(r"\n9\n", "\n8\n", note)
    with pytest.raises(Refused, match="does not hold"):
        Policy.parse(policy()).checkpoint(forged)


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "quorum W9",
        "quorum none\nquorum none",
        "group none any W0\nquorum none",
        "group G any W0 W0\nquorum G",
        "group G 3 W0 W1\nquorum G",
        "group G any W0\ngroup H any W0\nquorum H",
        "group G any H\nquorum G",
        f"log {vkey('again', LOG)}\nquorum none",
        f"witness W9 {vkey('x', LOG)}\nquorum none",
        "log x\nquorum none",
        "quorum none 1",
    ],
)
def test_a_policy_that_means_nothing_is_refused(lines: str) -> None:
    with pytest.raises(Malformed):
        Policy.parse(policy(lines))


def test_a_proof_leads_from_one_entry_to_a_signed_tree() -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(11)]
    tree, nodes = Frontier(), {}
    for leaf in leaves:
        nodes |= {(level, idx): value for level, idx, value in tree.append(leaf)}
    path = [base64.b64encode(h).decode() for h in merkle.hashes(merkle.inclusion(5, 11), nodes)]
    proof = "\n".join(["c2sp.org/tlog-proof@v1", "extra eA==", "index 5", *path, "", signed(11, tree.root())])
    trusted = Policy.parse(policy())
    assert inclusion(proof, leaves[5], trusted)[0] == 5
    for wrong, leaf in (
        (proof, leaves[4]),
        (proof.replace("index 5", "index 4"), leaves[5]),
        (proof.replace(path[0] + "\n", ""), leaves[5]),
    ):
        with pytest.raises(Refused, match="does not lead"):
            inclusion(wrong, leaf, trusted)
    with pytest.raises(Malformed):
        inclusion(proof.replace("@v1", "@v2"), leaves[5], trusted)
    with pytest.raises(Refused):
        inclusion(proof.replace(ORIGIN, "other.example"), leaves[5], trusted)
