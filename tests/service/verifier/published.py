"""A published checkpoint in full, with real keys: files, `model.sig`, certificate, provenance, bill of materials, proofs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates import dsse, publication
from service.certificates.signing import KeySigner
from service.verifier.certificate import OMS_TYPE, PREDICATE_TYPE
from service.verifier.reading import STATEMENT_TYPE
from tests.service.certificates.doubles import FILES, MemoryStore, a_statement
from tests.service.verifier.ledgers import ORIGIN, Ledger, a_request

Json = dict[str, Any]
STARTED_AT = "2099-01-01T00:00:00Z"


@dataclass
class Published:
    """The folder, the signer's key, and the statement that was signed."""

    folder: Path
    key_file: Path
    key: ec.EllipticCurvePrivateKey
    statement: Json
    policy: Path | None = None

    @property
    def certificate(self) -> Path:
        return self.folder / "UNLEARNING/certificate.sigstore.json"

    def sign(self, statement: Json) -> bytes:
        """Put a certificate into the folder; its payload."""
        payload = rfc8785.dumps(statement)
        self.certificate.write_text(json.dumps(bundle(payload, self.key)))
        return payload


def bundle(payload: bytes, key: ec.EllipticCurvePrivateKey, hint: str | None = None) -> Json:
    """A Sigstore bundle v0.3 around a DSSE envelope with one signature."""
    return dsse.seal_bytes(payload, dsse.key_of(key), hint=hint or dsse.key_id(key.public_key()))


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def root(files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))).hexdigest()


def model_signature(files: Mapping[str, bytes], key: ec.EllipticCurvePrivateKey) -> Json:
    """What the stock `model_signing` tool writes."""
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "mdl_1", "digest": {"sha256": root(files)}}],
        "predicateType": OMS_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "allow_symlinks": False,
                "hash_type": "sha256",
                "ignore_paths": ["UNLEARNING"],
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": hashlib.sha256(files[name]).hexdigest()}
                for name in sorted(files)
            ],
        },
    }
    made = bundle(json.dumps(statement).encode(), key, hashlib.sha256(pem(key)).hexdigest())
    made["dsseEnvelope"]["signatures"][0]["keyid"] = ""
    return made


def publish(folder: Path, *, plan_seq: int = 0, files: Mapping[str, bytes] = FILES, **wish: Any) -> Published:
    """Everything but what comes from the ledger."""
    key = ec.generate_private_key(ec.SECP256R1())
    home = folder / "checkpoint"
    for name, data in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(data)
    (home / "UNLEARNING").mkdir()
    (folder / "signing.pub").write_bytes(pem(key))
    statement = a_statement(dict(files), **wish)
    predicate = statement["predicate"]
    predicate["certificate"]["ledger"] = {"origin": ORIGIN, "requestIds": ["ureq_1"], "planSeq": plan_seq}
    predicate["run"]["startedAt"], predicate["run"]["finishedAt"] = STARTED_AT, STARTED_AT
    wanted = publication.assemble(statement, kind="generator")
    signed = KeySigner(dsse.key_of(key), MemoryStore(dict(files))).sign(wanted)
    for name, data in signed.evidence(wanted).items():
        (home / name).write_bytes(data)
    statement = dict(wanted.statement)
    made = Published(home, folder / "signing.pub", key, statement)
    made.sign(statement)
    return made


def publish_logged(folder: Path, ledger: Ledger) -> Published:
    """The same, with the plan and the certificate in a ledger and both proofs beside it."""
    made = publish(folder, plan_seq=(begin := len(ledger.rows())) + 2)
    digest = hashlib.sha256(rfc8785.dumps(made.statement)).hexdigest()
    ledger.append(*a_request("ureq_1", "ckpt_1", digest))
    ledger.sign()
    (made.folder / "UNLEARNING/plan.tlog-proof").write_text(ledger.proof(begin + 2))
    (made.folder / "UNLEARNING/certificate.tlog-proof").write_text(ledger.proof(begin + 4))
    (made.folder / "UNLEARNING/policy.txt").write_text(ledger.signers.policy())
    made.policy = folder / "policy"
    made.policy.write_text(ledger.signers.policy())
    assert made.statement["predicateType"] == PREDICATE_TYPE
    return made
