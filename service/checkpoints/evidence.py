"""The small files beside the published ones: what was signed with them, and what can only exist once they were logged."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import rfc8785
from fastapi import Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service.audit import proofs, trust
from service.audit.leaves import CertificateIssued, PlanCommitted
from service.certificates import publication
from service.certificates.dsse import payload_of
from service.checkpoints import repository
from service.config import get_settings
from service.downloads import unchanged
from service.errors import FileNotFound, NotYetSigned
from service.tables import Checkpoint, CheckpointEvidence, LedgerEntry


@dataclass(frozen=True)
class Piece:
    """One file."""

    path: str
    content: bytes
    fixed: bool
    """It never changes; proofs do, as the tree that they lead to grows."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def listed(session: OrmSession, row: Checkpoint) -> list[Piece]:
    """What will not change any more, in path order."""
    chosen = select(CheckpointEvidence).where(CheckpointEvidence.checkpoint_id == row.id)
    kept = [Piece(one.path, one.content, fixed=True) for one in session.scalars(chosen)]
    return sorted([_certificate(row), *kept], key=lambda piece: piece.path)


def later(session: OrmSession, row: Checkpoint) -> list[str]:
    """What is there once the ledger's log has signed a tree that holds the certificate: receipts of those entries that exist,
    and the policy to check them with."""
    proofs_of = {publication.ISSUED: CertificateIssued.action, publication.PLANNED: PlanCommitted.action}
    receipts = [path for path, action in proofs_of.items() if _entry(session, row, action) is not None]
    return [*receipts, publication.POLICY] if receipts else []


def read(session: OrmSession, checkpoint_id: str, path: str) -> Piece:
    """One file by its name, which is a key and never joined to a folder.

    Raises:
        CheckpointNotFound, FileNotFound.
        NotYetSigned: it is a proof, and no signed tree of the ledger holds what it proves yet.
    """
    row = repository.get(session, checkpoint_id)
    if path == publication.CERTIFICATE:
        return _certificate(row)
    if path in publication.LATER:
        return Piece(path, _later(session, row, path).encode(), fixed=False)
    found = session.get(CheckpointEvidence, (checkpoint_id, path)) if "\0" not in path else None
    if found is None:
        raise FileNotFound
    return Piece(path, found.content, fixed=True)


def answer(piece: Piece, request: Request) -> Response:
    """With a strong SHA-256 `ETag`, as every other file."""
    etag = f'"sha256:{piece.sha256}"'
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(piece.sha256)).decode()}:",
        "Cache-Control": "private, max-age=31536000, immutable" if piece.fixed else "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if unchanged(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    kind = "application/json" if piece.path.endswith((".json", ".sig")) else "text/plain; charset=utf-8"
    return Response(piece.content, media_type=kind, headers=headers)


def _certificate(row: Checkpoint) -> Piece:
    return Piece(publication.CERTIFICATE, rfc8785.dumps(row.certificate), fixed=True)


def _later(session: OrmSession, row: Checkpoint, path: str) -> str:
    if path == publication.POLICY:
        try:
            return str(trust.policy_text(get_settings()))
        except trust.NoLogKey as error:
            raise NotYetSigned(str(error)) from error
    seq = _entry(session, row, CertificateIssued.action if path == publication.ISSUED else PlanCommitted.action)
    if seq is None:  # older releases recorded no plan
        raise FileNotFound
    proof = proofs.tlog_proof(session, seq, origin=_origin(row))
    if proof is None:
        raise NotYetSigned("the entry is in the ledger; a checkpoint that covers it follows, within a minute as a rule")
    return proof


def _origin(row: Checkpoint) -> str | None:
    """The ledger's name in the certificate, which is not its present one where it had to go on under another; older releases
    named none."""
    said: dict[str, Any] = json.loads(payload_of(row.certificate)).get("predicate", {})
    named: str | None = said.get("certificate", {}).get("ledger", {}).get("origin")
    return named


def _entry(session: OrmSession, row: Checkpoint, action: str) -> int | None:
    """Sequence number of the request's last entry with this action; the last plan is that of the run that passed."""
    chosen = select(LedgerEntry.seq).where(LedgerEntry.request_id == row.request_id, LedgerEntry.action == action)
    return session.scalars(chosen.order_by(LedgerEntry.seq.desc()).limit(1)).first()
