"""What ran, for the manifest and the report: enough to run it again, nothing about the machine's name or paths."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from worker.contract import Environment

_WORKER = Path(__file__).parent.parent


@cache
def code_version() -> str:
    """Package version and a digest of the engine's own source, so that an edited checkout cannot pose as a release."""
    try:
        version = metadata.version("expunge")
    except metadata.PackageNotFoundError:
        version = "0"
    digest = hashlib.sha256()
    for path in sorted([_WORKER / "contract.py", *(_WORKER / "engine").rglob("*.py")]):
        digest.update(path.relative_to(_WORKER).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{version}+engine.{digest.hexdigest()[:12]}"


def environment(device: torch.device, ranks: int) -> Environment:
    """The software, the kind of device and how many of them."""
    return Environment(
        code_version=code_version(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        ranks=ranks,
        threads=torch.get_num_threads(),
    )


def peak_memory_mb(device: torch.device) -> float:
    """MiB: the most this process held, on the accelerator if there is one, else resident in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
