"""Journeys through the whole service take minutes, and on a busy machine several times as long."""

from __future__ import annotations

from pathlib import Path

import pytest

SECONDS = 1500.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(SECONDS))
