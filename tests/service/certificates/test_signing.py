"""Only what the signer checked itself gets a signature, and the key never leaves its process."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates import signing
from tests.service.certificates.doubles import FILES, MemoryStore, a_statement, is_signed_by


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_pre_authentication_encoding_is_the_one_of_the_specification() -> None:
    # the example of the DSSE v1 protocol text
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert signing.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == expected


def test_the_envelope_verifies_with_the_key_and_with_no_other(key: ec.EllipticCurvePrivateKey) -> None:
    envelope = signing.FileKeySigner(key, MemoryStore()).sign(a_statement())
    assert is_signed_by(envelope, key.public_key())
    assert not is_signed_by(envelope, ec.generate_private_key(ec.SECP256R1()).public_key())
    assert json.loads(signing.payload_of(envelope)) == a_statement()


def test_openssl_agrees(key: ec.EllipticCurvePrivateKey, tmp_path: Path) -> None:
    envelope = signing.FileKeySigner(key, MemoryStore()).sign(a_statement())
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "k.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "pae").write_bytes(signing.pre_authentication_encoding(envelope["payloadType"], signing.payload_of(envelope)))
    command = ["openssl", "dgst", "-sha256", "-verify", "k.pub", "-signature", "sig", "pae"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Verified OK"


def test_a_file_that_is_not_in_the_store_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    with pytest.raises(signing.SigningRefused, match="cannot be read"):
        signing.FileKeySigner(key, MemoryStore({})).sign(a_statement())


def test_stored_bytes_that_rotted_are_refused(key: ec.EllipticCurvePrivateKey) -> None:
    store = MemoryStore()
    digest = next(iter(store.blobs))
    store.blobs[digest] += b"x"
    with pytest.raises(signing.SigningRefused, match="not what the statement says"):
        signing.FileKeySigner(key, store).sign(a_statement())


def test_a_verdict_that_is_not_pass_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    statement = a_statement()
    statement["predicate"]["verification"]["verdict"] = "FAIL"
    with pytest.raises(signing.SigningRefused, match="not PASS"):
        signing.FileKeySigner(key, MemoryStore()).sign(statement)


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path, public = tmp_path / "keys" / "signing.pem", tmp_path / "signing.pub"
    first = signing.load_or_create_key(path, public)
    again = signing.load_or_create_key(path, public)
    assert first.private_numbers() == again.private_numbers()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert loaded.public_numbers() == first.public_key().public_numbers()
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
    signer = signing.FileKeySigner(key, MemoryStore())
    thread = threading.Thread(target=signing.serve, args=(path, signer), kwargs={"ready": ready.set, "stop": stop})
    thread.start()
    assert ready.wait(10)
    yield path
    stop.set()
    thread.join(10)
    assert not os.path.exists(path)


def test_the_socket_signs_and_refuses_like_the_signer_behind_it(socket_path: str, key: ec.EllipticCurvePrivateKey) -> None:
    client = signing.SocketSigner(socket_path)
    assert is_signed_by(client.sign(a_statement()), key.public_key())
    with pytest.raises(signing.SigningRefused, match="cannot be read"):
        client.sign(a_statement({**FILES, "more.json": b"more"}))


def test_the_socket_is_for_our_own_user(socket_path: str) -> None:
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600


def test_no_signer_is_unavailable_not_refused(tmp_path: Path) -> None:
    with pytest.raises(signing.SignerUnavailable):
        signing.SocketSigner(str(tmp_path / "nobody.sock")).sign(a_statement())


def test_a_malformed_message_does_not_stop_the_signer(socket_path: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(socket_path)
        connection.sendall(b"\x00\x00\x00\x05hello")
        connection.settimeout(5)
        connection.recv(100)
    assert signing.SocketSigner(socket_path).sign(a_statement())["signatures"]
