"""Only what the signer checked itself gets a signature, and the key never leaves its process."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service import sockets
from service.certificates import dsse, oms, publication, revocations, signing
from service.storage import StoreUnavailable
from tests.service.certificates.doubles import (
    FILES,
    LEDGER,
    MemoryStore,
    a_publication,
    a_signer,
    a_statement,
    is_signed_by,
)


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_each_signature_is_the_keys_and_no_others(key: ec.EllipticCurvePrivateKey) -> None:
    wanted = a_publication()
    signed = a_signer(key).sign(wanted)
    for bundle in (signed.certificate, signed.provenance, signed.model_signature):
        assert is_signed_by(bundle, key.public_key())
        assert not is_signed_by(bundle, ec.generate_private_key(ec.SECP256R1()).public_key())
    assert json.loads(dsse.payload_of(signed.certificate)) == wanted.statement
    assert json.loads(dsse.payload_of(signed.provenance)) == wanted.provenance
    resources = json.loads(dsse.payload_of(signed.model_signature))["predicate"]["resources"]
    assert {one["name"]: one["digest"] for one in resources} == wanted.files


@pytest.mark.parametrize("change", ["subject", "digest", "root", "kind"])
def test_what_does_not_belong_together_is_not_signed(key: ec.EllipticCurvePrivateKey, change: str) -> None:
    wanted = a_publication()
    statement, provenance = copy.deepcopy(dict(wanted.statement)), copy.deepcopy(dict(wanted.provenance))
    match change:
        case "subject":
            provenance["subject"][0]["name"] = "mdl_2"
        case "digest":
            provenance["predicate"]["runDetails"]["builder"]["id"] = "urn:other"
        case "root":
            statement["subject"][0]["digest"]["sha256"] = "0" * 64
        case "kind":
            provenance["predicateType"] = "urn:other"
    with pytest.raises(signing.SigningRefused, match=r"provenance|root"):
        a_signer(key).sign(publication.Publication(statement, provenance, wanted.bill))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("origin", None, "name the ledger"),
        ("origin", "", "name the ledger"),
        ("origin", "log.example/other", "another ledger"),
        ("planSeq", None, "where its plan stands"),
        ("planSeq", -1, "where its plan stands"),
        ("planSeq", True, "where its plan stands"),
        ("planSeq", "2", "where its plan stands"),
        ("requestIds", ["ureq_2"], "not its own"),
        ("requestIds", [], "not its own"),
    ],
)
def test_a_certificate_that_cannot_be_held_against_the_ledger_is_not_signed(
    key: ec.EllipticCurvePrivateKey, field: str, value: object, why: str
) -> None:
    """What is not named can never be proved to be logged: no later release puts it right."""
    signer = signing.KeySigner(dsse.key_of(key), MemoryStore(), lambda: LEDGER["origin"])  # type: ignore[return-value,arg-type]
    assert signer.sign(a_publication()).certificate
    statement = a_statement()
    statement["predicate"]["certificate"]["ledger"][field] = value
    with pytest.raises(signing.SigningRefused, match=why):
        signer.sign(a_publication(statement))


@pytest.mark.parametrize("ledger", [None, {}, {"requestIds": ["ureq_1"]}, {"origin": "l", "requestIds": ["ureq_1"]}, "l", 7])
def test_a_statement_without_a_ledger_is_not_signed(key: ec.EllipticCurvePrivateKey, ledger: object) -> None:
    statement = a_statement()
    statement["predicate"]["certificate"]["ledger"] = ledger
    with pytest.raises(signing.SigningRefused):
        a_signer(key).sign(a_publication(statement))


def test_an_honest_answer_is_believed_and_any_other_is_named(key: ec.EllipticCurvePrivateKey) -> None:
    wanted, public = a_publication(), key.public_key()
    honest = a_signer(key).sign(wanted)
    assert signing.differences(honest, wanted, public) == []
    stranger = a_signer(ec.generate_private_key(ec.SECP256R1())).sign(wanted)
    other = a_signer(key, MemoryStore({"w": b"x"})).sign(a_publication(a_statement({"w": b"x"})))
    for field, name in (
        ("certificate", "the certificate"), ("provenance", "UNLEARNING/provenance"), ("model_signature", "model.sig"),
    ):  # fmt: skip
        for wrong in (getattr(stranger, field), getattr(other, field), {}, None, [1], {"payload": "e30="}):
            (said,) = signing.differences(dataclasses.replace(honest, **{field: wrong}), wanted, public)
            assert said.startswith(name)


def test_a_model_signature_with_another_set_of_ignored_paths_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    """The same root and the same files, and a stock tool that would look past a stranger's file."""
    wanted = a_publication()
    manifest = oms.statement(wanted.statement["subject"][0]["name"], wanted.files)
    manifest["predicate"]["serialization"]["ignore_paths"].append("modeling.py")
    hint = oms.hint(dsse.pem(key.public_key()))
    forged = dsse.seal_bytes(json.dumps(manifest).encode(), dsse.key_of(key), hint=hint)
    answer = dataclasses.replace(a_signer(key).sign(wanted), model_signature=forged)
    assert signing.differences(answer, wanted, key.public_key()) == [
        "model.sig: it says something else than what was to be signed"
    ]


