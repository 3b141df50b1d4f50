"""The audit ledger: its entries, proofs and tiles, the questions that auditors ask, and what may be erased of it."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from service.client.bodies import (
    ConsistencyProof,
    EntryRead,
    InclusionProof,
    LogStatus,
    QuestionRead,
    RedactionCreate,
    RedactionRead,
    Rows,
    SeqList,
    Shred,
)
from service.client.transport import Transport, address


class EntryFilters(TypedDict, total=False):
    """Which entries; all that are given have to hold."""

    model_id: str
    request_id: str
    actor: str
    action: builtins.list[str]
    """Any of these; a `*` at the end takes all that begin so."""
    outcome: Literal["succeeded", "failed", "denied"]
    since: str
    before: str
    tenant: str
    type: str
    """Actions that begin so: `run`, `certificate.`"""
    model_digest: str
    certificate: str
    """Id of a checkpoint: entries of the request that it came from."""
    state: str
    """Of the requests that entries are about, as the four that follow."""
    jurisdiction: str
    overdue: bool
    ground: str


class QuestionFilters(TypedDict, total=False):
    """What a question needs or takes; `questions()` says which."""

    request_id: str
    model_id: str
    jurisdiction: str
    year: int


ACCEPT = {"jsonl": "application/jsonl", "csv": "text/csv"}
WIRE = {"since": "at[gte]", "before": "at[lt]"}


class Ledger:
    """What was done, by whom, and the proof of it. Reading it is recorded."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def entries(
        self, *, order: Literal["asc", "desc"] = "asc", private: bool = False, **filters: Unpack[EntryFilters]
    ) -> Iterator[EntryRead]:
        """Those that match.

        Args:
            private: open sealed payloads; the ledger says who did.
        """
        query = _wire(filters) | {"order": order, "include": "private" if private else None}
        return self._transport.pages("/audit/entries", **query)

    def read(self, seq: int) -> EntryRead:
        found: EntryRead = self._transport.get(address("audit", "entries", seq))
        return found

    def export(self, *, form: Literal["jsonl", "csv"] = "jsonl", **filters: Unpack[EntryFilters]) -> Iterator[str]:
        """The lines of all that match, oldest first, as they are read."""
        return self._transport.stream_lines("/audit/export", headers={"Accept": ACCEPT[form]}, **_wire(filters))

    def download(self, target: Path) -> None:
        """The whole ledger as a tar that `expunge verify ledger` reads: C2SP tiles, entries, checkpoints, keys."""
        self._transport.download("/audit/export.tar", target)

    def status(self) -> LogStatus:
        """How far it has been signed, witnessed and time-stamped, and what is wrong."""
        found: LogStatus = self._transport.get("/audit/status")
        return found

    def checkpoint(self) -> str:
        """The newest signed checkpoint, a C2SP signed note."""
        return self._transport.text("/audit/checkpoint")

    def policy(self) -> str:
        """The log's keys and witnesses: whom a verifier has to trust. Keep it from the day that you trust it."""
        return self._transport.text("/audit/policy")

    def inclusion(self, seq: int, *, size: int | None = None) -> InclusionProof:
        """Proof that an entry is in the tree of this size; default: the newest that is signed."""
        path = "/audit/proof/inclusion"
        found: InclusionProof = self._transport.get(path, headers={"Accept": "application/json"}, seq=seq, size=size)
        return found

    def consistency(self, first: int, second: int | None = None) -> ConsistencyProof:
        """Proof that the tree of one size is the beginning of a larger one; default: the newest that is signed."""
        sizes: dict[str, Any] = {"from": first, "to": second}
        found: ConsistencyProof = self._transport.get("/audit/proof/consistency", **sizes)
        return found

    def tile(self, level: int, path: str) -> bytes:
        """A tile of hashes, by C2SP tlog-tiles: `x001/234`, or `000.p/7` of a partial one."""
        return self._transport.content(f"/audit/tile/{level}/{path}")

    def bundle(self, path: str) -> bytes:
        """A bundle of entries, by C2SP tlog-tiles."""
        return self._transport.content(f"/audit/tile/entries/{path}")

    # ------------------------------------------------------------------------------------------------------- questions

    def questions(self) -> builtins.list[QuestionRead]:
        """What auditors ask."""
        found: builtins.list[QuestionRead] = self._transport.get("/audit/questions")
        return found

    def ask(self, name: str, **filters: Unpack[QuestionFilters]) -> Rows:
        found: Rows = self._transport.get(address("audit", "questions", name), **filters)
        return found

    def ask_as(self, form: Literal["csv", "jsonl"], name: str, **filters: Unpack[QuestionFilters]) -> Iterator[str]:
        """The same as lines."""
        return self._transport.stream_lines(address("audit", "questions", name), format=form, **filters)

    def reports(self) -> builtins.list[QuestionRead]:
        """What is reported: deadlines, annual counts, access, retention."""
        found: builtins.list[QuestionRead] = self._transport.get("/audit/reports")
        return found

    def report(self, name: str, **filters: Unpack[QuestionFilters]) -> Rows:
        found: Rows = self._transport.get(address("audit", "reports", name), **filters)
        return found

    def report_as(self, form: Literal["csv", "jsonl"], name: str, **filters: Unpack[QuestionFilters]) -> Iterator[str]:
        """The same as lines."""
        return self._transport.stream_lines(address("audit", "reports", name), format=form, **filters)

    # --------------------------------------------------------------------------------------------------------- erasure

    def shred(self, seq: int, wanted: Shred) -> SeqList:
        """Erase an entry's private data. There is no way back; the ledger stays whole."""
        gone: SeqList = self._transport.post(address("audit", "entries", seq, "shred"), wanted)
        return gone

    def redactions(self) -> Iterator[RedactionRead]:
        """All that were asked for, newest first."""
        return self._transport.pages("/audit/redactions")

    def redact(self, wanted: RedactionCreate) -> RedactionRead:
        """Ask that an entry's text be taken out; it is, once somebody else approves. Its hash stays."""
        made: RedactionRead = self._transport.post("/audit/redactions", wanted)
        return made

    def approve_redaction(self, redaction_id: str) -> RedactionRead:
        """Take out what somebody else has asked for."""
        made: RedactionRead = self._transport.post(address("audit", "redactions", redaction_id, "approve"))
        return made


def _wire(filters: EntryFilters) -> dict[str, Any]:
    return {WIRE.get(name, name): value for name, value in filters.items()}
