"""The life of an unlearn request: one dict of legal moves. Pure; the database enforces the same dict with triggers.

    queued -> running -> succeeded
      |  ^      |  \\--> failed
      |  |      |  (lease lost, drained: back to queued)
      |  +------+
      v         v
    cancelled <- cancelling

A terminal request never changes: retrying makes a new request. There is no "expired": a legal duty does not lapse.
"""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Phase = Literal["staging", "unlearning", "verifying", "certifying", "publishing"]

STATUSES: tuple[Status, ...] = get_args(Status)
PHASES: tuple[Phase, ...] = get_args(Phase)

MOVES: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"succeeded", "failed", "queued", "cancelling", "cancelled"}),
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

TERMINAL: frozenset[Status] = frozenset(s for s, onward in MOVES.items() if not onward)
PENDING: frozenset[Status] = frozenset(STATUSES) - TERMINAL
"""Not yet ended: such a request holds its classes on its model."""
HOLDS_LINEAGE: frozenset[Status] = frozenset({"running", "cancelling"})
"""A worker may be at work: no other request of the model may be claimed."""


def after_cancel(status: Status) -> Status | None:
    """Where a cancellation takes a request; None when it has already ended otherwise.

    A queued request has no worker to wait for. A running one is `cancelling` until its worker says that the processes are
    gone. Cancelling twice is the same wish.
    """
    match status:
        case "queued":
            return "cancelled"
        case "running" | "cancelling":
            return "cancelling"
        case "cancelled":
            return "cancelled"
        case _:
            return None


def after_lost_lease(status: Status, *, attempts: int, max_attempts: int) -> Status:
    """Where a request goes whose worker fell silent.

    Args:
        attempts: attempts counted so far, the lost one included.
    """
    if status == "cancelling":
        return "cancelled"
    return "failed" if attempts >= max_attempts else "queued"
