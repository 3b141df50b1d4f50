"""A furnished house, and what an engine in it saw."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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


@pytest.fixture
def background() -> Iterator[list[threading.Thread]]:
    """Threads of a test; all of them have ended when it has."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
