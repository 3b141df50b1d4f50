"""Signing what is published: by a process that is not the worker, and that holds, or alone may use, the only key.

It signs nothing it has not checked: the certificate's statement must be one that may be signed (`statement.objections`), what
goes with it must be about the same files, and every file must be in the store under the digest it is named with, re-hashed
here. The manifest that the stock `model_signing` tool reads is written here too, from those very digests.

P-256 because model-signing, Rekor, cosign and the cloud key services all take it; Ed25519 is refused by the first two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service import durable
from service.certificates import dsse, oms, provenance, publication, revocations
from service.certificates.dsse import Bundle, Key, Statement
from service.certificates.publication import Publication
from service.certificates.statement import PREDICATE_TYPE, objections
from service.config import Settings
from service.sockets import ANSWERING_SECONDS, Desk, ask
from service.sockets import SignerUnavailable as SignerUnavailable
from service.sockets import SigningRefused as SigningRefused
from service.storage.errors import StoreUnavailable
from service.verifier.reading import Tampered, about, signed

log = logging.getLogger("expunge.signer")

CHUNK = 1 << 20


class Opens(Protocol):
    """What the signer needs of the store."""

    def open(self, digest: str) -> IO[bytes]:
        """The bytes stored under a SHA-256 digest. Raises when there are none."""
        ...


@dataclass(frozen=True)
class Signed:
    """A publication's three signatures, each over a statement of its own."""

    certificate: Bundle
    provenance: Bundle
    model_signature: Bundle

    def evidence(self, wanted: Publication) -> dict[str, bytes]:
        """What is downloaded beside the published files, but for the certificate."""
        return {
            oms.NAME: json.dumps(self.model_signature).encode(),
            publication.PROVENANCE: json.dumps(self.provenance).encode(),
            publication.BILL: wanted.bill,
        }


class Signer(Protocol):
    """Whoever can sign a publication."""

    def sign(self, wanted: Publication) -> Signed:
        """Raises: SignerUnavailable, SigningRefused."""
        ...


# ------------------------------------------------------------------------------------------------------ the asker's side


