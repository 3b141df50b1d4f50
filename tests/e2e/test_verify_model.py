"""A third party verifies the demo's checkpoint again, with the digits' data and the original, and finds what was certified."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.demo import export_example

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Published:
    checkpoint: Path
    example: dict[str, Any]
    folder: Path

    @property
    def key(self) -> list[str]:
        return ["--key", str(self.checkpoint.parent / "signing.pub")]

    def brought(self) -> list[str]:
        held_out = self.folder / "held_out.json"
        held_out.write_text(json.dumps(self.example["held_out_ids"]))
        judges = self.folder / "judges"
        data = ["--data", self.example["dataset"], "--held-out", str(held_out), "--judges", str(judges)]
        return [*data, "--original", self.example["model"]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-m", "service.cli", "demo", "--json", "--forget", "3", "--out", str(folder / "demo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return Published(folder / "demo" / "checkpoint", export_example(folder / "example"), folder)


def verify_model(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "service.cli", "verify-model", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_certified_checkpoint_passes_and_every_finding_is_the_same_to_the_last_digit(published: Published) -> None:
    """On one machine: elsewhere the last digits of sums may differ, and the verdict may not."""
    status, answer = verify_model(
        str(published.checkpoint), *published.brought(), *published.key, "--out", str(published.folder / "seen")
    )
    assert (status, answer["verdict"]) == (0, "PASS"), answer["reason"]
    assert answer["signature"] == "verified"
    said = answer["certificate"]
    assert (said["same_policy"], said["same_seed"]) == (True, True)
    assert said["findings_equal"] == said["findings"] > 10
    assert (published.folder / "seen" / "evidence" / "before_after.png").is_file()


def test_it_passes_with_another_seed_and_by_the_policys_name(published: Published) -> None:
    others = ["--policy", "basic-v1", "--seed", "12345"]
    status, answer = verify_model(str(published.checkpoint), *published.brought(), *published.key, *others)
    assert (status, answer["seed"]) == (0, 12345), answer["reason"]
    assert (answer["certificate"]["same_policy"], answer["certificate"]["same_seed"]) == (True, False)


def test_the_original_in_its_place_fails(published: Published) -> None:
    of_the_model = [f"--class={name}" for name in published.example["class_names"]]
    wish = ["--policy", "basic-v1", "--family", published.example["family"], *of_the_model, "--forget", "3"]
    status, answer = verify_model(published.example["model"], *published.brought(), *wish)
    assert (status, answer["verdict"]) == (1, "FAIL"), answer["reason"]
    assert "forget_rate" in answer["reason"]


def test_without_the_data_or_the_original_it_is_inconclusive(published: Published) -> None:
    status, answer = verify_model(str(published.checkpoint), *published.key, "--original", published.example["model"])
    assert (status, answer["verdict"]) == (3, "INCONCLUSIVE")
    assert "--data" in answer["reason"]


def test_an_unchecked_certificate_does_not_say_what_the_model_is_held_to(published: Published) -> None:
    status, answer = verify_model(str(published.checkpoint), *published.brought())
    assert (status, answer["verdict"]) == (3, "INCONCLUSIVE")
    assert "--key" in answer["reason"]
