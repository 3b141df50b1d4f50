"""/checkpoints and the key that their certificates are checked with."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from service import tenancy
from service.audit import access, proofs, receipts
from service.audit.leaves import CertificateIssued
from service.auth import PUBLIC, CurrentActor, allowed
from service.certificates import oms, publication
from service.certificates.dsse import BUNDLE
from service.checkpoints import evidence, membership, repository, revocation, revocation_list, service
from service.checkpoints.schemas import CheckpointRead, Opening, RevocationCreate, RevocationRead
from service.db import reading
from service.downloads import RangeNotSatisfiable, StoredFileDamaged, require_plain_address, send_file, unchanged
from service.edge import writing
from service.errors import (
    BadLocation,
    BadRequest,
    CheckpointNotFound,
    ConcurrentChange,
    FileNotFound,
    NotFound,
    NotYetSigned,
    ReceiptNotFound,
    Revoked,
    Unavailable,
    Unprocessable,
    problems,
)
from service.storage import get_store

router = APIRouter(tags=["checkpoints"])

PEM = "application/x-pem-file"
LIST_SECONDS = 60
"""So long a cache may answer with a list of revocations that may have a successor."""
IMMUTABLE = "private, max-age=31536000, immutable"
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}},
    206: {"description": "The range asked for"},
    304: {"description": "The client has these bytes"},
    307: {"description": "The bytes are at a signed URL of the store, for a short time; the digest is in this answer"},
    **problems(CheckpointNotFound, FileNotFound, Revoked, RangeNotSatisfiable, StoredFileDamaged, NotYetSigned, Unavailable),
}


class KeyNotFound(NotFound):
    """The signer has not made its key yet."""

    code, title = "signing_key_not_found", "The signer has not made its key yet"


@router.get(
    "/checkpoints/{checkpoint_id}",
    dependencies=[allowed("checkpoints:read")],
    response_model=CheckpointRead,
    summary="Read a checkpoint's manifest",
    responses=problems(CheckpointNotFound),
)
def read_checkpoint(checkpoint_id: str) -> CheckpointRead:
    """Every file by path, size and SHA-256; the certificate names the same."""
    with reading() as session:
        return service.read(session, checkpoint_id)


@router.get(
    "/checkpoints/{checkpoint_id}/files/{path:path}",
    dependencies=[allowed("checkpoints:read")],
    response_class=Response,
    summary="Download one file",
    responses=FILE_RESPONSES,
)
def read_checkpoint_file(checkpoint_id: str, path: str, request: Request) -> Response:
    """With strong SHA-256 `ETag`, `Repr-Digest`, Range, If-Range and If-None-Match.

    Files below `UNLEARNING/`, and `model.sig`, are the evidence: they are served of a revoked checkpoint, too.
    """
    require_plain_address(request)
    if path == oms.NAME or path.startswith(f"{publication.FOLDER}/"):
        with reading() as session:
            piece = evidence.read(session, checkpoint_id, path)
        return evidence.answer(piece, request)
    with reading() as session:  # closed before the first byte: a slow client must not hold a connection
        stored = service.stored_file(session, checkpoint_id, path)
    return send_file(get_store(request.app.state.settings), stored, request)


@router.head(
    "/checkpoints/{checkpoint_id}/files/{path:path}",
    dependencies=[allowed("checkpoints:read")],
    response_class=Response,
    summary="The headers of one file",
    responses=FILE_RESPONSES,
)
def head_checkpoint_file(checkpoint_id: str, path: str, request: Request) -> Response:
    """What a download would say of itself."""
    return read_checkpoint_file(checkpoint_id, path, request)


@router.get(
    "/checkpoints/{checkpoint_id}/certificate",
    dependencies=[allowed("checkpoints:read")],
    response_class=JSONResponse,
    summary="The signed certificate",
    responses={200: {"content": {BUNDLE: {"schema": {"type": "object"}}}}, **problems(CheckpointNotFound)},
)
def read_checkpoint_certificate(checkpoint_id: str) -> Response:
    """A Sigstore bundle: a DSSE envelope around an in-toto statement. `expunge verify` checks it without this service."""
    with reading() as session:
        bundle = repository.get(session, checkpoint_id).certificate
    return JSONResponse(bundle, media_type=BUNDLE, headers={"Cache-Control": IMMUTABLE})


@router.post(
    "/checkpoints/{checkpoint_id}/revoke",
    dependencies=[allowed("checkpoints:revoke")],
    status_code=201,
    response_model=RevocationRead,
    summary="Ask that a certificate be taken back",
    responses=problems(CheckpointNotFound, revocation.AlreadyAsked, ConcurrentChange, Unprocessable, BadRequest),
)
def revoke_checkpoint(checkpoint_id: str, wanted: RevocationCreate, actor: CurrentActor) -> RevocationRead:
    """A second person approves it, unless the operator has set that one is enough: the record then says so."""
    with writing() as session:
        revocation.ask(session, checkpoint_id, reason=wanted.reason, by=actor)
    with reading() as session:
        return service.revocation_read(session, checkpoint_id)


@router.post(
    "/checkpoints/{checkpoint_id}/revoke/approve",
    dependencies=[allowed("checkpoints:approve")],
    response_model=RevocationRead,
    summary="Approve a revocation",
    responses=problems(
        CheckpointNotFound, revocation.NotAsked, revocation.AlreadyAsked, revocation.SamePerson, ConcurrentChange
    ),
)
def approve_revocation(checkpoint_id: str, actor: CurrentActor) -> RevocationRead:
    """From then on the files answer 410, and the revocation list names the certificate."""
    with writing() as session:
        revocation.approve(session, checkpoint_id, by=actor)
    with reading() as session:
        return service.revocation_read(session, checkpoint_id)


@router.get(
    "/checkpoints/{checkpoint_id}/membership",
    dependencies=[allowed("checkpoints:read")],
    response_model=Opening,
    summary="Prove that an item was among what was forgotten",
    responses=problems(CheckpointNotFound, membership.NotForgotten, membership.CommitmentErased, BadLocation),
)
def read_membership(
    checkpoint_id: str, actor: CurrentActor, item: Annotated[str, Query(min_length=1, max_length=512)]
) -> Opening:
    """One item's salt and its path to the commitment in the certificate; of no other item anything is said.

    Who asked of which checkpoint is written into the ledger, whatever the answer; of which item is not.
    """
    try:
        opened = membership.opening(checkpoint_id, item)
    except (membership.NotForgotten, membership.CommitmentErased):
        access.note_read(actor, "membership", {"checkpoint_id": checkpoint_id}, 0)
        raise
    access.note_read(actor, "membership", {"checkpoint_id": checkpoint_id}, 1)
    return opened


@router.get(
    "/checkpoints/{checkpoint_id}/receipt",
    dependencies=[allowed("checkpoints:read")],
    response_class=Response,
    summary="Proof that the certificate is in the ledger",
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(CheckpointNotFound, ReceiptNotFound, NotYetSigned),
    },
)
def read_checkpoint_receipt(checkpoint_id: str) -> Response:
    """A C2SP tlog-proof of the entry that records the certificate. 503 until a signed checkpoint of the ledger covers it."""
    with reading() as session:
        row = repository.get(session, checkpoint_id)
        seq = proofs.entry_of(session, row.request_id, CertificateIssued.action)
        return receipts.receipt(session, seq, checkpoint_id)


@router.get(
    "/revocations",
    dependencies=[PUBLIC],
    response_class=Response,
    summary="The signed revocation list",
    responses={
        200: {"content": {BUNDLE: {"schema": {"type": "object"}}}},
        304: {"description": "The client has this list"},
        **problems(revocation_list.SignerAway),
    },
)
def list_revocations(request: Request) -> Response:
    """Every certificate that was taken back, as of a moment and of a size of the ledger, signed with the certificates' key.

    It stays the same, byte by byte, until another certificate is revoked or its `nextUpdate` comes; `number` then goes up.
    """
    with tenancy.acting(None):  # one list for all projects, whoever asks
        kept = revocation_list.current(request.app.state.settings)
    headers = {"ETag": kept.etag, "Cache-Control": f"public, max-age={min(LIST_SECONDS, kept.seconds_left)}"}
    if unchanged(request.headers.get("if-none-match"), kept.etag):
        return Response(status_code=304, headers=headers)
    return Response(kept.bundle, media_type=BUNDLE, headers=headers)


@router.get(
    "/signing-key",
    dependencies=[PUBLIC],
    response_class=Response,
    summary="The public key",
    responses={200: {"content": {PEM: {"schema": {"type": "string"}}}}, **problems(KeyNotFound)},
)
def read_signing_key(request: Request) -> Response:
    """PEM. Take it from a place you trust: whoever could forge a certificate here could forge the key beside it."""
    try:
        pem = request.app.state.settings.public_key_file.read_bytes()
    except FileNotFoundError as error:
        raise KeyNotFound from error
    if not pem.startswith(b"-----BEGIN PUBLIC KEY-----") or b"PRIVATE" in pem:
        raise RuntimeError("the public key file does not hold a public key")
    return Response(pem, media_type=PEM)
