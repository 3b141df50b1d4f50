"""The engine's command line, one process a rank.

    [torchrun --nproc-per-node N -m] worker.engine unlearn DIR
    [torchrun --nproc-per-node N -m] worker.engine verify DIR
    python -m worker.engine catalogue

Exit status: 0 with an answer in the job directory, 75 after a stop that left a step checkpoint, 1 with `failure.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from worker.contract import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, JobDirectory
from worker.engine.waiting import WAITING

PR_SET_PDEATHSIG = 1

os.environ.update({**WAITING, **os.environ})  # before torch is loaded


def die_with_parent() -> None:
    """Ask Linux to kill this rank when its launcher dies; torchrun starts ranks in sessions of their own.

    Elsewhere this does nothing: there the launcher's own cleanup has to do.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was in force
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def importing() -> Iterator[None]:
    """Without the garbage collector, and what was imported is never looked through again. Not where it was imported before.

    Modules stay. Going through the hundreds of thousands of objects that they consist of, again and again while there are ever
    more of them, took a fifth of an engine's start.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(arguments: list[str] | None = None) -> int:
    """Run one stage; the exit status."""
    parser = argparse.ArgumentParser(prog="worker.engine", description="Unlearn, verify, or print the catalogue.")
    parser.add_argument("stage", choices=("unlearn", "verify", "catalogue"))
    parser.add_argument("directory", nargs="?", type=Path, help="the job directory")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--checkpoint-iterations", type=int, default=10, help="step checkpoint every so many iterations")
    parser.add_argument("--checkpoint-seconds", type=float, default=2.0, help="or after so many seconds")
    options = parser.parse_args(arguments)
    if options.stage == "catalogue":
        with importing():
            from worker.engine.catalogue import as_text

        sys.stdout.write(as_text())
        return EXIT_DONE
    if options.directory is None:
        parser.error("the job directory is missing")
    return run_stage(JobDirectory(options.directory), options)


def run_stage(job: JobDirectory, options: argparse.Namespace) -> int:
    """One stage with its failure written down: the full traceback goes to stderr, one sentence to `failure.json`."""
    from worker.engine import spans
    from worker.engine.errors import Stopped

    if os.environ.get("RANK", "0") == "0":
        job.failure.unlink(missing_ok=True)
    # The group is left last: that is when the other ranks see this one vanish, and by then its reason must be written down.
    with ExitStack() as last:
        try:
            with spans.told(job.events, f"engine.{options.stage}"):
                unlearn(job, options, last) if options.stage == "unlearn" else verify(job, options, last)
        except Stopped:
            return EXIT_STOPPED
        except BaseException as error:
            traceback.print_exc()
            leave_failure(job, error)
            return EXIT_FAILED
    return EXIT_DONE


def leave_failure(job: JobDirectory, error: BaseException) -> None:
    """Write `failure.json`, on any rank: the first may be the one that died.

    The rank that knows the reason fails first; the others only see it vanish, and must not overwrite its words. Ranks that
    fail together each write a file of their own, whole, and the last to be renamed stays.
    """
    from worker.engine.errors import failure_of
    from worker.engine.files import write_document

    if job.failure.exists():
        return
    mine = job.failure.with_name(f".failure.{os.environ.get('RANK', '0')}.json")
    write_document(mine, failure_of(error, world=int(os.environ.get("WORLD_SIZE", "1"))))
    mine.replace(job.failure)


def unlearn(job: JobDirectory, options: argparse.Namespace, last: ExitStack) -> None:
    """The unlearning stage on this rank; `last` gets what is to be done after its failure, if any, is written down.

    SIGTERM asks: the loop answers between two iterations, on all ranks at the same.
    """
    stop = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    with importing():
        from worker.engine import checkpoint, distributed
        from worker.engine import unlearn as stage

    ranks = distributed.start(options.device)
    last.callback(distributed.close, ranks)
    cadence = checkpoint.Cadence(options.checkpoint_iterations, options.checkpoint_seconds)
    stage.run(job, ranks, cadence=cadence, stop_asked=stop.is_set)


def verify(job: JobDirectory, options: argparse.Namespace, last: ExitStack) -> None:
    """The verification stage on this rank; `last` as in `unlearn`. It has nothing to resume from: SIGTERM simply ends it."""
    with importing():
        from worker.engine import distributed
        from worker.engine import verify as stage

    ranks = distributed.start(options.device)
    last.callback(distributed.close, ranks)
    stage.run(job, ranks)


if __name__ == "__main__":
    die_with_parent()  # before torch is imported: that takes seconds in which a launcher may die
    sys.exit(main())