def public_key(settings: Settings) -> ec.EllipticCurvePublicKey:
    """What the signer's answers are checked with. Raises: SignerUnavailable: it has not left its public key, or no such one."""
    try:
        key = serialization.load_pem_public_key(settings.public_key_file.read_bytes())
    except (OSError, ValueError) as error:
        raise SignerUnavailable(f"the signer's public key cannot be read ({type(error).__name__})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignerUnavailable("the signer's public key is no P-256 key")
    return key


def differences(answer: Signed, wanted: Publication, key: ec.EllipticCurvePublicKey) -> list[str]:
    """Why an answer must not be published; empty when it may: each signature is the key's, over what was asked for.

    Nobody asked for `model.sig` in so many words, so it must be the manifest of the very files that the certificate names.
    """
    pem, model = dsse.pem(key), wanted.statement["subject"][0]["name"]
    manifest = oms.statement(model, wanted.files)
    expected = (
        ("the certificate", answer.certificate, PREDICATE_TYPE, wanted.statement, dsse.key_id(key)),
        (publication.PROVENANCE, answer.provenance, provenance.PREDICATE_TYPE, wanted.provenance, dsse.key_id(key)),
        (oms.NAME, answer.model_signature, oms.PREDICATE_TYPE, manifest, oms.hint(pem)),
    )
    found = []
    for name, bundle, kind, said, hint in expected:
        try:
            with about(name):
                payload, read = signed(json.dumps(bundle).encode(), key, kind)
                if bundle["verificationMaterial"]["publicKey"]["hint"] != hint:
                    raise Tampered("it names another key")
                canonical = rfc8785.dumps(dict(said))
                if (rfc8785.dumps(read) if kind == oms.PREDICATE_TYPE else payload) != canonical:
                    raise Tampered("it says something else than what was to be signed")
        except Tampered as error:
            found.append(str(error))
    return found


# ------------------------------------------------------------------------------------------------------------------ keys


def open_key(settings: Settings) -> Key:
    """The operator's key: by its URI, or in a file of ours. Raises: ValueError, OSError: it cannot be used."""
    if settings.signing_key_uri:
        return dsse.open_key(settings.signing_key_uri, settings.public_key_file.read_bytes())
    return load_or_create_key(settings.key_file, settings.public_key_file)


def load_or_create_key(path: Path, public: Path) -> Key:
    """The P-256 key at `path`, made on first use with mode 0600; its public half is written to `public`.

    Raises:
        ValueError: the file holds something else than an unencrypted P-256 key.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _create_key(path)
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError(f"expected a P-256 private key in {path.name}, got {type(key).__name__}")
    _write_public(public, dsse.pem(key.public_key()))
    return dsse.key_of(key)


def _create_key(path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if not durable.create(path, pem):  # another signer was first: its key counts
        log.info("signer.key.exists")


def _write_public(path: Path, pem: bytes) -> None:
    if path.exists() and path.read_bytes() == pem:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(pem)
    os.replace(temporary, path)


# --------------------------------------------------------------------------------------------------------------- signers


class KeySigner:
    """Signs with a key that only this process may use. Lives in the signer's process, and in tests."""

    def __init__(self, key: Key, store: Opens, origin: Callable[[], str | None] = lambda: None) -> None:
        """Args: origin: of the ledger that is signed beside it, as far as that is known; no certificate may name another."""
        self._key = key
        self._store = store
        self._origin = origin

    def sign(self, wanted: Publication) -> Signed:
        """Raises: SigningRefused."""
        found = objections(wanted.statement, self._origin())
        found = found or publication.objections(wanted.statement, wanted.provenance)
        if found:
            raise SigningRefused("; ".join(found))
        files = publication.files_of(wanted.statement)
        for name, digest in files.items():
            self._rehash(name, digest)
        manifest = json.dumps(oms.statement(wanted.statement["subject"][0]["name"], files)).encode()
        return Signed(
            certificate=dsse.seal(wanted.statement, self._key),
            provenance=dsse.seal(wanted.provenance, self._key),
            model_signature=dsse.seal_bytes(manifest, self._key, hint=oms.hint(dsse.public_pem(self._key))),
        )

    def sign_revocations(self, statement: Statement) -> Bundle:
        """A list of what was revoked, as of now. Raises: SigningRefused."""
        found = revocations.objections(statement, datetime.now(UTC))
        if found:
            raise SigningRefused("; ".join(found))
        return dsse.seal(statement, self._key)

    def _rehash(self, name: str, digest: str) -> None:
        sha = hashlib.sha256()
        try:
            with self._store.open(digest) as file:
                while chunk := file.read(CHUNK):
                    sha.update(chunk)
        except StoreUnavailable as error:  # it will be asked again: nothing speaks against the file
            raise SignerUnavailable("the store does not answer the signer") from error
        except Exception as error:  # whatever the store raises, the file cannot be vouched for
            log.exception("signer.unreadable", extra={"digest": digest})
            raise SigningRefused(f"a named file cannot be read from the store ({type(error).__name__})") from error
        if sha.hexdigest() != digest:
            raise SigningRefused(f"the stored bytes of {name} are not what the statement says")


class SocketSigner:
    """The worker's side of the signer's socket: one connection a publication."""

    def __init__(self, path: str, *, timeout: float = ANSWERING_SECONDS) -> None:
        self._path = path
        self._timeout = timeout

    def sign(self, wanted: Publication) -> Signed:
        """Raises: SignerUnavailable, SigningRefused."""
        question = {"statement": wanted.statement, "provenance": wanted.provenance}
        answer = ask(self._path, {"publication": question}, timeout=self._timeout)
        try:
            return Signed(**answer)
        except TypeError as error:
            raise SignerUnavailable("the signer's answer does not hold the three signatures") from error

    def sign_revocations(self, statement: Statement) -> Bundle:
        """Raises: SignerUnavailable, SigningRefused."""
        answer = ask(self._path, {"revocations": statement}, timeout=self._timeout)
        if "bundle" not in answer:
            raise SignerUnavailable("the signer's answer holds no bundle")
        bundle: Bundle = answer["bundle"]
        return bundle


def desks(signer: KeySigner) -> dict[str, Desk]:
    """The signer's own side: what the socket answers with."""

    def publish(question: Any) -> dict[str, Any]:
        wanted = _publication(question)
        signed = signer.sign(wanted)
        log.info("publication.signed", extra={"checkpoint": wanted.statement["predicate"]["certificate"]["id"]})
        return {name: getattr(signed, name) for name in ("certificate", "provenance", "model_signature")}

    return {"publication": publish, "revocations": lambda statement: {"bundle": signer.sign_revocations(statement)}}


def _publication(question: Any) -> Publication:
    """The bill of materials stays with the worker: the statement names its digest."""
    if not isinstance(question, Mapping) or set(question) != {"statement", "provenance"}:
        raise SigningRefused("it is no publication")
    return Publication(question["statement"], question["provenance"], b"")
