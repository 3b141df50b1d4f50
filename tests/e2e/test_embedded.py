"""The whole journey on the embedded default: the demo is the test, and what it leaves behind is attacked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.demo import KEYS, checks

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Journey:
    status: int
    result: dict[str, Any]
    out: Path
    stderr: str


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "service.cli", "demo", "--json", "--forget", "3", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.stdout.strip(), done.stderr
    return Journey(done.returncode, json.loads(done.stdout.splitlines()[-1]), out, done.stderr)


def test_the_journey_succeeds_with_every_figure(journey: Journey) -> None:
    assert journey.status == 0, journey.stderr
    assert set(journey.result) == set(KEYS)
    assert [k for k, v in journey.result.items() if v is None] == []
    assert journey.result["request_status"] == "succeeded"
    assert journey.result["forget_class"] == "3"


def test_the_digit_is_forgotten_and_the_others_are_not(journey: Journey) -> None:
    assert journey.result["unlearning_accuracy_lower95"] >= 0.95
    assert journey.result["retain_accuracy_before"] - journey.result["retain_accuracy_after"] <= 0.02
    assert journey.result["original_fails_gate"] is True


def test_the_downloaded_checkpoint_verifies_offline(journey: Journey) -> None:
    assert journey.result["certificate_valid"] is True
    assert verify(journey.out / "checkpoint", journey.out / "signing.pub") == 0


def test_the_commands_that_the_demo_prints_work_as_printed(journey: Journey) -> None:
    """Ours, the stock tool's and openssl's."""
    folder = Path(sys.executable).parent
    for command in checks(journey.out):
        program, *arguments = command.split()
        found = str(folder / program) if (folder / program).exists() else program
        done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_the_downloaded_checkpoint_is_one_set_of_safetensors_weights(journey: Journey) -> None:
    names = [p.name for p in (journey.out / "checkpoint").rglob("*") if p.is_file()]
    assert sum(name.endswith(".safetensors") for name in names) == 1
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl", ".part"))]


@pytest.mark.parametrize("attack", ["change", "remove", "add", "certificate"])
def test_every_tampering_is_refused(journey: Journey, tmp_path: Path, attack: str) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(journey.out / "checkpoint", copy)
    weights = next(copy.rglob("*.safetensors"))
    certificate = copy / "UNLEARNING" / "certificate.sigstore.json"
    match attack:
        case "change":
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(bytes(data))
        case "remove":
            next(copy.rglob("config.json")).unlink()
        case "add":
            (copy / "loader.py").write_text("print('hello')")
        case "certificate":
            envelope = json.loads(certificate.read_text())
            inner = envelope["dsseEnvelope"]
            inner["payload"] = inner["payload"][:-8] + "AAAAAAA="
            certificate.write_text(json.dumps(envelope))
    assert verify(copy, journey.out / "signing.pub") == 1


def test_the_picture_is_a_png(journey: Journey) -> None:
    assert (journey.out / "before_after.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_an_unknown_digit_fails_with_the_names_of_the_known_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "demo", "--json", "--forget", "eleven", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["request_status"] is None
    assert "unknown_class" in done.stderr


def verify(directory: Path, key: Path) -> int:
    command = [sys.executable, "-m", "service.cli", "verify", str(directory), "--key", str(key)]
    environment = {**os.environ, "EXPUNGE_URL": "http://127.0.0.1:1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode
