"""Small rules of the engine's core: discovery, the catalogue, events, failures, dying with the launcher."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worker.engine.unlearning_job import ROOT
from worker.contract import Event
from worker.engine import errors, registry
from worker.engine.catalogue import as_text, catalogue
from worker.engine.events import Eta, Events


def test_every_file_of_the_three_folders_is_registered_under_its_name() -> None:
    engine = ROOT / "worker" / "engine"
    for folder, found in (
        ("families", registry.families()),
        ("methods", registry.methods()),
        ("verifiers", registry.verifiers()),
    ):
        assert set(found) == {p.stem for p in (engine / folder).glob("*.py") if not p.stem.startswith("_")}
        assert all(thing.name == name for name, thing in found.items())


def test_the_catalogue_is_the_same_text_every_time_and_names_every_parameter() -> None:
    assert as_text() == as_text()
    assert json.loads(as_text()) == catalogue()
    sfron = catalogue()["methods"]["sfron"]
    assert set(sfron["params"]["properties"]) == set(sfron["defaults"])
    assert sfron["params"]["additionalProperties"] is False
    assert "sfron" in catalogue()["families"]["ddpm"]["methods"]


def test_progress_is_thinned_but_never_loses_the_first_or_the_last(tmp_path: Path) -> None:
    now = [0.0]
    events = Events(tmp_path / "e.jsonl", "unlearning", speaks=True, clock=lambda: now[0])
    for i in range(101):
        now[0] = i * 0.01
        events.progress(i, 100, "iteration")
    told = [Event.model_validate_json(line).completed for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    # One second at most every 0.2 s: 0, 20, 40, 60, 80, 100, give or take a rounding of the clock.
    assert told[0] == 0
    assert told[-1] == 100
    assert len(told) in (5, 6)


def test_only_the_first_rank_speaks(tmp_path: Path) -> None:
    Events(tmp_path / "e.jsonl", "unlearning", speaks=False).begin()
    assert not (tmp_path / "e.jsonl").exists()


def test_the_estimate_counts_only_what_this_run_did() -> None:
    now = [0.0]
    eta = Eta(40, clock=lambda: now[0])
    assert eta.remaining(40, 50) is None
    now[0] = 4.0
    assert eta.remaining(42, 50) == pytest.approx(16.0)  # 2 s an iteration, 8 to go


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (errors.BadInput("x"), "bad_input", False),
        (errors.BadModel("x"), "bad_input", False),
        (errors.Integrity("x"), "integrity", False),
        (errors.OutOfMemory("x"), "out_of_memory", True),
        (MemoryError(), "out_of_memory", True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried ..."), "out_of_memory", True),
        (RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", True),
        (RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried"), "out_of_memory", True),
        (RuntimeError("shapes cannot be multiplied"), "internal", False),
        (errors.JudgeUnfit("x"), "judge_unfit", False),
        (ZeroDivisionError("/secret/path"), "internal", False),
    ],
)
def test_every_end_has_a_code(error: BaseException, code: str, retryable: bool) -> None:
    failure = errors.failure_of(error)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert "/secret/path" not in failure.message


@pytest.mark.parametrize(("loss", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (2.5, 2.5)])
def test_a_diverged_loss_is_valid_json(loss: float, word: float | str) -> None:
    failure = errors.failure_of(errors.Diverged("x", step=4, loss=loss))
    assert (failure.code, failure.step, failure.loss) == ("diverged", 4, word)
    assert json.loads(failure.model_dump_json())["loss"] == word


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
def test_a_rank_dies_with_its_launcher() -> None:
    rank = "import time; from worker.engine.__main__ import die_with_parent; die_with_parent(); print('up'); time.sleep(60)"
    launcher = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-u', '-c', {rank!r}], stdout=subprocess.PIPE, start_new_session=True);"
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while _alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the rank outlived its launcher")
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Running, not a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_entry_point_asks_to_die_with_its_launcher_before_torch_is_loaded() -> None:
    seen = "import sys; import worker.engine.__main__; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
