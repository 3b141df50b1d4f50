"""Asking witnesses for cosignatures: the client of C2SP tlog-witness. A witness that fails is a line in the log, no more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from service.audit import notes
from service.verifier.note import Key, Malformed, Note, Policy, Refused, number

log = logging.getLogger("expunge.notary")

SECONDS = 10.0
MOST_BYTES = 65_536
SIZE = "text/x.tlog.size"
TRIES = 3
"""A first call may learn the witness's size, a second may lose a race to another worker of ours."""

Prove = Callable[[int], Sequence[bytes]]
"""A consistency proof from a size to that of the checkpoint."""


@dataclass
class Witnesses:
    """Those of a policy that have a URL, and the size that each of them has seen."""

    http: httpx2.Client
    seen: dict[str, int] = field(default_factory=dict)

    def cosign(self, policy: Policy, note: str, size: int, prove: Prove) -> str:
        """The note with the cosignatures that could be had."""
        for name, url in policy.urls.items():
            key = policy.witnesses[name]
            try:
                note += self._ask(key, url, note, size, prove)
            except (httpx2.HTTPError, httpx2.InvalidURL, Malformed, Refused) as error:
                log.warning("witness.failed", extra={"witness": key.name, "kind": type(error).__name__, "why": str(error)})
        return note

    def _ask(self, key: Key, url: str, note: str, size: int, prove: Prove) -> str:
        for _ in range(TRIES):
            old = self.seen.get(str(key), 0)
            if old > size:
                log.critical("witness.ahead", extra={"witness": key.name, "seen": old, "ours": size})
                return ""
            status, kind, body = self._post(url, notes.add_checkpoint(old, prove(old), note))
            if status == 409 and kind == SIZE:
                self.seen[str(key)] = number(body.removesuffix("\n"))
                continue
            if status != 200:
                level = logging.CRITICAL if status == 422 else logging.WARNING  # 422: to this witness, history was rewritten
                log.log(level, "witness.refused", extra={"witness": key.name, "status": status})
                return ""
            lines = _lines(key, note, body)
            self.seen[str(key)] = size
            return lines
        log.warning("witness.refused", extra={"witness": key.name, "status": 409})
        return ""

    def _post(self, url: str, body: str) -> tuple[int, str, str]:
        """Status, media type and at most 64 KiB of text: a witness is a stranger."""
        read = bytearray()
        address = f"{url.rstrip('/')}/add-checkpoint"
        with self.http.stream("POST", address, content=body.encode(), timeout=SECONDS) as answer:
            for chunk in answer.iter_bytes(4096):
                read += chunk
                if len(read) > MOST_BYTES:
                    raise Malformed("the witness's answer is too long")
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()
            return answer.status_code, kind, read.decode("utf-8", "replace")


def _lines(key: Key, note: str, body: str) -> str:
    """The cosignature that this witness owes, checked; whatever else it sent is left out. Raises: Malformed, Refused."""
    text = Note.parse(note).text
    kept = ""
    for line, (name, told, signature) in zip(body.splitlines(), Note.parse(f"{text}\n{body}").signatures, strict=True):
        if (name, told) == (key.name, key.id):
            if not key.signed(text, signature):
                raise Refused(f"the cosignature of {key.name} has no time")
            kept = f"{line}\n"
    if not kept:
        raise Refused(f"the answer holds no cosignature of {key.name}")
    return kept
