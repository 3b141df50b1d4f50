"""Is this folder exactly what the certificate names, and did this key sign the certificate?

The folder holds the published files and, in `UNLEARNING/`, the certificate: a DSSE envelope with one ECDSA P-256 signature
over an in-toto Statement v1. Everything else in the folder is a stranger, and a stranger is a refusal: a loader might run it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.verifier import claim

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:expunge:attestation:unlearning:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
EVIDENCE_FOLDER = "UNLEARNING"
CERTIFICATE = f"{EVIDENCE_FOLDER}/certificate.dsse.json"
MAX_CERTIFICATE_BYTES = 16 * 1024 * 1024
CHUNK = 1 << 20

GOOD, TAMPERED, UNDECIDED, USAGE = 0, 1, 2, 3


class Tampered(Exception):
    """Something is not what was signed."""


class Undecided(Exception):
    """Something needed for a decision is missing."""


@dataclass(frozen=True)
class Outcome:
    """What the verifier saw."""

    status: int
    reason: str
    files: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return self.status == GOOD

    def as_json(self) -> dict[str, Any]:
        return {"valid": self.valid, "status": self.status, "reason": self.reason, "files": self.files, **self.facts}


def verify_directory(directory: Path, key_file: Path) -> Outcome:
    """Check a downloaded checkpoint against its certificate and a public key.

    Args:
        directory: the published files, with `UNLEARNING/certificate.dsse.json` among them.
        key_file: the signer's public key, PEM; got from the operator by another way than the download.
    """
    try:
        key = _public_key(key_file)
        statement = _signed_statement(directory, key)
        subjects = _subjects(statement)
        _check_claim(statement)
        _check_files(directory, subjects)
        facts = _facts(statement)
    except Undecided as error:
        return Outcome(UNDECIDED, str(error))
    except Tampered as error:
        return Outcome(TAMPERED, str(error))
    return Outcome(GOOD, "every file is the one that was certified", len(subjects), facts)


def read_statement(directory: Path) -> dict[str, Any] | None:
    """What the certificate beside a checkpoint says, whoever wrote it: no signature is looked at. None: there is none.

    The files are held against it, as `verify_directory` does.

    Raises:
        Tampered: it is no unlearning certificate, or the folder is not exactly what it names.
        Undecided: something cannot be read.
    """
    if not (directory / CERTIFICATE).exists():
        return None
    envelope = _json(_certificate_bytes(directory), "the certificate")
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
    except (binascii.Error, ValueError, TypeError, KeyError) as error:
        raise Tampered("the certificate is not valid base64") from error
    statement = _json(payload, "the statement")
    if statement.get("predicateType") != PREDICATE_TYPE:
        raise Tampered("the statement is not an unlearning certificate")
    _check_files(directory, _subjects(statement))
    return statement


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise Undecided(f"the key file cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Undecided("the key file holds no public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Undecided("the key file holds no ECDSA P-256 key")
    return key


def _signed_statement(directory: Path, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    if not directory.is_dir():
        raise Undecided("there is no such folder")
    envelope = _json(_certificate_bytes(directory), "the certificate")
    if set(envelope) != {"payload", "payloadType", "signatures"}:
        raise Tampered("the certificate is no DSSE envelope")
    payload, signature = _decoded(envelope, key)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise Tampered("the certificate holds another kind of payload")
    kind = PAYLOAD_TYPE.encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Tampered("the certificate is not signed by this key, or was changed after signing") from None
    statement = _json(payload, "the signed statement")
    if statement.get("_type") != STATEMENT_TYPE or statement.get("predicateType") != PREDICATE_TYPE:
        raise Tampered("the signed statement is not an unlearning certificate")
    return statement


def _certificate_bytes(directory: Path) -> bytes:
    path = directory / CERTIFICATE
    if path.is_symlink() or path.parent.is_symlink():
        raise Tampered("the certificate is a link")
    try:
        if path.stat().st_size > MAX_CERTIFICATE_BYTES:
            raise Tampered("the certificate is too long to be one of ours")
        return path.read_bytes()
    except OSError as error:
        raise Undecided(f"there is no {CERTIFICATE}") from error


def _decoded(envelope: Mapping[str, Any], key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise Tampered("the certificate must carry exactly one signature")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    (one,) = signatures
    if not isinstance(one, dict) or set(one) != {"keyid", "sig"} or one["keyid"] != hashlib.sha256(der).hexdigest():
        raise Tampered("the certificate is not signed by this key, or was changed after signing")
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, base64.b64decode(signatures[0]["sig"], validate=True)
    except (binascii.Error, ValueError, TypeError, KeyError) as error:
        raise Tampered("the certificate is not valid base64") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Tampered(f"{what} is not valid JSON") from error
    if not isinstance(value, dict):
        raise Tampered(f"{what} is no JSON object")
    return value


def _subjects(statement: Mapping[str, Any]) -> dict[str, str]:
    subjects: dict[str, str] = {}
    try:
        for subject in statement["subject"]:
            name, digest = subject["name"], subject["digest"]["sha256"]
            parts = name.split("/")
            if name in subjects or not name or "\\" in name or {"", ".", ".."} & set(parts) or parts[0] == EVIDENCE_FOLDER:
                raise Tampered("the certificate names a file that cannot be published")
            subjects[name] = digest
    except (KeyError, TypeError, AttributeError) as error:
        raise Tampered("the certificate's list of files is not readable") from error
    if not subjects:
        raise Tampered("the certificate names no file")
    return subjects


def _check_claim(statement: Mapping[str, Any]) -> None:
    """A certificate whose own findings did not pass is no certificate, whoever signed it."""
    try:
        found = claim.shortcomings(statement["predicate"])
    except (KeyError, claim.Unreadable) as error:
        raise Tampered("the certificate's findings are not readable") from error
    if found:
        raise Tampered(f"the certificate's own findings do not pass the gate: {'; '.join(found)}")


def _check_files(directory: Path, subjects: Mapping[str, str]) -> None:
    present = dict(_walk(directory))
    present.pop(CERTIFICATE, None)
    for name in sorted(present.keys() - subjects.keys()):
        raise Tampered(f"{name} is not named by the certificate")
    for name in sorted(subjects.keys() - present.keys()):
        raise Tampered(f"{name} is missing")
    for name, digest in sorted(subjects.items()):
        if _sha256(present[name]) != digest:
            raise Tampered(f"{name} was changed")


def _walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every entry of the folder that is not itself a folder. An empty folder is a refusal: nothing was published as one."""
    for folder, folders, files in os.walk(directory, onerror=_unreadable):
        here = Path(folder)
        if not folders and not files and here != directory:
            raise Tampered(f"{here.relative_to(directory).as_posix()} is an empty folder")
        for name in [*folders, *files]:
            path = here / name
            relative = path.relative_to(directory).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise Tampered(f"{relative} is neither a file nor a folder")
            yield relative, path


