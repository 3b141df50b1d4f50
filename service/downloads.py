"""Answering with a stored file, such that a wrong download cannot go unnoticed.

Strong `ETag` and `Repr-Digest` are the SHA-256 that the manifest names (RFC 9530), ranges resume only under the same one
(RFC 9110 §13.1.5), and a stored object of another length is an error before the first byte. Where the setting
`store_redirect_seconds` says so, a bucket's file is sent on to a signed URL of the bucket instead, with the same digest.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from service.config import Settings
from service.errors import FileNotFound, ServiceError, Unavailable, problem
from service.files import CHUNK
from service.storage import Missing, Store, StoreError
from service.telemetry.http import STORE_ERRORS

MEDIA_TYPES = {".json": "application/json", ".png": "image/png", ".md": "text/markdown", ".txt": "text/plain"}
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
SMUGGLED = re.compile(rb"%(2f|2e|5c|00)", re.IGNORECASE)


class StoredFileDamaged(ServiceError):
    """The store no longer holds what the manifest names."""

    status, code, title = 500, "stored_file_damaged", "The stored file is missing or damaged"


class RangeNotSatisfiable(ServiceError):
    """The range begins after the file's end."""

    status: ClassVar[int] = 416
    code, title = "range_not_satisfiable", "The range begins after the file's end"


@dataclass(frozen=True)
class StoredFile:
    """A named file in the store."""

    path: str
    size: int
    sha256: str

    @property
    def etag(self) -> str:
        return f'"sha256:{self.sha256}"'


def require_plain_address(request: Request) -> None:
    """A name is looked up, never resolved; so an encoded slash or dot in it can only be an attempt at something else.

    Raises:
        FileNotFound.
    """
    if SMUGGLED.search(request.scope.get("raw_path") or b""):
        raise FileNotFound


def send_file(store: Store, file: StoredFile, request: Request) -> Response:
    """200, 206, 304, 307 or 416 for GET and HEAD.

    One range is served; several, or a malformed one, are answered with the whole file, as RFC 9110 §14.2 allows.

    Raises:
        StoredFileDamaged: the store has no such object, or one of another length.
        Unavailable: the store does not answer.
    """
    _require_whole(store, file)
    headers = _headers(file)
    if unchanged(request.headers.get("if-none-match"), file.etag):
        return Response(status_code=304, headers={k: headers[k] for k in ("ETag", "Cache-Control", "Repr-Digest")})
    media_type = MEDIA_TYPES.get(file.path[file.path.rfind(".") :], "application/octet-stream")
    if request.method == "HEAD":  # RFC 9110 §14.2: Range means something to GET alone
        return Response(headers={**headers, "Content-Length": str(file.size)}, media_type=media_type)
    if elsewhere := _link(store, file, media_type, request.app.state.settings):
        return Response(status_code=307, headers={**headers, "Location": elsewhere, "Cache-Control": "no-store"})
    begin, end, status = _wanted(request, file)
    if status == 416:
        return _unsatisfiable(request, file)
    headers["Content-Length"] = str(end - begin)
    if status == 206:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size}"
    return StreamingResponse(_bytes(store, file, begin, end), status, headers, media_type)


def _require_whole(store: Store, file: StoredFile) -> None:
    try:
        size = store.size(file.sha256)
    except Missing as error:
        raise StoredFileDamaged from error
    except StoreError as error:
        STORE_ERRORS.inc()
        raise Unavailable("the store does not answer just now") from error
    if size != file.size:
        raise StoredFileDamaged


def _link(store: Store, file: StoredFile, media_type: str, settings: Settings) -> str | None:
    """Where the file can be read without us; None: here."""
    if not settings.store_redirect_seconds:
        return None
    name = file.path.rpartition("/")[2]
    try:
        return store.link(file.sha256, seconds=settings.store_redirect_seconds, name=name, media_type=media_type)
    except StoreError as error:
        STORE_ERRORS.inc()
        raise Unavailable("the store does not answer just now") from error


def _headers(file: StoredFile) -> dict[str, str]:
    name = file.path.rpartition("/")[2]
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": file.etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }


def unchanged(header: str | None, etag: str) -> bool:
    """True when an If-None-Match header names the tag. It compares weakly (RFC 9110 §13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def _wanted(request: Request, file: StoredFile) -> tuple[int, int, int]:
    """(begin, end, status): the half-open range to send, and 200, 206 or 416."""
    whole = (0, file.size, 200)
    condition = request.headers.get("if-range")
    found = RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or (condition is not None and condition.strip() != file.etag):
        return whole
    first, last = found.groups()
    if not first and not last:
        return whole
    if not first:  # the last N bytes
        count = min(int(last), file.size)
        return (file.size - count, file.size, 206) if count else (0, 0, 416)
    if last and int(last) < int(first):
        return whole
    if int(first) >= file.size:
        return 0, 0, 416
    return int(first), min(int(last) + 1, file.size) if last else file.size, 206


def _unsatisfiable(request: Request, file: StoredFile) -> Response:
    response = problem(RangeNotSatisfiable(), instance=request.url.path)
    response.headers["Content-Range"] = f"bytes */{file.size}"
    return response


def _bytes(store: Store, file: StoredFile, begin: int, end: int) -> Iterator[bytes]:
    """The bytes asked for. A short read ends the body early, and Content-Length tells the client so."""
    with store.open(file.sha256) as stream:
        stream.seek(begin)
        left = end - begin
        while left and (chunk := stream.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