def test_a_list_of_revocations_is_signed_and_nothing_else_in_its_name(key: ec.EllipticCurvePrivateKey) -> None:
    one = {"checkpoint": "ckpt_1", "certificateSha256": "0" * 64, "at": "2026-11-21T10:00:00Z", "reason": "other"}
    told = {"origin": "o", "size": 1, "root": b"0" * 32, "revoked": [one]}
    at = datetime.now(UTC)

    def a_list(number: int, begins: timedelta, ends: timedelta) -> Any:
        return revocations.statement(
            number=number, as_of=(at + begins).isoformat(), next_update=(at + ends).isoformat(), **told
        )

    hour, none = timedelta(hours=1), timedelta()
    said = a_list(1, none, hour)
    unfit = [a_list(1, 24 * hour, 25 * hour), a_list(1, none, -hour), a_list(1, none, 24 * 365 * hour), a_list(0, none, hour)]
    assert is_signed_by(a_signer(key).sign_revocations(said), key.public_key())
    for wrong in (a_statement(), {}, [], {**said, "predicate": {"revoked": [{}]}}, *unfit, {**said, "more": 1}):
        with pytest.raises(signing.SigningRefused):
            a_signer(key).sign_revocations(wrong)  # type: ignore[arg-type]


def test_a_file_that_is_not_in_the_store_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(signing.SigningRefused, match="cannot be read"):
        a_signer(key, MemoryStore({})).sign(a_publication())


def test_a_store_that_is_away_is_no_refusal(key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_digest: str) -> None:
        raise StoreUnavailable("reading: 503")

    store = MemoryStore()
    monkeypatch.setattr(store, "open", away)
    with pytest.raises(signing.SignerUnavailable):
        a_signer(key, store).sign(a_publication())


def test_stored_bytes_that_rotted_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    store = MemoryStore()
    digest = next(iter(store.blobs))
    store.blobs[digest] += b"x"
    with pytest.raises(signing.SigningRefused, match="not what the statement says"):
        a_signer(key, store).sign(a_publication())


def test_a_verdict_that_is_not_pass_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    statement = a_statement()
    statement["predicate"]["verification"]["verdict"] = "FAIL"
    with pytest.raises(signing.SigningRefused, match="not PASS"):
        a_signer(key).sign(a_publication(statement))


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path, public = tmp_path / "keys" / "signing.pem", tmp_path / "signing.pub"
    first = signing.load_or_create_key(path, public)
    again = signing.load_or_create_key(path, public)
    assert first.public_key == again.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert dsse.pem(loaded) == dsse.public_pem(first)
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.pem"]


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    with pytest.raises(ValueError, match="P-256"):
        signing.load_or_create_key(path, tmp_path / "signing.pub")


@pytest.fixture
def socket_path(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> Iterator[str]:
    path, ready, stop = str(tmp_path / "s.sock"), threading.Event(), threading.Event()
    desks = signing.desks(a_signer(key))
    thread = threading.Thread(target=sockets.serve, args=(path, desks), kwargs={"ready": ready.set, "stop": stop})
    thread.start()
    assert ready.wait(10)
    yield path
    stop.set()
    thread.join(10)
    assert not os.path.exists(path)


def test_the_socket_signs_and_refuses_like_the_signer_behind_it(socket_path: str, key: ec.EllipticCurvePrivateKey) -> None:
    client = signing.SocketSigner(socket_path)
    assert is_signed_by(client.sign(a_publication()).certificate, key.public_key())
    with pytest.raises(signing.SigningRefused, match="cannot be read"):
        client.sign(a_publication(a_statement({**FILES, "more.json": b"more"})))
    with pytest.raises(signing.SigningRefused, match="no publication"):
        sockets.ask(socket_path, {"publication": {"statement": {}}}, timeout=5)
    with pytest.raises(signing.SigningRefused, match="no list"):
        client.sign_revocations({})


def test_the_socket_is_for_our_own_user(socket_path: str) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


def test_no_signer_is_unavailable_not_refused(tmp_path: Path) -> None:
    with pytest.raises(signing.SignerUnavailable):
        signing.SocketSigner(str(tmp_path / "nobody.sock")).sign(a_publication())


def test_a_malformed_message_does_not_stop_the_signer(socket_path: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_path)
        connection.sendall(b"\x00\x00\x00\x05hello")
        connection.settimeout(5)
        connection.recv(100)
    assert signing.SocketSigner(socket_path).sign(a_publication()).certificate
