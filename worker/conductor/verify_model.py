"""`expunge verify-model DIR`: run the gate again on a published checkpoint, by anyone, whoever published it.

With the certificate's seed, policy, data and original it measures what was measured before publication, and finds the same.
The engine runs as a child, on a job directory that is gone afterwards. Nothing is written beside the checkpoint.

Exit status: 0 PASS, 1 FAIL, 2 a mistake in how it was asked, 3 INCONCLUSIVE, 4 VOID or ERROR.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from service.requests.leases import Lease
from worker.conductor import launch
from worker.conductor.answers import read_report, require_success
from worker.conductor.dossier import REQUEST, Dossier, Folder, Json, Misused, Undecidable, Unsound, Wanted, assemble
from worker.conductor.outcomes import Died, Failed
from worker.conductor.planning import Plan, Source
from worker.conductor.supervise import Ended
from worker.contract import Environment, JobDirectory, Manifest, Report, document_digest, document_json

STATUS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "VOID": 4, "ERROR": 4}
USAGE = 2


@dataclass(frozen=True)
class Answer:
    """What came out: a verdict and why; with a report, where the gate was run."""

    verdict: str
    reason: str
    dossier: Dossier | None = None
    report: Report | None = None

    @property
    def status(self) -> int:
        return STATUS[self.verdict]

    def as_json(self) -> Json:
        """One object; what is not known is null."""
        spec, report = (self.dossier.spec if self.dossier else None), self.report
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "tier": report.tier if report else None,
            "looks": report.looks if report else None,
            "seed": spec.verification_seed if spec else None,
            "policy": {"name": spec.policy.name, "sha256": document_digest(spec.policy)} if spec else None,
            "candidate_digest": self.dossier.candidate.digest if self.dossier else None,
            "original_digest": spec.original_digest if spec else None,
            "parent_digest": spec.base_digest if spec else None,
            "dataset_digest": spec.dataset.digest if spec else None,
            "certificate": against_certificate(self.dossier, report) if self.dossier else None,
            "findings": [document_json(f) for f in report.findings] if report else [],
            "seconds": report.seconds_verify if report else None,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        answer = verify_model(_wanted(options), judges=options.judges, out=options.out)
    except Misused as error:
        print(f"expunge: {error}", file=sys.stderr)
        return USAGE
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


# ------------------------------------------------------------------------------------------------------------ the answer


def against_certificate(dossier: Dossier, report: Report | None) -> Json | None:
    """What the certificate says beside what was found. Findings are compared only where policy and seed are its own."""
    said = dossier.certificate
    if said is None:
        return None
    same_policy = said["plan"]["policySha256"] == document_digest(dossier.spec.policy)
    same_seed = int(said["verification"]["seed"]) == dossier.spec.verification_seed
    compared: Json = {"findings": None, "findings_equal": None}
    if report is not None and same_policy and same_seed:
        theirs = {_about(f): f for f in said["verification"]["findings"]}
        ours = {_about(document_json(f)): document_json(f) for f in report.findings}
        equal = [key for key in theirs if key in ours and _same(theirs[key], ours[key])]
        compared = {"findings": len(theirs), "findings_equal": len(equal)}
    return {"id": said["certificate"]["id"], "same_policy": same_policy, "same_seed": same_seed, **compared}


def _about(finding: Mapping[str, Any]) -> tuple[str, ...]:
    corruption = finding.get("corruption")
    hidden = "" if corruption is None else f"{corruption['kind']}/{Decimal(str(corruption['ratio']))}/{corruption['seed']}"
    return (*(str(finding.get(key)) for key in ("check", "metric", "subject", "class_index")), hidden)


def _same(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """The same word and the same number. Certificates hold fractions as decimal strings."""
    try:
        numbers = [None if f.get("value") is None else Decimal(str(f["value"])) for f in (theirs, ours)]
    except InvalidOperation:
        return False
    return theirs.get("passed") == ours.get("passed") and numbers[0] == numbers[1]


def sentences(answer: Answer) -> str:
    """The answer for people."""
    lines = [f"{answer.verdict}: {answer.reason}"]
    said = answer.as_json()
    if (report := answer.report) is not None:
        gating = [f for f in report.findings if f.gating]
        lines += [f"  {'passed' if f.passed else 'FAILED'}  {f.check}/{f.metric}: {f.detail}" for f in gating]
        lines.append(f"  tier {report.tier or 'none'}, {report.looks} look(s), {report.seconds_verify:.0f} s")
    if said["policy"]:
        lines.append(f"  policy {said['policy']['name']} ({said['policy']['sha256']}), seed {said['seed']}")
    if said["certificate"] and said["certificate"]["findings"] is not None:
        equal, of = said["certificate"]["findings_equal"], said["certificate"]["findings"]
        lines.append(f"  {equal} of {of} findings of the certificate were found again, to the last digit")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ the options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="expunge verify-model",
        description="Run the verification gate again on a published checkpoint.",
        epilog="Exit status: 0 PASS, 1 FAIL, 2 usage, 3 INCONCLUSIVE, 4 VOID or ERROR.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the published files, and their certificate")
    parser.add_argument("--policy", metavar="NAME|FILE", help="default: the certificate's own")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the dataset: a folder, or an .npz file")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="JSON list of ids that only verification may look at")
    parser.add_argument("--original", type=Path, metavar="DIR", help="the model before any forgetting")
    parser.add_argument("--parent", type=Path, metavar="DIR", help="the version it was made from; default: the original")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a model trained without what was forgotten")
    parser.add_argument("--judges", type=Path, metavar="DIR", help="judges of earlier runs; new ones are kept there")
    parser.add_argument("--forget", nargs="+", action="extend", default=[], metavar="CLASS", help="beyond the certificate's")
    parser.add_argument("--samples", type=Path, action="append", default=[], metavar="FILE", help="JSON list of forgotten ids")
    parser.add_argument("--family", help="of the model; default: as the certificate says")
    parser.add_argument("--class", dest="class_names", action="append", default=[], metavar="NAME", help="in index order")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON object: a prompt by class name")
    parser.add_argument("--seed", type=_count, help="of verification; default: the certificate's, or a new one")
    parser.add_argument("--ranks", type=_count, default=1, help="processes to verify with")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to leave report, pictures and log")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**53:
        raise argparse.ArgumentTypeError("expected a whole number from 0")
    return value


def _wanted(options: argparse.Namespace) -> Wanted:
    own = {"judges", "out", "json"}
    return Wanted(**{key: value for key, value in vars(options).items() if key not in own})


if __name__ == "__main__":
    sys.exit(main())
