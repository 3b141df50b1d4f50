"""An engine of the standard library alone: 200 requests must not take an hour. It answers as the contract says, or misbehaves.

    params: {"unlearn": MODE, "steps": N, "seconds": S}

It keeps a journal outside its job directory, one JSON line a step, of who worked on what: `TORCH_FAULTS_JOURNAL`, a name that
the conductor passes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

DONE, FAILED, STOPPED = 0, 1, 75
JOURNAL = "TORCH_FAULTS_JOURNAL"
SECONDS = "TORCH_FAULTS_SECONDS"
"""What an unlearning stage takes, where its request does not say."""
ENVIRONMENT = {"code_version": "fake", "python": "3", "torch": "none", "device": "cpu", "ranks": 1, "threads": 1}

Json = dict[str, Any]


def digest(value: Any) -> str:
    """As `worker.contract.document_digest`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def entries(folder: Path) -> list[Json]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        {
            "path": p.relative_to(folder).as_posix(),
            "size": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in files
    ]


def tree(files: list[Json]) -> str:
    """As `worker.contract.tree_digest`."""
    rows = sorted([f["path"], f["size"], f["sha256"]] for f in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def note(step: int, resumed: int) -> None:
    """Into the journal: one write, so that lines of several processes never mix."""
    if path := os.environ.get(JOURNAL):
        mine = {"request": os.environ["EXPUNGE_JOB"], "fence": int(os.environ["EXPUNGE_FENCE"]), "pid": os.getpid()}
        line = json.dumps({**mine, "step": step, "resumed": resumed, "at": time.time()}) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)


def tell(job: Path, phase: str, completed: int, total: int) -> None:
    event = {"at": time.time(), "kind": "progress", "phase": phase, "completed": completed, "total": total, "unit": "iteration"}
    with (job / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def last_step(job: Path) -> int:
    """The newest whole step checkpoint."""
    found = [int(p.name[5:]) for p in (job / "steps").glob("step-*") if (p / "state.json").exists()]
    return max(found, default=0)


def leave_step(job: Path, step: int) -> None:
    (job / "steps").mkdir(exist_ok=True)
    part = job / "steps" / f".step-{step:06d}"
    part.mkdir(exist_ok=True)
    (part / "state.json").write_text(json.dumps({"step": step}))
    part.rename(job / "steps" / f"step-{step:06d}")


def write(path: Path, document: Json) -> None:
    part = path.with_name("." + path.name)
    part.write_text(json.dumps(document))
    part.replace(path)


def leave_result(job: Path, spec: Json, *, done: int, total: int, resumed: int, mode: str = "good") -> None:
    """The candidate and its manifest, written last."""
    shutil.rmtree(job / "out", ignore_errors=True)
    shutil.copytree(job / "base", job / "out")
    with (job / "out" / "model.safetensors").open("ab") as file:
        # nobody else's bytes: the store would have them already, and a store that fails would not be noticed
        file.write(f"forgot {forgotten(spec)} for {spec['request_id']}".encode())
    files = entries(job / "out")
    if mode == "torn":
        (job / "out" / "model.safetensors").write_bytes(b"half")
    if mode == "no_manifest":
        return
    manifest = {
        "spec_digest": digest(spec), "files": files, "effective_params": {}, "iterations_completed": done,
        "iterations_total": total, "resumed_from_iteration": resumed, "seconds_prepare": 0.0, "seconds_unlearn": 0.1,
        "peak_memory_mb": 1.0, "environment": ENVIRONMENT,
    }  # fmt: skip
    write(job / "manifest.json", manifest)


def forgotten(spec: Json) -> list[int]:
    return sorted({*spec["forget_classes"], *spec["forgotten_classes"]})


def unlearn(job: Path, spec: Json) -> int:
    """Count to `steps`, a step checkpoint at each fifth, and stop when asked."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    params = spec["params"]
    mode, total, seconds = (
        params.get("unlearn", "good"),
        int(params.get("steps", 5)),
        float(params.get("seconds", os.environ.get(SECONDS, "0"))),
    )
    resumed = last_step(job)
    if mode == "poison":
        os.kill(os.getppid(), signal.SIGKILL)  # its worker; the kernel sends us after it
        time.sleep(60)
    if mode == "exit_0":
        return DONE
    if mode == "oom":
        write(job / "failure.json", {"code": "out_of_memory", "message": "too little memory", "retryable": True})
        return FAILED
    for step in range(resumed + 1, total + 1):
        note(step, resumed)
        time.sleep(seconds / total)
        tell(job, "unlearning", step, total)
        if asked:
            time.sleep(float(params.get("farewell", 0)))  # a checkpoint takes its time
            leave_step(job, step)
            return STOPPED
        if step % 5 == 0 and step < total:
            leave_step(job, step)
    done = 3 if mode == "incomplete" else total
    leave_result(job, spec, done=done, total=total, resumed=resumed, mode=mode)
    return DONE


def verify(job: Path, spec: Json) -> int:
    manifest = json.loads((job / "manifest.json").read_text())
    (job / "evidence").mkdir()
    (job / "evidence" / "before_after.png").write_bytes(b"a picture")
    findings = [
        {
            "check": "forget_rate", "metric": "unlearning_accuracy", "subject": subject, "gating": subject == "candidate",
            "control": subject == "original", "passed": subject == "candidate",
            "lower95": 0.99 if subject == "candidate" else 0.1, "comparator": "ge", "threshold": 0.95, "class_index": k,
        }
        for k in forgotten(spec)
        for subject in ("candidate", "original")
    ]  # fmt: skip
    report = {
        "spec_digest": digest(spec), "policy_digest": digest(spec["policy"]), "candidate_digest": tree(manifest["files"]),
        "verdict": "PASS", "summary": "the fake judge says PASS", "findings": findings, "evidence": entries(job / "evidence"),
        "seconds_verify": 0.1, "peak_memory_mb": 1.0, "environment": ENVIRONMENT,
    }  # fmt: skip
    tell(job, "verifying", 1, 1)
    write(job / "report.json", report)
    return DONE


def main() -> int:
    stage, job = sys.argv[1], Path(sys.argv[2])
    spec = json.loads((job / "spec.json").read_text())
    return unlearn(job, spec) if stage == "unlearn" else verify(job, spec)


if __name__ == "__main__":
    sys.exit(main())
