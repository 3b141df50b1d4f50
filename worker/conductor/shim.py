"""Between a worker and the engine it starts: `python -m worker.conductor.shim WORKER_PID COMMAND…`.

Asks the kernel to kill this process when the worker dies, makes sure that the worker has not died already, then becomes the
command. A `preexec_fn` could do the same but may deadlock in a process with threads, and a worker has some.

PDEATHSIG follows the *thread* that forked: start it from a thread that lives as long as the run. It survives exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Never returns: becomes the command, or exits with 1 when the worker is gone."""
    worker, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(worker):  # it died between its fork and our prctl: nobody would ever kill us
        raise SystemExit(1)
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
