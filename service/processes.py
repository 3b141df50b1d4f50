"""Children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "EXPUNGE_SUPERVISOR_PID"
"""Set by a supervisor for its children: the process they must not outlive."""
PR_SET_PDEATHSIG = 1


def die_with_supervisor() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies, if there is one. Survives an exec.

    The supervisor may have died between starting us and this call; then its pid is no longer our parent's, and we leave.
    """
    parent = os.environ.get(PARENT)
    if parent:
        die_with(int(parent))


def die_with(parent: int) -> None:
    """Ask the kernel for SIGTERM when this process's parent dies. Raises: SystemExit: it has died already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the supervisor is gone")
