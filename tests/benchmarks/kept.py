"""Folders that take long to make, kept under the hash of all that decides what is in them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.contract import tree_digest
from worker.engine.files import entries


@dataclass(frozen=True)
class Trained:
    """A model folder, the seconds its training took, and whether an earlier run did it."""

    folder: Path
    seconds: float
    kept: bool


def kept(cache: Path, what: Mapping[str, Any], make: Callable[[Path], None]) -> Trained:
    """A folder made once for all that decides its content, and taken from the cache while its files hash as recorded."""
    text = json.dumps(what, sort_keys=True)
    home = cache / hashlib.sha256(text.encode()).hexdigest()[:32]
    folder, record = home / "model", home / "record.json"
    if record.is_file():
        found = json.loads(record.read_text())
        if folder.is_dir() and tree_digest(entries(folder)) == found["digest"]:
            return Trained(folder, found["seconds"], kept=True)
    shutil.rmtree(home, ignore_errors=True)
    began = time.monotonic()
    home.mkdir(parents=True)
    make(folder)
    seconds = time.monotonic() - began
    record.write_text(json.dumps({"digest": tree_digest(entries(folder)), "seconds": seconds, "of": json.loads(text)}))
    return Trained(folder, seconds, kept=False)
