"""What the repository ships, and what it must not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".json", ".txt", ".cfg", ".mako", ".Dockerfile", ""}


def tracked() -> list[Path]:
    """The files of the checkout: git's list where there is git, else everything outside hidden folders."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]


def test_no_pickled_weights_are_tracked() -> None:
    assert [p.name for p in tracked() if p.suffix in {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}] == []


def test_the_example_model_is_small() -> None:
    weights = [p for p in tracked() if p.suffix == ".safetensors"]
    assert weights, "the example model's weights are missing"
    assert sum(p.stat().st_size for p in weights) <= 3_000_000


def test_no_machine_path_and_no_index_host_is_written_down() -> None:
    wrong = re.compile(
        "|".join([r"/work" + r"/", r"/home/\w+/", r"/ro" + r"ot/", r"(files\.python" + r"hosted|py" + r"pi\.org)"])
    )
    found = [
        f"{p.relative_to(ROOT)}: {m.group()}"
        for p in tracked()
        if p.suffix in TEXT and (m := wrong.search(p.read_text(errors="replace")))
    ]
    assert found == []


def test_torch_is_pinned_and_torchvision_stays_out() -> None:
    pins = (ROOT / "constraints.txt").read_text().lower().splitlines()
    assert "torch==2.13.0" in pins
    names = {line.split("==")[0] for line in pins}
    assert not names & {"torchvision", "timm", "torch-fidelity", "torchaudio"}
    assert all("==" in line for line in pins if line and not line.startswith("#"))
