"""The life of an unlearn request: one dict of legal moves. Pure; the database enforces the same dict with triggers.

    pending_approval -> rejected
    |      |    ^
    |      v    |  (what is said of it changes)
    |     queued -> running -> succeeded
    |     |  |  ^   |  |  \\--> failed
    |     |  |  |   |  |  (lease lost, drained: back to queued)
    |     |  |  +---+  |
    |     |  v  ^      v
    |     |  paused <- pausing
    v     v  v         v
    cancelled <-------- cancelling

A terminal request never changes: retrying makes a new request that supersedes it. There is no "expired": a legal duty does not
lapse, and a pause stops no law's clock.

A paused request, and one that waits for approval, keeps its place in its lineage's queue. What came after it was judged, and
its verification policy chosen, as if it had been carried out by then; its own policy knows nothing of what came after. Letting
others pass would publish results that nobody measured for all that was forgotten. Nobody is locked out for ever: deciding,
resuming and cancelling wait for no other request, and those that wait say for whom (`status_reason`).

Run as a module it prints `docs/reference/states.md`.
"""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal[
    "pending_approval", "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled", "rejected"
]
Phase = Literal["staging", "unlearning", "verifying", "certifying", "publishing"]
Priority = Literal["urgent", "standard", "bulk"]
Wish = Literal["cancel", "pause"]
"""What somebody wants of a request that a worker holds."""

STATUSES: tuple[Status, ...] = get_args(Status)
PHASES: tuple[Phase, ...] = get_args(Phase)
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""Most urgent first."""

WHY: dict[Status, dict[Status, str]] = {
    "pending_approval": {
        "queued": "as many others as it needs have approved it: `POST …/approve`",
        "rejected": "`POST …/reject`",
        "cancelled": "`POST …/cancel`",
    },
    "queued": {
        "running": "a worker claims it: it is due, the lineage is free, the worker serves its GPU class",
        "paused": "`POST …/pause`",
        "pending_approval": "`external_id` or `metadata` was changed: its approvals were for what was said before",
        "cancelled": "`POST …/cancel`",
        "failed": "what it needs is gone before any worker took it",
    },
    "running": {
        "succeeded": "the saved result passed the gate and was signed; certificate, entries and version are one transaction",
        "failed": "verification failed with no recipe left, its attempts are used up, or another would end the same way",
        "queued": "its worker was lost or is shutting down, or the next recipe is to be tried",
        "pausing": "`POST …/pause`: its worker is asked to stop",
        "cancelling": "`POST …/cancel`: its worker is asked to stop",
        "cancelled": "it was cancelled, and its worker fell silent",
    },
    "pausing": {
        "paused": "its step checkpoint is saved, its processes are gone and the GPU is free; the attempt is not charged",
        "succeeded": "the result had been verified already: only the signature was missing, which needs no GPU",
        "failed": "the run ended for good before it could stop",
        "cancelling": "`POST …/cancel`",
        "cancelled": "it was cancelled, and its worker fell silent",
    },
    "paused": {
        "queued": "`POST …/resume`: it has kept its place in its lineage",
        "pending_approval": "`POST …/resume` after `external_id` or `metadata` was changed: it needs its approvals anew",
        "cancelled": "`POST …/cancel`",
    },
    "cancelling": {"cancelled": "no process of it is left"},
    "succeeded": {},
    "failed": {},
    "cancelled": {},
    "rejected": {},
}
"""Every legal move, and what makes it."""
MOVES: dict[Status, frozenset[Status]] = {start: frozenset(ends) for start, ends in WHY.items()}

TERMINAL: frozenset[Status] = frozenset(s for s, onward in MOVES.items() if not onward)
PENDING: frozenset[Status] = frozenset(STATUSES) - TERMINAL
"""Not yet ended: such a request holds its classes on its model."""
HOLDS_LINEAGE: frozenset[Status] = frozenset({"running", "pausing", "cancelling"})
"""A worker may be at work: no other request of the model may be claimed."""
KEEPS_PLACE: frozenset[Status] = frozenset({"pending_approval", "queued", "paused"})
"""No worker is at work: younger requests of the model wait for it all the same."""
MAY_PUBLISH: frozenset[Status] = frozenset({"running", "pausing"})
RETRIABLE: frozenset[Status] = frozenset({"failed", "cancelled", "rejected"})
"""Ended without a result: another request may take up the same wish."""


def after_cancel(status: Status) -> Status | None:
    """Where a cancellation takes a request; None when it has already ended otherwise.

    A request that waits has no worker to wait for. A running one is `cancelling` until its worker says that the processes are
    gone. Cancelling twice is the same wish.
    """
    match status:
        case "pending_approval" | "queued" | "paused" | "cancelled":
            return "cancelled"
        case "running" | "pausing" | "cancelling":
            return "cancelling"
        case _:
            return None


def after_pause(status: Status) -> Status | None:
    """Where a pause takes a request; None when it has ended or is being cancelled. Pausing twice is the same wish."""
    match status:
        case "queued" | "paused":
            return "paused"
        case "running" | "pausing":
            return "pausing"
        case _:
            return None


def after_resume(status: Status) -> Status | None:
    """Where resuming takes a request; None when it cannot be resumed, or not yet. Resuming twice is the same wish.

    One that is still `pausing` cannot be: its worker may have begun to stop.
    """
    match status:
        case "paused":
            return "queued"
        case "queued" | "running":
            return status
        case _:
            return None


def at_rest(status: Status) -> Status:
    """Where a request goes whose worker lets go of it before its end."""
    return "paused" if status == "pausing" else "queued"


def after_lost_lease(status: Status, *, attempts: int, max_attempts: int) -> Status:
    """Where a request goes whose worker fell silent.

    Args:
        attempts: attempts counted so far, the lost one included.
    """
    if status == "cancelling":
        return "cancelled"
    return "failed" if attempts >= max_attempts else at_rest(status)


def reference() -> str:
    """The state machine, as `docs/reference/states.md` holds it."""
    moves = [(start, end, why) for start, ends in WHY.items() for end, why in ends.items()]
    return "\n".join(
        [
            "# States of a request",
            "",
            "<!-- printed by `python -m service.requests.lifecycle`; do not edit -->",
            "",
            "`status` is a closed set. This page is the dict of moves in `service/requests/lifecycle.py`, and triggers of the",
            "database refuse every other move. A status in bold is terminal: such a request never changes, and `POST …/retry`",
            "makes a new one that supersedes it.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            "  [*] --> queued",
            "  [*] --> pending_approval",
            *(f"  {start} --> {end}" for start, end, _ in moves),
            *(f"  {status} --> [*]" for status in STATUSES if status in TERMINAL),
            "```",
            "",
            "| from | to | what makes the move |",
            "|---|---|---|",
            "| | `queued` | `POST /unlearn-requests`, or `POST …/retry` on one that ended without a result |",
            "| | `pending_approval` | the same, where others must approve it first: see [approvals](approvals.md) |",
            *(f"| `{start}` | {_shown(end)} | {why} |" for start, end, why in moves),
            "",
            "A paused request, and one that waits for approval, keeps its place: younger requests of its model wait for it,",
            "for they were judged as if it had been carried out by then. They say so in `status_reason`; decide about it to",
            "let them go on. No law's clock stops.",
            "",
            "A cancellation and a publication race for one row: whichever commits first wins. A pause that comes when the",
            "result is being certified lets it be published, for that needs no GPU.",
            "",
        ]
    )


def _shown(status: Status) -> str:
    return f"**`{status}`**" if status in TERMINAL else f"`{status}`"


if __name__ == "__main__":
    print(reference(), end="")
