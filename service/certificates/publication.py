"""All that is said of one result, put together before anything is signed: certificate, provenance, bill of materials. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from service.certificates import mlbom, oms, provenance

FOLDER = "UNLEARNING"
CERTIFICATE = f"{FOLDER}/certificate.sigstore.json"
PROVENANCE = f"{FOLDER}/provenance.sigstore.json"
BILL = f"{FOLDER}/mlbom.cdx.json"
ISSUED = f"{FOLDER}/certificate.tlog-proof"
PLANNED = f"{FOLDER}/plan.tlog-proof"
POLICY = f"{FOLDER}/policy.txt"
LATER = (ISSUED, PLANNED, POLICY)
"""What is there only once the ledger's log has signed a tree that holds the certificate's entry."""

Statement = Mapping[str, Any]


@dataclass(frozen=True)
class Publication:
    """What the signer is asked to sign."""

    statement: Statement
    """The certificate's, which names the digests of the other two."""
    provenance: Statement
    bill: bytes

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every published file by its path."""
        return files_of(self.statement)


def assemble(statement: Statement, *, kind: str) -> Publication:
    """Provenance and bill of materials from the certificate's statement, and their digests in it.

    Args:
        kind: of the model: generator, classifier or i2i.
    """
    subjects, predicate = statement["subject"], statement["predicate"]
    made = provenance.statement(subjects, predicate)
    bill = rfc8785.dumps(mlbom.document(subjects, predicate, kind=kind))
    named = [_named(provenance.PREDICATE_TYPE, rfc8785.dumps(made)), _named(mlbom.FORMAT, bill)]
    return Publication({**statement, "predicate": {**predicate, "attestations": named}}, made, bill)


def _named(kind: str, data: bytes) -> dict[str, Any]:
    return {"type": kind, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}


def subjects_of(model: str, files: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The model by its OMS root, which binds the set of files; then every file, which binds their names.

    Args:
        files: path and SHA-256 of each.
    """
    digests = dict(files)
    named = [(model, oms.root(digests)), *sorted(digests.items())]
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in named]


def files_of(statement: Statement) -> dict[str, str]:
    """SHA-256 of every published file by its path, as a statement names them."""
    return {one["name"]: one["digest"]["sha256"] for one in statement["subject"][1:]}


def objections(statement: Statement, said: Statement) -> list[str]:
    """Why a certificate's statement and the provenance beside it must not both be signed; empty when they may."""
    found = []
    if said.get("predicateType") != provenance.PREDICATE_TYPE or said.get("subject") != statement["subject"]:
        found.append("its provenance is about something else")
    if _named(provenance.PREDICATE_TYPE, rfc8785.dumps(dict(said))) not in statement["predicate"].get("attestations", []):
        found.append("it does not name its provenance")
    if statement["subject"][0]["digest"]["sha256"] != oms.root(files_of(statement)):
        found.append("its first subject is not the root of its files")
    return found
