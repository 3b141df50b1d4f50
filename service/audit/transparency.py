"""/audit as a transparency log: checkpoint, policy, tiles, entries by number, proofs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask

from service import tenancy
from service.audit import access, archive, checkpoints, proofs, repository, service, tiles, trust
from service.audit.schemas import CheckpointStatus, ConsistencyProof, EntryRead, InclusionProof, LogStatus
from service.auth import PUBLIC, CurrentActor, allowed
from service.db import reading
from service.errors import EntryNotFound, NotYetSigned, Unprocessable, problems
from service.tables import LedgerCheckpoint
from service.values import LARGEST_INT
from service.verifier.note import Note, Policy

router = APIRouter(prefix="/audit", tags=["audit"])

TEXT = "text/plain; charset=utf-8"
BYTES, TAR = "application/octet-stream", "application/x-tar"
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
SOON_STALE = {"Cache-Control": "max-age=2"}
REDACTABLE = {"Cache-Control": "private, max-age=60"}
"""C2SP would have bundles cached for long; here an entry may be redacted, and then its bytes must not live on in a cache."""
PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
BINARY: dict[int | str, dict[str, Any]] = {200: {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}}

Number = Annotated[int, Query(ge=0, le=LARGEST_INT)]


def _policy(request: Request) -> Policy:
    try:
        return trust.policy(request.app.state.settings)
    except trust.NoLogKey as error:
        raise NotYetSigned(str(error)) from error


@contextmanager
def _newest(request: Request) -> Iterator[tuple[Session, LedgerCheckpoint]]:
    """A session, and the newest checkpoint that the policy accepts. Raises: NotYetSigned."""
    policy = _policy(request)
    with reading() as session:
        row = checkpoints.accepted(session, policy)
        if row is None:
            raise NotYetSigned("no checkpoint has been signed, or too few witnesses have seen one")
        yield session, row


@router.get(
    "/checkpoint",
    dependencies=[PUBLIC],
    response_class=Response,
    summary="The newest signed checkpoint",
    responses={**PLAIN, **problems(NotYetSigned)},
)
def read_audit_checkpoint(request: Request) -> Response:
    """A C2SP checkpoint that the policy accepts: origin, size and root of the ledger's Merkle tree, and signatures.

    Keep one. Whoever kept a checkpoint can tell a history that was rewritten since.
    """
    with _newest(request) as (_, row):
        return Response(row.note, media_type=TEXT, headers=SOON_STALE)


@router.get(
    "/policy",
    dependencies=[PUBLIC],
    response_class=Response,
    summary="Whose checkpoints to believe",
    responses={**PLAIN, **problems(NotYetSigned)},
)
def read_audit_policy(request: Request) -> Response:
    """A C2SP tlog-policy: the log's keys, witnesses, quorum.

    Take it from a place you trust, and keep it: whoever could rewrite the ledger could write another policy here.
    """
    try:
        return Response(trust.policy_text(request.app.state.settings), media_type=TEXT, headers=SOON_STALE)
    except trust.NoLogKey as error:
        raise NotYetSigned(str(error)) from error


@router.get(
    "/status",
    dependencies=[PUBLIC],
    response_model=LogStatus,
    summary="How far the ledger is signed",
    responses=problems(NotYetSigned),
)
def read_audit_status(request: Request) -> LogStatus:
    """Entries, the newest checkpoint there is, which witnesses have seen it, and what is wrong with those that are stored."""
    policy = _policy(request)
    with reading() as session:
        size, last = repository.size(session), checkpoints.newest(session, policy)
        good, stamped = checkpoints.accepted(session, policy), checkpoints.newest_stamped(session, policy)
        problems = checkpoints.problems(session, policy)
    signed = {(name, told) for name, told, _ in Note.parse(last.note).signatures} if last else set()
    seen = {name: (key.name, key.id) in signed for name, key in policy.witnesses.items()}
    return LogStatus(
        origin=policy.logs[-1].name,
        size=size,
        signed=_shown(last),
        accepted=_shown(good),
        witnesses=seen,
        time_stamped=_shown(stamped),
        status="degraded" if problems else "ok",
        problems=problems,
    )


def _shown(row: LedgerCheckpoint | None) -> CheckpointStatus | None:
    return None if row is None else CheckpointStatus(size=row.size, at=row.created_at)


@router.get(
    "/tile/entries/{path:path}",
    dependencies=[allowed("ledger:whole")],
    response_class=Response,
    summary="256 entries",
    responses={**BINARY, **problems(EntryNotFound)},
)
def read_audit_bundle(path: str, actor: CurrentActor) -> Response:
    """C2SP tlog-tiles: `<N>` or `<N>.p/<W>`. Entries with their lengths as two bytes before them; a redacted one has none."""
    index, width = _place(path)
    with tenancy.acting(None), reading() as session:  # a bundle is of the whole tree, whoever asks
        rows = repository.range_of(session, index * tiles.WIDTH, width)
    if len(rows) < width:
        raise EntryNotFound("the ledger is not so long")
    access.note_read(actor, "bundle", {"index": index}, len(rows))
    return Response(tiles.bundle(row.leaf for row in rows), media_type=BYTES, headers=REDACTABLE)


@router.get(
    "/tile/{level}/{path:path}",
    dependencies=[PUBLIC],
    response_class=Response,
    summary="256 hashes of the tree",
    responses={**BINARY, **problems(EntryNotFound)},
)
def read_audit_tile(level: str, path: str) -> Response:
    """C2SP tlog-tiles: `<N>` or `<N>.p/<W>`."""
    index, width = _place(path)
    try:
        height = tiles.HEIGHT * tiles.parse_level(level)
    except tiles.NoTile as error:
        raise EntryNotFound(str(error)) from error
    with reading() as session:
        found = repository.nodes(session, height, index * tiles.WIDTH, width)
    if len(found) < width:
        raise EntryNotFound("the ledger is not so long")
    return Response(b"".join(found), media_type=BYTES, headers=FOR_EVER)


def _place(path: str) -> tuple[int, int]:
    try:
        index, width = tiles.parse_index(path)
    except tiles.NoTile as error:
        raise EntryNotFound(str(error)) from error
    if index * tiles.WIDTH > LARGEST_INT:
        raise EntryNotFound("the ledger is not so long")
    return index, width


@router.get(
    "/entries/{seq}",
    dependencies=[allowed("ledger:read")],
    response_model=EntryRead,
    summary="One entry",
    responses=problems(EntryNotFound, Unprocessable),
)
def read_audit_entry(seq: int, actor: CurrentActor) -> EntryRead:
    """By its sequence number."""
    with reading() as session:
        row = proofs.entry(session, seq) if 0 <= seq <= LARGEST_INT else None
        if row is None:
            raise EntryNotFound
        found = service.read(row)
    access.note_read(actor, "entry", {"seq": seq}, 1)
    return found


@router.get(
    "/proof/inclusion",
    dependencies=[allowed("ledger:read")],
    response_model=InclusionProof,
    summary="That an entry is in the tree",
    responses={**PLAIN, **problems(EntryNotFound, NotYetSigned, Unprocessable)},
)
def read_audit_inclusion(
    request: Request, seq: Number, size: Number | None = None, accept: Annotated[str, Header()] = "*/*"
) -> Response:
    """A C2SP tlog-proof, which needs a signed checkpoint of that size. Without `size`: in the newest checkpoint.

    With `Accept: application/json` the hashes alone, at any size; without `size`: in all of the ledger.
    """
    with reading() as session:
        if "application/json" in accept.lower():
            size = repository.size(session) if size is None else size
            row = proofs.entry(session, seq)
            if row is None or not seq < size <= repository.size(session):
                raise EntryNotFound
            return JSONResponse(
                InclusionProof(
                    seq=seq,
                    size=size,
                    leaf_hash=row.leaf_hash.hex(),
                    root=_base64(repository.root(session, size)),
                    hashes=[_base64(one) for one in repository.inclusion(session, seq, size)],
                ).model_dump()
            )
        if proofs.entry(session, seq) is None or (size is not None and size <= seq):
            raise EntryNotFound
        chosen = checkpoints.accepted(session, _policy(request), above=seq, size=size)
        text = None if chosen is None else proofs.in_checkpoint(session, seq, chosen)
    if text is None:
        raise NotYetSigned if size is None else NotYetSigned("no accepted checkpoint has this size")
    return Response(text, media_type=TEXT)


@router.get(
    "/proof/consistency",
    dependencies=[PUBLIC],
    response_model=ConsistencyProof,
    summary="That the tree has only grown",
    responses=problems(EntryNotFound, NotYetSigned, Unprocessable),
)
def read_audit_consistency(
    request: Request,
    old: Annotated[int, Query(alias="from", ge=0, le=LARGEST_INT)],
    new: Annotated[int | None, Query(alias="to", ge=0, le=LARGEST_INT)] = None,
) -> ConsistencyProof:
    """RFC 6962 §2.1.2, from the size of a checkpoint that you kept. Without `to`: to the newest checkpoint."""
    with reading() as session:
        if new is None:
            row = checkpoints.accepted(session, _policy(request))
            if row is None:
                raise NotYetSigned
            new = row.size
        if not old <= new <= repository.size(session):
            raise EntryNotFound("the ledger is not so long, or the sizes are the wrong way round")
        return ConsistencyProof(
            old=old,
            new=new,
            from_root=_base64(repository.root(session, old)),
            to_root=_base64(repository.root(session, new)),
            hashes=[_base64(one) for one in repository.consistency(session, old, new)],
        )


@router.get(
    "/export.tar",
    dependencies=[allowed("ledger:whole")],
    response_class=FileResponse,
    summary="All of the ledger, to be checked elsewhere",
    responses={200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}, **problems(NotYetSigned)},
)
def export_audit_ledger(request: Request, actor: CurrentActor) -> Response:
    """Up to the newest checkpoint: C2SP tiles, entries, every checkpoint with its time stamp, policy, schemas, checksums.

    `expunge verify ledger` checks the folder in it without this service.
    """
    try:
        path = archive.tar(request.app.state.settings)
    except (trust.NoLogKey, archive.NothingSigned) as error:
        raise NotYetSigned from error
    gone = BackgroundTask(path.unlink, missing_ok=True)
    try:
        access.note_export(actor, "ledger", {}, 1)
    except BaseException:  # nothing is shown that is not on record
        path.unlink()
        raise
    return FileResponse(path, media_type=TAR, filename="ledger.tar", headers={"Cache-Control": "no-store"}, background=gone)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
