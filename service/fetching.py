"""Fetching one file such that a wrong one never gets its name: `.part`, resumed, held against its digest, renamed.

What may go wrong on the way: a connection that breaks (asked again from its byte, under `If-Range`), a proxy's page instead of
the file (it does not carry the file's tag), a part of another file (begun again), a byte that flipped (refused).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx2

TRIES = 5
"""In a row without a byte more."""
FIRST_PAUSE = 0.2
TAG = re.compile(r'"sha256:([0-9a-f]{64})"')


@dataclass(frozen=True)
class Answer:
    """An answer to one GET, and the tag that the service itself gave the file: a bucket knows no such tag."""

    body: httpx2.Response
    tag: str


Ask = Callable[[dict[str, str]], AbstractContextManager[Answer]]
"""Asks for the file with these headers; raises on errors but 416. httpx2.TransportError may also come from the body."""


class DownloadRefused(Exception):
    """What arrived is not what the manifest names."""


class _NotThere(Exception):
    """The answer does not go on where the part ends."""


def fetch(ask: Ask, target: Path, sha256: str | None) -> None:
    """Fetch one file.

    Args:
        sha256: what the manifest says; None: it says nothing, and only the answer's own tag is compared.

    Raises:
        DownloadRefused: nothing is left under the target's name.
        httpx2.TransportError: it broke off, again and again; the part is kept for the next call.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if sha256 is None:
        part.unlink(missing_ok=True)  # of what, nobody knows
    resumed = part.exists()
    wanted = _to_the_end(ask, part, sha256)
    if resumed and wanted and sha256_of_file(part) != wanted:  # the part that lay here may have been another file's
        part.unlink()
        wanted = _to_the_end(ask, part, sha256)
    if wanted and sha256_of_file(part) != wanted:
        part.unlink()
        raise DownloadRefused(f"{target.name} did not arrive as the manifest names it")
    os.replace(part, target)


def _to_the_end(ask: Ask, part: Path, sha256: str | None) -> str | None:
    """Ask, and again where the connection breaks, until an answer has ended. Returns the digest to be held against."""
    tries = 0
    while True:
        before = _size(part)
        try:
            return _more(ask, part, sha256)
        except _NotThere:
            part.unlink()
        except httpx2.TransportError:
            tries = 1 if _size(part) > before else tries + 1
            if tries >= TRIES:
                raise
            time.sleep(FIRST_PAUSE * 2 ** (tries - 1))


def _more(ask: Ask, part: Path, sha256: str | None) -> str | None:
    done = _size(part) if sha256 else 0
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": f'"sha256:{sha256}"'}
    with ask(headers) as answer:
        if answer.body.status_code == 416 and done:
            if sha256_of_file(part) == sha256:
                return sha256  # all of it was there but its name
            raise _NotThere
        promised = TAG.fullmatch(answer.tag)
        if sha256 and (promised is None or promised[1] != sha256):
            raise DownloadRefused("the answer is not the file that was asked for: a proxy's page, or another file")
        goes_on = answer.body.status_code == 206
        if goes_on and not _begins_at(answer.body, done):
            raise _NotThere
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in answer.body.iter_bytes():  # as it comes: what is gathered into blocks is lost when the line breaks
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    return sha256 or (promised[1] if promised else None)


def _begins_at(response: httpx2.Response, byte: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == byte


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sha256_of_file(path: Path) -> str:
    """Of a file's bytes, in hex. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
