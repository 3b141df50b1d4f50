"""`expunge verify-model DIR`: run the gate again on a published checkpoint, by anyone, whoever published it.

With the certificate's seed, policy, data and original it measures what was measured before publication, and finds the same.
The engine runs as a child, on a job directory that is gone afterwards. Nothing is written beside the checkpoint.

Exit status: 0 PASS, 1 FAIL, 2 a mistake in how it was asked, 3 INCONCLUSIVE, 4 VOID or ERROR.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from service.requests.leases import Lease
from worker.conductor import launch
from worker.conductor.answers import read_report, require_success
from worker.conductor.comparison import STATUS, Answer, sentences
from worker.conductor.dossier import Dossier, Folder, assemble
from worker.conductor.outcomes import Died, Failed
from worker.conductor.planning import Plan, Source
from worker.conductor.supervise import Ended
from worker.conductor.wanted import REQUEST, Misused, Undecidable, Unsound, Wanted, parser
from worker.contract import Environment, JobDirectory, Manifest, document_digest

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    options = parser().parse_args(arguments)
    try:
        answer = verify_model(Wanted.of(options), judges=options.judges, out=options.out)
    except Misused as error:
        print(f"expunge: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"expunge: cannot read or write what was named: {error}", file=sys.stderr)
        return USAGE
    except Exception:  # an exit status of 1 would say FAIL, and this says nothing of the model
        traceback.print_exc(file=sys.stderr)
        return STATUS["ERROR"]
    print(json.dumps(answer.as_json()) if options.json else sentences(answer))
    return answer.status


def verify_model(
    wanted: Wanted, *, judges: Path | None = None, out: Path | None = None, command: launch.Command | None = None
) -> Answer:
    """Verify a published checkpoint.

    Args:
        judges: a folder of judges that earlier runs trained; new ones are kept there.
        out: where report, pictures and the engine's log are left.
        command: what runs the engine.

    Raises:
        Misused: what was asked for cannot be meant.
    """
    try:
        dossier = assemble(wanted)
    except Undecidable as error:
        return Answer("INCONCLUSIVE", str(error))
    except Unsound as error:
        return Answer("ERROR", str(error))
    home = Path(tempfile.mkdtemp(prefix="expunge-verify-"))
    try:
        return _verified(dossier, JobDirectory(home / "job"), judges, out, command or engine)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _verified(dossier: Dossier, job: JobDirectory, judges: Path | None, out: Path | None, command: launch.Command) -> Answer:
    manifest = stage(dossier, job, judges)
    try:
        returncode = run_engine(command("verify", job, dossier.spec.ranks), job, ranks=dossier.spec.ranks)
        require_success(Ended("exited", returncode), job, job.report)
        report = read_report(job, _plan(dossier), manifest)
    except (Failed, Died) as error:
        return Answer("ERROR", error.problem.message, dossier)
    finally:
        if out is not None:
            keep(job, out)
    return Answer(report.verdict, report.summary, dossier, report)


# ---------------------------------------------------------------------------------------------------- the job directory


def stage(dossier: Dossier, job: JobDirectory, judges: Path | None) -> Manifest:
    """Lay everything out as an unlearning stage would have left it; what it would have said."""
    job.root.mkdir(parents=True)
    _bring(dossier.candidate, job.out)
    _bring(dossier.original, job.original)
    if dossier.parent.digest == dossier.original.digest:
        job.base.symlink_to(job.original.name, target_is_directory=True)
    else:
        _bring(dossier.parent, job.base)
    _bring(dossier.data, job.data, link=True)
    if dossier.reference is not None:
        _bring(dossier.reference, job.reference)
    if judges is not None:
        judges.mkdir(parents=True, exist_ok=True)
        job.judges.symlink_to(judges.resolve(), target_is_directory=True)
    nothing = Environment(code_version="", python=platform.python_version(), torch="", device="", ranks=1, threads=1)
    manifest = Manifest(
        spec_digest=document_digest(dossier.spec),
        files=dossier.candidate.entries,
        effective_params={},
        iterations_completed=0,
        iterations_total=0,
        seconds_prepare=0,
        seconds_unlearn=0,
        peak_memory_mb=0,
        environment=nothing,
    )
    job.manifest.write_text(manifest.model_dump_json())
    job.spec.write_text(dossier.spec.model_dump_json())
    return manifest


def _bring(source: Folder, target: Path, *, link: bool = False) -> None:
    """Copy a folder's files; or link it, for data may be large, where it holds nothing else. The engine hashes them again."""
    if link and source.whole:
        target.symlink_to(source.path, target_is_directory=True)
        return
    for entry in source.entries:
        place = target / entry.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / entry.path, place)


def _plan(dossier: Dossier) -> Plan:
    """What `read_report` holds the engine's answer against."""
    spec = dossier.spec
    base, original, data = (Source(REQUEST, d, None, ()) for d in (spec.base_digest, spec.original_digest, spec.dataset.digest))
    return Plan(spec, spec.method, REQUEST, 0, base, original, data)


# ----------------------------------------------------------------------------------------------------------- the engine


def engine(stage: launch.Stage, job: JobDirectory, ranks: int) -> list[str]:
    """One rank needs no agent."""
    if ranks > 1:
        return launch.torchrun(stage, job, ranks)
    return [sys.executable, "-m", "worker.engine", stage, str(job.root)]


def run_engine(command: list[str], job: JobDirectory, *, ranks: int) -> int:
    """Run it to its end; the exit status. It dies with this process, and with an interrupt."""
    process = launch.start(command, job, Lease(f"{REQUEST}-{os.getpid()}", 0, REQUEST), ranks=ranks)
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: its number is the group's
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        raise


def keep(job: JobDirectory, out: Path) -> None:
    """Copy what people may want to look at."""
    out.mkdir(parents=True, exist_ok=True)
    for path in (job.report, job.failure, job.root / launch.LOG_NAME):
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    if job.evidence.is_dir():
        shutil.copytree(job.evidence, out / job.evidence.name, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
