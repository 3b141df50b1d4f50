"""The policies that ship, as a request for a kind of model gets them."""

from __future__ import annotations

import json
from pathlib import Path

from worker.contract import Policy

FOLDER = Path(__file__).resolve().parents[2] / "service" / "policies"


def packaged(name: str, kind: str) -> Policy:
    """By name; one without kinds is for any kind that has its checks."""
    document = json.loads((FOLDER / f"{name}.json").read_bytes())
    return Policy.model_validate({"name": name, "kind": kind, **document["kinds"][kind]} if "kinds" in document else document)
