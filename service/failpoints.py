"""Failures on demand, for tests of what a full disk or a refusing store does to a run.

Off unless the setting `allow_failpoints` is on; only then is `EXPUNGE_FAILPOINTS` read:

    EXPUNGE_FAILPOINTS="store.write=full*2,job.write=full"

A point's name, what happens there, and how often (for ever where nothing is said), counted in each process. Points:
`store.write`, `store.read`, `store.publish`, `store.delete` (any kind of store), `job.write` (a worker's job directory),
`publish.commit` and `publish.committed` (before and after the commit that publishes a result).
What happens: `full`, `read_only`, `refused`, `away`, as the operating system would say it; `pause:SECONDS`; `die`, the process
ends there as if killed.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections import Counter

from service.config import get_settings

VARIABLE = "EXPUNGE_FAILPOINTS"
POINTS = frozenset(
    {"store.write", "store.read", "store.publish", "store.delete", "job.write", "publish.commit", "publish.committed"}
)
ERRORS = {"full": errno.ENOSPC, "read_only": errno.EROFS, "refused": errno.EACCES, "away": errno.ETIMEDOUT}

log = logging.getLogger("expunge.failpoints")
_hits: Counter[str] = Counter()
_turn = threading.Lock()


class BadFailpoint(ValueError):
    """The variable names a point or a failure that does not exist."""


def hit(point: str) -> None:
    """Fail here, if that is asked for.

    Raises:
        OSError: the failure.
        BadFailpoint: allowed, and not to be understood.
    """
    if not get_settings().allow_failpoints:
        return
    for rule in filter(None, os.environ.get(VARIABLE, "").replace(" ", "").split(",")):
        name, _, what = rule.partition("=")
        if name not in POINTS:
            raise BadFailpoint(f"expected one of {', '.join(sorted(POINTS))}, got {name!r}")
        failure, _, times = what.partition("*")
        if name == point and _is_due(rule, times):
            log.warning("failpoint.hit", extra={"point": point, "failure": failure})
            _fail(failure)


def reset() -> None:
    """Count from nothing again."""
    with _turn:
        _hits.clear()


def _is_due(rule: str, times: str) -> bool:
    with _turn:
        _hits[rule] += 1
        return not times or _hits[rule] <= int(times)


def _fail(failure: str) -> None:
    kind, _, amount = failure.partition(":")
    if kind == "pause":
        time.sleep(float(amount))
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind in ERRORS:
        raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]))
    else:
        raise BadFailpoint(f"expected {', '.join(ERRORS)}, pause:SECONDS or die, got {failure!r}")
