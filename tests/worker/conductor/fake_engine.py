"""An engine without torch that answers as the contract says, or misbehaves as the spec's params tell it to.

    params: {"unlearn": MODE, "verify": MODE, "seconds": S}

Run like the real one: `python fake_engine.py unlearn|verify DIR`. A `long` run starts a "rank" in a session of its own, as
torchrun does, which notes its pid in `rank.pid`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.contract import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    Environment,
    Event,
    Failure,
    FileEntry,
    Finding,
    JobDirectory,
    Manifest,
    Report,
    Spec,
    document_digest,
    tree_digest,
)
from worker.engine import spans
from worker.verdict import decide

ENVIRONMENT = Environment(code_version="fake", python="3", torch="none", device="cpu", ranks=1, threads=1)
ITERATIONS = 20


def entries(folder: Path) -> tuple[FileEntry, ...]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return tuple(
        FileEntry(
            path=p.relative_to(folder).as_posix(),
            size=p.stat().st_size,
            sha256=hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in files
    )


def tell(job: JobDirectory, phase: str, completed: int, total: int, unit: str) -> None:
    event = Event(at=time.time(), kind="progress", phase=phase, completed=completed, total=total, unit=unit)
    with job.events.open("a") as file:
        file.write(event.model_dump_json() + "\n")


def fail(job: JobDirectory, **words: object) -> int:
    job.failure.write_text(Failure.model_validate(words).model_dump_json())
    return EXIT_FAILED


def work(job: JobDirectory, spec: Spec, mode: str) -> int:
    """The unlearning stage."""
    resumed = len(list(job.steps.glob("step-*"))) if job.steps.is_dir() else 0
    if mode in ("long", "long_once") and not (mode == "long_once" and resumed):
        return work_long(job, spec)
    match mode:
        case "silent":
            return EXIT_DONE
        case "crash":
            print("Traceback: boom in", job.root)
            return EXIT_FAILED
        case "crash_once" if not resumed:
            leave_step(job)
            return EXIT_FAILED
        case "diverged":
            return fail(job, code="diverged", message="the loss is not finite", step=7, loss="nan")
        case "survivor":
            print("Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)  (SIGTERM)")
            if spec.params.get("killed", True):
                print("Root Cause:\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)  (SIGKILL)")
            return fail(job, code="internal", message="unexpected RuntimeError: Connection closed by peer")
        case "rank_lost":
            return fail(job, code="rank_lost", message="rank 1 does not answer")
        case "oom":
            return fail(job, code="out_of_memory", message="too little memory", retryable=True)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(60)
    for i in range(ITERATIONS + 1):
        tell(job, "unlearning", i, ITERATIONS, "iteration")
        time.sleep(float(spec.params.get("seconds", 0)) / ITERATIONS)
    if "fisher_bytes" in spec.params:
        leave_fisher(job, spec)
    shutil.copytree(job.base, job.out)
    with (job.out / "model.safetensors").open("ab") as file:
        file.write(f"forgot {spec.all_forgotten}".encode())
    manifest = Manifest(
        spec_digest=document_digest(spec) if mode != "other_spec" else "0" * 64,
        files=entries(job.out),
        effective_params={"rate": 0.5},
        iterations_completed=ITERATIONS if mode != "incomplete" else 3,
        iterations_total=ITERATIONS,
        resumed_from_iteration=resumed,
        seconds_prepare=0.0,
        seconds_unlearn=0.1,
        peak_memory_mb=1.0,
        environment=ENVIRONMENT,
    )
    if mode == "torn":
        (job.out / "model.safetensors").write_bytes(b"half")
    if mode == "extra_file":
        (job.out / "optimizer.bin").write_bytes(b"state")
    job.manifest.write_text(manifest.model_dump_json())
    return EXIT_DONE


def findings(spec: Spec, *, passed: bool, seeing: bool, skipped: bool, still_open: bool = False) -> tuple[Finding, ...]:
    """One and its control for each class that was ever forgotten (`skipped`: on this request's alone), one for all samples."""
    classes = spec.forget_classes if skipped else spec.all_forgotten
    rates = [("forget_rate", "unlearning_accuracy", k) for k in classes]
    samples = [("sample_membership", "membership_auc", None)] if spec.all_forgotten_samples else []
    return tuple(
        Finding(
            check=check, metric=metric, subject=subject, gating=subject == "candidate", control=subject == "original",
            passed=good, open=still_open and subject == "candidate",
            lower95=0.99 if good else 0.1, comparator="ge", threshold=0.95, class_index=k,
        )
        for check, metric, k in (*rates, *samples)
        for subject, good in (("candidate", passed), ("original", not seeing))
    )  # fmt: skip


def leave_fisher(job: JobDirectory, spec: Spec) -> None:
    """As large as `fisher_bytes` says, under a key of the request's own."""
    folder = job.fishers / hashlib.sha256(spec.request_id.encode()).hexdigest()
    folder.mkdir()
    (folder / "fisher.safetensors").write_bytes(b"F" * int(str(spec.params["fisher_bytes"])))
    (folder / "fisher.json").write_text(json.dumps({"weights": spec.base_digest}))
    if spec.params.get("fisher_link"):
        (folder / "link").symlink_to("/etc/passwd")


def leave_step(job: JobDirectory) -> None:
    step = job.steps / "step-000001"
    step.mkdir(parents=True, exist_ok=True)
    (step / "state.json").write_text("{}")


def work_long(job: JobDirectory, spec: Spec) -> int:
    """Works until asked to stop; leaves a step checkpoint then."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    code = "import ctypes, sys, time\n"
    if spec.params.get("rank_dies_with_agent"):
        code += "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    rank = subprocess.Popen([sys.executable, "-c", code + "time.sleep(300)"], start_new_session=True)
    (job.root / "rank.pid").write_text(f"{os.getpid()} {rank.pid}")
    for i in range(3000):
        if i == 5 and spec.params["unlearn"] == "long_once":
            leave_step(job)
        if asked and not spec.params.get("deaf"):
            leave_step(job)
            return EXIT_STOPPED  # and leaves its rank behind: the conductor must find it
        tell(job, "unlearning", i, 3000, "iteration")
        time.sleep(0.05)
    return EXIT_FAILED


def judge(job: JobDirectory, spec: Spec, mode: str) -> int:
    """The verification stage."""
    manifest = Manifest.model_validate_json(job.manifest.read_bytes())
    if mode == "crash":
        return EXIT_FAILED
    if mode == "meddle":
        (job.out / "model.safetensors").write_bytes(b"other")
    job.evidence.mkdir()
    (job.evidence / "before_after.png").write_bytes(b"a picture")
    (job.judges / ("a" * 64)).mkdir(exist_ok=True)
    (job.judges / ("a" * 64) / "judge.json").write_text("{}")
    bad = mode in ("fail", "lie", "open", "open_lie") or (mode == "fail_first" and spec.attempt == 1)
    still_open = mode in ("open", "open_lie")
    found = findings(spec, passed=not bad, seeing=mode != "void", skipped=mode == "skips", still_open=still_open)
    verdict = "PASS" if mode in ("lie", "skips", "open_lie") else decide(found, spec)
    report = Report(
        spec_digest=document_digest(spec),
        policy_digest=document_digest(spec.policy),
        candidate_digest="0" * 64 if mode == "other_candidate" else tree_digest(manifest.files),
        verdict="ERROR" if mode == "error" else verdict,
        tier="L3" if mode == "boasts" else None,
        summary=f"the fake judge says {verdict}",
        findings=found,
        evidence=entries(job.evidence),
        seconds_verify=0.1,
        peak_memory_mb=1.0,
        environment=ENVIRONMENT,
    )
    tell(job, "verifying", 1, 1, "image")
    job.report.write_text(report.model_dump_json())
    return EXIT_DONE


def main() -> int:
    stage, job = sys.argv[1], JobDirectory(sys.argv[2])
    spec = job.read_spec()
    mode = str(spec.params.get(stage, "good"))
    if saved := os.environ.get("NCCL_FAKE_KEEP"):  # a name that the conductor passes on: tests look at what was there
        shutil.copy(job.spec, Path(saved) / f"spec-{os.environ['EXPUNGE_FENCE']}.json")
        (Path(saved) / f"environment-{stage}.json").write_text(json.dumps(dict(os.environ)))
        (Path(saved) / f"tree-{stage}.json").write_text(json.dumps(sorted(p.name for p in job.root.iterdir())))
        if job.proxy.is_dir():  # a dataset's digest by the name of its one file
            (Path(saved) / "proxy.json").write_text(json.dumps({e.path: tree_digest([e]) for e in entries(job.proxy)}))
        if job.metric_weights.is_dir():
            (Path(saved) / "metric_weights.json").write_text(json.dumps(tree_digest(entries(job.metric_weights))))
        (Path(saved) / "fishers.json").write_text(json.dumps(sorted(p.name for p in job.fishers.iterdir())))
    with spans.told(job.events, f"engine.{stage}"):
        return work(job, spec, mode) if stage == "unlearn" else judge(job, spec, mode)


if __name__ == "__main__":
    sys.exit(main())
