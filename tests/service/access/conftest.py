"""The service with access control switched on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service import db
from service.app import create_app


@pytest.fixture
def guarded(rules: None, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """As `client`, but every call needs credentials."""
    monkeypatch.setenv("EXPUNGE_AUTH", "required")
    monkeypatch.setenv("EXPUNGE_SOURCES", json.dumps([str(tmp_path)]))
    monkeypatch.setenv("EXPUNGE_RATE_LIMIT_DENIED", "")  # tests that walk over all routes are refused by each
    db.reset()
    with TestClient(create_app(), raise_server_exceptions=False) as opened:
        yield opened
