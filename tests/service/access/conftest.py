"""The service with access control switched on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service import db
from service.app import create_app


@pytest.fixture
def guarded(rules: None, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """As `client`, but every call needs credentials."""
    monkeypatch.setenv("EXPUNGE_AUTH", "required")
    db.reset()
    with TestClient(create_app(), raise_server_exceptions=False) as opened:
        yield opened
