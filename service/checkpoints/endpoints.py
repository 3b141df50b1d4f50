"""/checkpoints and the key that their certificates are checked with."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.checkpoints import repository, service
from service.checkpoints.schemas import CheckpointRead
from service.db import reading
from service.downloads import RangeNotSatisfiable, StoredFileDamaged, require_plain_address, send_file
from service.errors import CheckpointNotFound, FileNotFound, NotFound, problems
from service.storage import get_store

router = APIRouter(tags=["checkpoints"])

DSSE = "application/vnd.dsse.envelope.v1+json"
PEM = "application/x-pem-file"
IMMUTABLE = "private, max-age=31536000, immutable"
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}},
    206: {"description": "The range asked for"},
    304: {"description": "The client has these bytes"},
    **problems(CheckpointNotFound, FileNotFound, RangeNotSatisfiable, StoredFileDamaged),
}


class KeyNotFound(NotFound):
    """The signer has not made its key yet."""

    code, title = "signing_key_not_found", "The signer has not made its key yet"


@router.get(
    "/checkpoints/{checkpoint_id}",
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
    response_class=Response,
    summary="Download one file",
    responses=FILE_RESPONSES,
)
def read_checkpoint_file(checkpoint_id: str, path: str, request: Request) -> Response:
    """With strong SHA-256 `ETag`, `Repr-Digest`, Range, If-Range and If-None-Match."""
    require_plain_address(request)
    with reading() as session:  # closed before the first byte: a slow client must not hold a connection
        stored = service.stored_file(session, checkpoint_id, path)
    return send_file(get_store(request.app.state.settings), stored, request)


@router.head(
    "/checkpoints/{checkpoint_id}/files/{path:path}",
    response_class=Response,
    summary="The headers of one file",
    responses=FILE_RESPONSES,
)
def head_checkpoint_file(checkpoint_id: str, path: str, request: Request) -> Response:
    """What a download would say of itself."""
    return read_checkpoint_file(checkpoint_id, path, request)


@router.get(
    "/checkpoints/{checkpoint_id}/certificate",
    response_class=JSONResponse,
    summary="The signed certificate",
    responses={200: {"content": {DSSE: {"schema": {"type": "object"}}}}, **problems(CheckpointNotFound)},
)
def read_checkpoint_certificate(checkpoint_id: str) -> Response:
    """A DSSE envelope around an in-toto statement. `expunge verify` checks it without this service."""
    with reading() as session:
        envelope = repository.get(session, checkpoint_id).certificate
    return JSONResponse(envelope, media_type=DSSE, headers={"Cache-Control": IMMUTABLE})


@router.get(
    "/signing-key",
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