def _unreadable(error: OSError) -> None:
    raise Undecided(f"a folder cannot be read: {error.strerror}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise Undecided(f"{path.name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _facts(statement: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate's main claims, for people; all of them are under the signature."""
    try:
        return _claims(statement["predicate"])
    except (KeyError, IndexError, TypeError) as error:
        raise Tampered("the certificate's claims are not readable") from error


def _claims(predicate: Mapping[str, Any]) -> dict[str, Any]:
    names = predicate["model"]["classNames"]
    forget_set = predicate["forgetSet"]
    gone = [*forget_set["classes"], *forget_set["forgottenEarlier"]]
    samples = [forget_set[k]["count"] for k in ("samples", "samplesForgottenEarlier") if k in forget_set]
    return {
        "checkpoint_id": predicate["certificate"]["id"],
        "issued_at": predicate["certificate"]["issuedAt"],
        "model_id": predicate["model"]["id"],
        "checkpoint_digest": predicate["model"]["digest"],
        "forgotten_classes": sorted(gone),
        "forgotten_class_names": [names[k] for k in sorted(gone)],
        "forgotten_samples": sum(samples),
        "retain_data": _retain_data(predicate.get("retainData"), names),
        "method": predicate["algorithm"]["name"],
        **_attempts(predicate),
        "tier": predicate["claim"].get("tier"),
        "guarantee": predicate["claim"]["guarantee"],
        "statement": predicate["claim"]["statement"],
        "limits": predicate["limits"],
    }


def _attempts(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Which of how many attempts passed, and what was asked for; None: the certificate does not say."""
    said = predicate.get("attempts", {})
    return {"requested_method": said.get("requested"), "attempt": said.get("number"), "attempts": said.get("of")}


def _retain_data(data: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    """What training could look at to keep the rest; None: the certificate does not say."""
    if data is None:
        return None
    dataset = data.get("proxyDataset")
    return {
        "real": data["real"],
        "proxy_classes": data["proxyClasses"],
        "proxy_class_names": [names[k] for k in data["proxyClasses"]],
        "proxy_dataset_id": dataset["id"] if dataset else None,
        "proxy_dataset_digest": dataset["digest"] if dataset else None,
    }
