"""Calls, and what can go wrong with them: problems as exceptions, patience with limits, downloads that are verified."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from service.fetching import TAG, Answer, DownloadRefused, fetch

RATE_PATIENCE_SECONDS = 60.0
"""So long, in all, a call waits because it came too soon."""
AWAY = frozenset({502, 503, 504})
PAGE = 100
"""Items that are asked for at once: the most that the service gives."""
NONE: Mapping[str, str] = MappingProxyType({})

Json = dict[str, Any]


class ApiError(Exception):
    """The service answered with a problem.

    `problem` is all that it said, with what belongs to the code: the `request_id` that stands in the way, the `index` of a
    batch's item, `superseded_by`, `allowed`; empty where the answer was none of ours.
    """

    def __init__(self, status: int, code: str, detail: str, errors: list[Json], problem: Json | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = errors
        self.problem = problem or {}

    def __str__(self) -> str:
        where = "".join(f"\n  {e.get('pointer', '')}: {e.get('detail', '')}" for e in self.errors)
        whom = "".join(f"\n  {name}: {self.problem[name]}" for name in ("request_id", "superseded_by") if name in self.problem)
        return f"{self.code} ({self.status}): {self.args[0]}{where}{whom}"


class Unreachable(Exception):
    """Nobody answers at the service's address."""


def passes(error: ApiError | Unreachable) -> bool:
    """True while the service is away, or says itself that it is: a restart, a proxy that finds nobody behind it."""
    return isinstance(error, Unreachable) or error.status in AWAY


class _Patient(httpx2.Client):
    """Calls again when the service says that a call came too soon, and when to come again. Such a call did nothing."""

    def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        left = RATE_PATIENCE_SECONDS
        while True:
            response = super().send(request, **how)
            pause = _pause_of(response)
            if pause is None or pause > left:
                return response
            response.close()
            left -= pause
            time.sleep(pause)


def _pause_of(response: httpx2.Response) -> float | None:
    """Seconds to wait before the same call again; None: it was not too soon."""
    if response.status_code != 429:
        return None
    response.read()
    try:
        said = response.headers["Retry-After"]
        return max(1.0, float(said)) if response.json()["code"] == "rate_limited" else None
    except (ValueError, KeyError, TypeError):
        return None  # of something in front of the service


class Transport:
    """One service, by addresses and bodies as the API documents them; whoever has a choice takes the methods of `Client`.

    A call that came too soon waits as it is told, up to `RATE_PATIENCE_SECONDS`; then it raises.

    All methods raise: ApiError: the service refuses. Unreachable: nobody answers.

    Args:
        key: API key or token. It goes into the header of each call, and nowhere else: no redirect is followed with it.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = _Patient(base_url=url, timeout=timeout, follow_redirects=False, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, *, headers: Mapping[str, str] = NONE, **query: Any) -> Any:
        """The body of an answer; a query's None is left out."""
        return _body(self._send("GET", path, params=_given(query), headers=headers))

    def post(self, path: str, body: Any = None, *, idempotency_key: str | None = None) -> Any:
        """A POST; with a key it can be repeated, and is done once."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _body(self._send("POST", path, json=body, headers=headers))

    def patch(self, path: str, body: Any, *, if_match: str | None = None) -> Any:
        return _body(self._send("PATCH", path, json=body, headers={"If-Match": if_match} if if_match else {}))

    def delete(self, path: str) -> Any:
        return _body(self._send("DELETE", path))

    def pages(self, path: str, **query: Any) -> Iterator[Any]:
        """Every item of a keyset list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, after=cursor, limit=PAGE, **query)
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not page.get("has_more"):
                return

    def content(self, path: str, *, accept: str = "*/*", **query: Any) -> bytes:
        """A body that is no JSON."""
        response = self._send("GET", path, params=_given(query), headers={"Accept": accept})
        _raise_problem(response)
        return response.content

    def text(self, path: str, **query: Any) -> str:
        """A body that is text in UTF-8."""
        return self.content(path, **query).decode()

    def stream_lines(
        self, path: str, *, headers: Mapping[str, str] = NONE, media_type: str = "", **query: Any
    ) -> Iterator[str]:
        """The lines of an answer, as they come.

        Args:
            media_type: that the answer must have; empty: any will do.
        """
        try:
            with self._http.stream("GET", path, params=_given(query), headers=headers) as response:
                if response.status_code >= 300:
                    response.read()
                    _raise_problem(response)
                if response.status_code == 200 and not response.headers.get("Content-Type", "").startswith(media_type):
                    raise ApiError(200, "unreadable", "the answer is not one of ours", [])
                yield from response.iter_lines()
        except httpx2.TransportError as error:
            raise _unreachable(error) from error

    def download(self, path: str, target: Path, *, sha256: str | None = None) -> None:
        """Fetch one file to `target`: written as `.part`, resumed if one is there, renamed once its digest is right.

        Raises:
            DownloadRefused: the bytes do not hash to `sha256`; nothing is left under the target's name.
            Unreachable: it broke off, again and again; the next call goes on from there.
        """
        try:
            fetch(lambda headers: self._ask(path, headers), target, sha256)
        except httpx2.TransportError as error:
            raise _unreachable(error) from error

    @contextmanager
    def _ask(self, path: str, headers: dict[str, str]) -> Iterator[Answer]:
        """One file. Where the service sends on to its bucket, that is asked without our own headers, and without `If-Range`:
        the bucket has tags of its own, and the digest is compared at the end anyway."""
        with self._http.stream("GET", path, headers=headers) as response:
            tag = response.headers.get("ETag", "")
            if response.status_code != 307 or not TAG.fullmatch(tag):  # whoever sends on to a bucket says what is there
                if response.status_code >= 300 and response.status_code != 416:
                    response.read()
                    _raise_problem(response)
                yield Answer(response, tag)
                return
            elsewhere = response.headers.get("Location", "")
        plain = {name: value for name, value in headers.items() if name != "If-Range"}
        with httpx2.stream("GET", elsewhere, headers=plain, timeout=self._http.timeout) as response:
            if response.status_code not in (200, 206, 416):
                raise DownloadRefused(f"the store that the service sent on to answers {response.status_code}")
            yield Answer(response, tag)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx2.TransportError as error:
            raise _unreachable(error) from error


def address(*parts: str | int) -> str:
    """A path of these segments: an id from anywhere stays one segment."""
    return "".join("/" + quote(str(part), safe="") for part in parts)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _unreachable(error: httpx2.TransportError) -> Unreachable:
    return Unreachable(f"no answer from the service, or not the whole of it ({type(error).__name__}); is it running?")


def _body(response: httpx2.Response) -> Any:
    _raise_problem(response)
    if response.status_code == 204:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise ApiError(response.status_code, "unreadable", "the answer is not one of ours", []) from error


def _raise_problem(response: httpx2.Response) -> None:
    if response.status_code < 300:
        return
    if response.status_code < 400:
        said = "the answer sends on elsewhere, and nothing is followed with a key: is the service's address right?"
        raise ApiError(response.status_code, "redirected", said, [])
    try:
        problem = response.json()
        known = ApiError(response.status_code, problem["code"], problem["detail"], problem.get("errors", []), problem)
    except (ValueError, KeyError, TypeError) as error:
        raise ApiError(response.status_code, "unreadable", "the answer is not one of ours", []) from error
    raise known
