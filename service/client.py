"""A thin client of the HTTP API, used by the command line. Downloads are verified before they get their name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote

import httpx2

from service.fetching import Answer, DownloadRefused, fetch, sha256_of_file

LEDGER_PATIENCE_SECONDS = 30.0
"""So long a download waits for the ledger to be signed: seconds after a publication, as a rule."""
POLL_SECONDS = 0.5
RATE_PATIENCE_SECONDS = 60.0
"""So long, in all, a call waits because it came too soon."""
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "rejected"})

Json = dict[str, Any]


class ApiError(Exception):
    """The service answered with a problem."""

    def __init__(self, status: int, code: str, detail: str, errors: list[Json]) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = errors

    def __str__(self) -> str:
        where = "".join(f"\n  {e.get('pointer', '')}: {e.get('detail', '')}" for e in self.errors)
        return f"{self.code} ({self.status}): {self.args[0]}{where}"


class Unreachable(Exception):
    """Nobody answers at the service's address."""


@dataclass(frozen=True)
class Download:
    """What was fetched of a checkpoint."""

    manifest: Json
    missing: list[str]
    """Receipts that the ledger's log has not been signed for yet, by their path: all that may be missing."""


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


class Client:
    """One service. Every method returns the body as the API documents it. A call that came too soon waits as it is told, up to
    `RATE_PATIENCE_SECONDS`; then it raises.

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

    def get(self, path: str, **query: Any) -> Json:
        return _body(self._send("GET", path, params={k: v for k, v in query.items() if v is not None}))

    def post(self, path: str, body: Json | None = None, *, idempotency_key: str | None = None) -> Json:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _body(self._send("POST", path, json=body, headers=headers))

    def patch(self, path: str, body: Json, *, if_match: str) -> Json:
        return _body(self._send("PATCH", path, json=body, headers={"If-Match": if_match}))

    def pause(self, request_id: str) -> Json:
        return self.post(f"/unlearn-requests/{request_id}/pause")

    def resume(self, request_id: str) -> Json:
        return self.post(f"/unlearn-requests/{request_id}/resume")

    def approve(self, request_id: str, request_digest: str, comment: str | None = None) -> Json:
        """Approve a request as it was read. Raises: ApiError: it was changed since, or it is the caller's own."""
        said = {"request_digest": request_digest} | ({"comment": comment} if comment else {})
        return self.post(f"/unlearn-requests/{request_id}/approve", said)

    def reject(self, request_id: str, reason: str) -> Json:
        return self.post(f"/unlearn-requests/{request_id}/reject", {"reason": reason})

    def retry(self, request_id: str, different: Json | None = None, *, idempotency_key: str | None = None) -> Json:
        """Take up a request that ended without a result; returns the new one."""
        return self.post(f"/unlearn-requests/{request_id}/retry", different or {}, idempotency_key=idempotency_key)

    def amend(self, request_id: str, **changes: Any) -> Json:
        """Change priority, external_id or metadata of the request as it stands now. Raises: ApiError: it changed meanwhile."""
        address = f"/unlearn-requests/{request_id}"
        return self.patch(address, changes, if_match=f'"{self.get(address)["version"]}"')

    def delete(self, path: str) -> Json:
        return _body(self._send("DELETE", path))

    def create_webhook(self, url: str, event_types: list[str] | None = None, description: str = "") -> Json:
        """Have events sent to an address; the answer holds the secret, this once."""
        return self.post("/webhook-endpoints", {"url": url, "event_types": event_types or [], "description": description})

    def rotate_webhook_secret(self, endpoint_id: str, overlap_hours: float = 24.0) -> Json:
        """A new secret; the one before signs beside it for so long."""
        return self.post(f"/webhook-endpoints/{endpoint_id}/rotate-secret", {"overlap_hours": overlap_hours})

    def redeliver_webhook(self, endpoint_id: str, delivery_id: str) -> Json:
        """Send a message once more, under its own id."""
        return self.post(f"/webhook-endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver")

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """Every item of a keyset list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, after=cursor, **query)
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not page.get("has_more"):
                return

    def text(self, path: str) -> str:
        response = self._send("GET", path)
        _raise_problem(response)
        return str(response.text)

    def watch(self, request_id: str, seen: Callable[[Json], None], *, poll_seconds: float = 0.4) -> Json:
        """Follow a request to its end, handing every reading to `seen`."""
        while True:
            request = self.get(f"/unlearn-requests/{request_id}")
            seen(request)
            if request["status"] in TERMINAL:
                return request
            time.sleep(poll_seconds)

    def stream_lines(self, path: str, **query: Any) -> Iterator[str]:
        """The lines of a streamed answer."""
        with self._stream(path, params={k: v for k, v in query.items() if v is not None}) as response:
            _raise_problem(response)
            yield from response.iter_lines()

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
            if response.status_code != 307:
                if response.status_code >= 400 and response.status_code != 416:
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

    def download_checkpoint(
        self, checkpoint_id: str, directory: Path, *, patience_seconds: float = LEDGER_PATIENCE_SECONDS
    ) -> Download:
        """Fetch every file of a checkpoint, its certificate and what lies beside it into `directory`.

        Files that lie there already under their digest are left alone, so a call that is repeated only fetches what is missing.

        Args:
            patience_seconds: how long to wait for receipts, once everything else is there.

        Raises:
            ApiError, Unreachable.
            DownloadRefused: a file is not the one that the manifest names.
        """
        manifest = self.get(f"/checkpoints/{checkpoint_id}")
        for entry in [*manifest["files"], *manifest["evidence"]]:
            target = _inside(directory, entry["path"])
            if not target.is_file() or sha256_of_file(target) != entry["sha256"]:
                self.download(self._file(checkpoint_id, entry["path"]), target, sha256=entry["sha256"])
        deadline = time.monotonic() + patience_seconds
        missing: list[str] = manifest["later"]
        while missing := [path for path in missing if not self._signed(checkpoint_id, path, directory)]:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return Download(manifest, missing)

    @staticmethod
    def _file(checkpoint_id: str, path: str) -> str:
        return f"/checkpoints/{checkpoint_id}/files/{quote(path)}"

    def _signed(self, checkpoint_id: str, path: str, directory: Path) -> bool:
        """Fetch what the service can only give once the ledger has been signed; False: it has not been."""
        try:
            self.download(self._file(checkpoint_id, path), _inside(directory, path))
        except ApiError as error:
            if error.code != "not_yet_signed":
                raise
            return False
        return True

    @contextmanager
    def _stream(self, path: str, **arguments: Any) -> Iterator[httpx2.Response]:
        """A GET whose body comes as it is read; an error's body is read at once."""
        try:
            with self._http.stream("GET", path, **arguments) as response:
                if response.status_code >= 400:
                    response.read()
                yield response
        except httpx2.TransportError as error:
            raise _unreachable(error) from error

    def _send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx2.TransportError as error:
            raise _unreachable(error) from error


def _inside(directory: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DownloadRefused("the manifest names a file outside the checkpoint")
    return directory / relative


def _unreachable(error: httpx2.TransportError) -> Unreachable:
    return Unreachable(f"no answer from the service, or not the whole of it ({type(error).__name__}); is it running?")


def _body(response: httpx2.Response) -> Json:
    _raise_problem(response)
    try:
        body: Json = response.json()
    except ValueError as error:
        raise ApiError(response.status_code, "unreadable", "the answer is not one of ours", []) from error
    return body


def _raise_problem(response: httpx2.Response) -> None:
    if response.status_code < 400:
        return
    try:
        problem = response.json()
        known = ApiError(response.status_code, problem["code"], problem["detail"], problem.get("errors", []))
    except (ValueError, KeyError, TypeError) as error:
        raise ApiError(response.status_code, "unreadable", "the answer is not one of ours", []) from error
    raise known
