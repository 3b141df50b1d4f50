"""Believing the engine: its documents are read, held against the spec and against the bytes, and only then used.

A return code proves nothing. What does not add up is never a pass: no document means that the engine died, a false one that
it may not be trusted.
"""

from __future__ import annotations

import hashlib
import re
import signal
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import ValidationError

from worker.conductor import launch
from worker.conductor.outcomes import Died, Drained, Failed, Rejected, problem
from worker.conductor.planning import Plan
from worker.conductor.supervise import Ended
from worker.contract import Document, Failure, FileEntry, JobDirectory, Manifest, Report, Tier, tree_digest
from worker.verdict import decide, tier_reached

LARGEST_DOCUMENT = 32 << 20
KILLED = re.compile(r"^ *exitcode +: -(\d+) \(pid: \d+\)", re.MULTILINE)
"""A rank in the report of torchrun's `ChildFailedError` that a signal ended."""
D = TypeVar("D", bound=Document)


def require_success(ended: Ended, job: JobDirectory, answer: Path) -> None:
    """Go on only when the stage ended by itself, without a failure, and left its answer.

    Raises:
        Failed: the engine says why, and that it would say so again.
        Rejected: the recipe diverged, which another one may not.
        Died: it hung, fell, ran out of what another try may find, or left no answer.
        Drained: it was stopped with its worker.
    """
    if ended.how == "stalled":
        raise Died(problem("stalled", "the engine was alive but made no progress", log_tail=launch.log_tail(job)))
    if ended.how == "drained":
        raise Drained  # whatever it wrote while it fell: a failure that is real will come again
    if job.failure.exists():
        raise _failure(job)
    if ended.returncode != 0:
        message = f"expected {answer.name} from the engine, its process died with {died_of(ended.returncode)}"
        raise Died(problem("rank_lost", message, log_tail=launch.log_tail(job)))
    if not answer.exists():
        message = f"expected {answer.name} from the engine, it ended without one"
        raise Died(problem("engine_died", message, log_tail=launch.log_tail(job)))


def died_of(returncode: int | None) -> str:
    """A return code as Python's subprocess gives it, in words: negative is the signal that ended the process."""
    if returncode is None or returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {-returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"signal {-returncode}"


def _failure(job: JobDirectory) -> Failed | Rejected | Died:
    failure = read(Failure, job.failure, job)
    code, message = failure.code, failure.message.replace(str(job.root), "<job>")
    tail = launch.log_tail(job)
    if code == "internal" and (killed := killed_rank(tail)):
        code, message = "rank_lost", f"a rank died with {killed}; of another: {message}"
    said = problem(code, message, log_tail=tail, step=failure.step, loss=failure.loss)
    if code == "diverged":
        return Rejected(said)
    # "internal" names no cause; it may be a peer that the kernel killed for memory, so it has its tries like any crash
    again = failure.retryable or code in ("internal", "rank_lost")
    return Died(said) if again else Failed(said)


def killed_rank(log_tail: str) -> str | None:
    """The signal that ended a rank, in words, if torchrun's report at the end of the log names one.

    Not SIGTERM: that is how torchrun itself ends the ranks that are left. A rank whose peer was killed sees only a broken
    connection, and may have written a failure of its own before it was ended.
    """
    signals = [int(number) for number in KILLED.findall(log_tail)]
    return next((died_of(-number) for number in signals if number != signal.SIGTERM), None)


def read(kind: type[D], path: Path, job: JobDirectory) -> D:
    """A document of the engine. Raises: Failed (`bad_answer`)."""
    if path.is_symlink() or path.stat().st_size > LARGEST_DOCUMENT:
        raise _bad(job, f"{path.name} is a link, or larger than {LARGEST_DOCUMENT} bytes")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _bad(job, f"{path.name} is no {kind.__name__}: {error.error_count()} problems") from error


def read_manifest(job: JobDirectory, plan: Plan) -> Manifest:
    """The unlearning stage's answer, every file hashed again.

    Raises:
        Failed: it is of another spec (`bad_answer`), or the files are not as it says (`integrity`).
        Died: the loop did not run to its end.
    """
    manifest = read(Manifest, job.manifest, job)
    if manifest.spec_digest != plan.spec_sha256:
        raise _bad(job, "the manifest answers another spec")
    if not manifest.complete:
        done = f"{manifest.iterations_completed} of {manifest.iterations_total}"
        raise Died(problem("engine_died", f"the loop ended after {done} iterations", log_tail=launch.log_tail(job)))
    require_files(job.out, manifest.files)
    return manifest


def read_report(job: JobDirectory, plan: Plan, manifest: Manifest) -> Report:
    """The verification stage's answer, with its verdict and its tier decided again from its findings.

    Raises:
        Failed: it speaks of another spec, policy or candidate, or its verdict does not follow from its findings, or it claims
            a higher tier than they earn (`bad_answer`); a picture is not as it says (`integrity`).
    """
    report = read(Report, job.report, job)
    if report.spec_digest != plan.spec_sha256 or report.policy_digest != plan.policy_sha256:
        raise _bad(job, "the report answers another spec or policy")
    if report.candidate_digest != tree_digest(manifest.files):
        raise _bad(job, "the report is about another candidate than the manifest")
    # ERROR is the one verdict that may be worse than the findings: a check that raised leaves none
    earned = decide(report.findings, plan.spec)
    if report.verdict not in (earned, "ERROR"):
        raise _bad(job, f"the report says {report.verdict}, its findings say {earned}")
    reached = tier_reached(report.findings, plan.spec) if report.verdict == "PASS" else None
    if _height(report.tier) > _height(reached):
        raise _bad(job, f"the report claims tier {report.tier}, its findings earn {reached or 'none'}")
    require_files(job.evidence, report.evidence, whole=False)
    return report


def _height(tier: Tier | None) -> int:
    return -1 if tier is None else get_args(Tier).index(tier)


def require_files(folder: Path, files: tuple[FileEntry, ...], *, whole: bool = True) -> None:
    """Every named file is there, as long and with the digest that is said.

    Args:
        whole: nothing else may be there, and no links.

    Raises:
        Failed: `integrity`.
    """
    if len({f.path for f in files}) != len(files):
        raise Failed(problem("integrity", f"{folder.name}/ is said to hold a file twice"))
    for entry in files:
        path = folder / entry.path
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise Failed(problem("integrity", f"{folder.name}/{entry.path} is named by the engine and is no regular file"))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256 or path.stat().st_size != entry.size:
            raise Failed(problem("integrity", f"{folder.name}/{entry.path} is not what the engine says it is"))
    if not whole:
        return
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if there != {f.path for f in files}:
        raise Failed(problem("integrity", f"{folder.name}/ holds files that the manifest does not name"))


def _bad(job: JobDirectory, message: str) -> Failed:
    return Failed(problem("bad_answer", message, log_tail=launch.log_tail(job)))
