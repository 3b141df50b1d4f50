"""Unlearn requests: make them, follow them, decide about them, and read what was found."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from service.client import events
from service.client.bodies import (
    Amendment,
    Answer,
    Batch,
    BatchRead,
    ComplianceEventRead,
    EventList,
    Extension,
    Hold,
    Notification,
    PlanRead,
    ProjectEventRead,
    Refusal,
    Retry,
    SeqList,
    Shred,
    UnlearnRequestCreate,
    UnlearnRequestRead,
    UnlearnRequestSummary,
)
from service.client.transport import ApiError, Json, Transport, Unreachable, address, passes

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "rejected"})

Status: TypeAlias = Literal[
    "pending_approval", "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled", "rejected"
]
ComplianceEvent: TypeAlias = Answer | Extension | Notification | Refusal


class Requests:
    """Requests that a model forget."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, wanted: UnlearnRequestCreate, *, idempotency_key: str | None = None) -> UnlearnRequestRead:
        """Ask for something to be forgotten. With a key, the same call again is answered with the same request."""
        made: UnlearnRequestRead = self._transport.post("/unlearn-requests", wanted, idempotency_key=idempotency_key)
        return made

    def create_many(self, wanted: Batch, *, idempotency_key: str | None = None) -> BatchRead:
        """Several at once, in this order; `atomic`: all of them or none, else each is made or refused by itself."""
        made: BatchRead = self._transport.post("/unlearn-requests/batch", wanted, idempotency_key=idempotency_key)
        return made

    def validate(self, wanted: UnlearnRequestCreate) -> PlanRead:
        """What a request would do, and when it might be done. Nothing is created."""
        plan: PlanRead = self._transport.post("/unlearn-requests/validate", wanted)
        return plan

    def list(
        self,
        *,
        status: builtins.list[Status] | None = None,
        model_id: str | None = None,
        external_id: str | None = None,
        since: str | None = None,
        before: str | None = None,
        overdue: bool | None = None,
        due_before: str | None = None,
        order: Literal["asc", "desc"] | None = None,
    ) -> Iterator[UnlearnRequestSummary]:
        """Those that match, newest first.

        Args:
            since, before: of `created_at`; the first counts, the second does not.
            overdue: those that are, or are not, past their deadline without an answer.
        """
        times = {"created_at[gte]": since, "created_at[lt]": before}
        asked = {"status": status, "model_id": model_id, "external_id": external_id, "order": order}
        law = {"overdue": overdue, "due_before": due_before}
        return self._transport.pages("/unlearn-requests", **asked, **law, **times)

    def read(self, request_id: str) -> UnlearnRequestRead:
        found: UnlearnRequestRead = self._transport.get(address("unlearn-requests", request_id))
        return found

    def amend(self, request_id: str, wanted: Amendment, *, version: int | None = None) -> UnlearnRequestRead:
        """Change a request. Raises: ApiError: `version_mismatch`, it changed meanwhile.

        Args:
            version: of the reading that the change was decided on; None: as it stands now.
        """
        path = address("unlearn-requests", request_id)
        read = self.read(request_id)["version"] if version is None else version
        changed: UnlearnRequestRead = self._transport.patch(path, wanted, if_match=f'"{read}"')
        return changed

    def cancel(self, request_id: str) -> UnlearnRequestRead:
        """End it; one that runs is stopped first."""
        return self._act(request_id, "cancel")

    def pause(self, request_id: str) -> UnlearnRequestRead:
        """Keep it from running; one that runs leaves a step checkpoint first."""
        return self._act(request_id, "pause")

    def resume(self, request_id: str) -> UnlearnRequestRead:
        """Put it back into the queue."""
        return self._act(request_id, "resume")

    def approve(self, request_id: str, request_digest: str, comment: str | None = None) -> UnlearnRequestRead:
        """Approve it as it was read. Raises: ApiError: it was changed since, or it is the caller's own."""
        return self._act(request_id, "approve", {"request_digest": request_digest} | ({"comment": comment} if comment else {}))

    def reject(self, request_id: str, reason: str) -> UnlearnRequestRead:
        """Refuse to approve it. It has ended then."""
        return self._act(request_id, "reject", {"reason": reason})

    def retry(
        self, request_id: str, different: Retry | None = None, *, idempotency_key: str | None = None
    ) -> UnlearnRequestRead:
        """Take up one that ended without a result; returns the new one."""
        path = address("unlearn-requests", request_id, "retry")
        made: UnlearnRequestRead = self._transport.post(path, different or {}, idempotency_key=idempotency_key)
        return made

    def _act(self, request_id: str, what: str, body: Json | None = None) -> UnlearnRequestRead:
        changed: UnlearnRequestRead = self._transport.post(address("unlearn-requests", request_id, what), body)
        return changed

    # -------------------------------------------------------------------------------------------------------- follow

    def watch(
        self, request_id: str, seen: Callable[[UnlearnRequestRead], None] | None = None, *, poll_seconds: float = 0.4
    ) -> UnlearnRequestRead:
        """Read it again and again until it ends, handing every reading to `seen`; returns the last.

        A run takes hours, and a service may restart meanwhile: once it has answered, it may be away for two minutes.

        Raises:
            ApiError, Unreachable: at the first reading, or nobody has answered for so long.
        """
        heard: float | None = None
        while True:
            try:
                request = self.read(request_id)
            except (ApiError, Unreachable) as error:
                if heard is None or not passes(error) or time.monotonic() - heard > events.PATIENCE_SECONDS:
                    raise
                time.sleep(events.RECONNECT_SECONDS)
                continue
            heard = time.monotonic()
            if seen:
                seen(request)
            if request["status"] in TERMINAL:
                return request
            time.sleep(poll_seconds)

    def events(self, request_id: str) -> EventList:
        """What has happened to it."""
        found: EventList = self._transport.get(address("unlearn-requests", request_id, "events"))
        return found

    def follow(self, request_id: str, *, after: int | None = None) -> Iterator[ProjectEventRead]:
        """What has happened to it, and what happens, until it ends. A stream that breaks off is taken up where it was.

        Args:
            after: id of the last event that is known.

        Raises:
            Unreachable: nobody has answered for two minutes.
        """
        for event in events.stream(self._transport, address("unlearn-requests", request_id, "events"), after):
            yield event
            if event["type"].rpartition(".")[2] in TERMINAL:
                return

    def all_events(self) -> Iterator[ProjectEventRead]:
        """What has happened to all requests, newest first."""
        return self._transport.pages("/events")

    def follow_all(self, *, after: int | None = None) -> Iterator[ProjectEventRead]:
        """What happens to all requests from now on, or after this event; it does not end. Raises: as `follow`."""
        return events.stream(self._transport, "/events", after)

    # --------------------------------------------------------------------------------------------- what was found, and duty

    def report(self, request_id: str) -> Json:
        """The verification report: every check, its bound and verdict (docs/reference/report.md)."""
        found: Json = self._transport.get(address("unlearn-requests", request_id, "report"))
        return found

    def download_report(self, request_id: str, target: Path, *, form: Literal["json", "html", "png"]) -> None:
        """The report as a file to look at."""
        path = address("unlearn-requests", request_id, "report") + f"?format={form}"
        self._transport.download(path, target)

    def download_picture(self, request_id: str, file: str, target: Path) -> None:
        """A picture that the report names."""
        self._transport.download(address("unlearn-requests", request_id, "report", file), target)

    def receipt(self, request_id: str) -> str:
        """Proof that it is in the ledger (C2SP tlog-proof). Raises: ApiError: `not_yet_signed`, for a minute as a rule."""
        return self._transport.text(address("unlearn-requests", request_id, "receipt"))

    def download_dossier(self, request_id: str, target: Path) -> None:
        """Everything about it in one zip: events, proofs, certificates."""
        self._transport.download(address("unlearn-requests", request_id, "dossier"), target)

    def record(self, request_id: str, event: ComplianceEvent) -> ComplianceEventRead:
        """Put on record what was done about it outside: an extension, a refusal, a notification, an answer."""
        made: ComplianceEventRead = self._transport.post(address("unlearn-requests", request_id, "compliance-events"), event)
        return made

    def hold(self, request_id: str, wanted: Hold) -> SeqList:
        """Keep its private data from erasure, or let it go again; returns the entries that are meant."""
        held: SeqList = self._transport.post(address("unlearn-requests", request_id, "legal-hold"), wanted)
        return held

    def shred(self, request_id: str, wanted: Shred) -> SeqList:
        """Erase its private data. There is no way back; the ledger stays whole."""
        gone: SeqList = self._transport.post(address("unlearn-requests", request_id, "shred"), wanted)
        return gone
