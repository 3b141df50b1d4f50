"""What every benchmark ends with: each figure beside its target, where the figures come from, and one JSON object."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from typing import Any


def machine() -> dict[str, Any]:
    """Where the figures come from, as far as that can be told without torch."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def concluded(figures: Mapping[str, Any], targets: Mapping[str, tuple[float | None, str]], *, complete: bool) -> int:
    """Print each figure beside its target, then all of them as one JSON object; how many targets were missed.

    Args:
        complete: count what was not measured as missed.
    """
    missed = 0
    for name, (target, kind) in targets.items():
        value = figures.get(name)
        good = value is not None and target is not None and (value <= target if kind == "le" else value >= target)
        absent = "MISSED" if complete and target is not None else ""
        word = absent if value is None else "" if target is None else "ok" if good else "MISSED"
        missed += word == "MISSED"
        limit = "" if target is None else f"{'≤' if kind == 'le' else '≥'} {target}"
        print(f"{name:<38} {'not measured' if value is None else f'{value:.4g}':>14}   {limit:<8} {word}")
    print(json.dumps(figures))
    return missed
