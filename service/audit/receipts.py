"""Answering with a receipt: a tlog-proof that whoever has the policy can check offline, for as long as they keep it."""

from __future__ import annotations

from fastapi import Response
from sqlalchemy.orm import Session as OrmSession

from service.audit import proofs
from service.errors import NotYetSigned, ReceiptNotFound

TEXT = "text/plain; charset=utf-8"


def receipt(session: OrmSession, seq: int | None, name: str) -> Response:
    """A text file with the proof of an entry. Raises: ReceiptNotFound: there is no entry; NotYetSigned: try again."""
    if seq is None:
        raise ReceiptNotFound
    proof = proofs.tlog_proof(session, seq)
    if proof is None:
        raise NotYetSigned("the entry is in the ledger; a checkpoint that covers it follows, within a minute as a rule")
    headers = {"Content-Disposition": f'inline; filename="{name}.tlog-proof"', "Cache-Control": "no-cache"}
    return Response(proof, media_type=TEXT, headers=headers)
