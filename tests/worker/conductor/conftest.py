"""A furnished house, and what an engine in it saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.conductor import house as h


@pytest.fixture
def house(tmp_path: Path) -> h.House:
    return h.furnish(tmp_path)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake engine copies what it saw, before the job directory goes."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setenv("NCCL_FAKE_KEEP", str(folder))
    return folder
