"""The ways an attempt can stop short of publishing, as exceptions of the pipeline."""

from __future__ import annotations

from typing import Any

from service.requests.endings import Problem

CATEGORIES = {
    "integrity": "input",
    "bad_input": "input",
    "source_refused": "input",
    "diverged": "engine",
    "out_of_memory": "engine",
    "internal": "engine",
    "judge_unfit": "verification",
    "verification_failed": "verification",
    "inconclusive": "verification",
    "void": "verification",
    "verification_error": "verification",
    "bad_answer": "engine",
    "engine_died": "engine",
    "rank_lost": "engine",
    "stalled": "engine",
    "signing_refused": "certificate",
    "signer_unavailable": "certificate",
    "signature_invalid": "certificate",
    "log_key_missing": "certificate",
    "base_moved": "service",
    "store_unavailable": "infrastructure",
    "store_refused": "infrastructure",
    "store_corrupt": "infrastructure",
    "disk_full": "infrastructure",
    "worker_error": "service",
}
"""What kind of thing went wrong, by code: whom to ask."""

LONGEST_MESSAGE = 2_000


def problem(code: str, message: str, *, log_tail: str = "", **extra: Any) -> Problem:
    """A problem with its category. Raises: KeyError for a code that is not listed above."""
    shown = tuple((k, v) for k, v in extra.items() if v is not None)
    return Problem(code, CATEGORIES[code], message[:LONGEST_MESSAGE], shown, log_tail)


class Stopped(Exception):
    """The attempt ends here."""


class Cancelled(Stopped):
    """Somebody asked to cancel; no process of the attempt is left."""


class Paused(Stopped):
    """Somebody asked to pause; no process of the attempt is left, and its step checkpoint waits for it to be resumed."""


class Drained(Stopped):
    """The worker is shutting down; the request goes back unharmed."""


class Failed(Stopped):
    """Another attempt would end the same way."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Rejected(Stopped):
    """This recipe's result will not do, or it has none; that of another recipe, or of other seeds, may."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Died(Stopped):
    """The attempt died of something that another attempt may not meet."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem
