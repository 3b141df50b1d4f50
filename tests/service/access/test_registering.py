"""Who registers from where: callers with keys from the configured sources alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import db
from tests.service.access.people import bearer, person
from tests.support import DIGITS, dataset_file, model_folder


@pytest.mark.one_database
def test_the_api_registers_from_the_sources_alone_and_names_the_setting(
    guarded: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, key = person("default", "operator")
    data, folder = dataset_file(tmp_path / "s" / "d" / "d.npz"), model_folder(tmp_path / "s" / "m")

    def register(kind: str, place: Path, **more: Any) -> Any:
        body = {"location": str(place), "class_names": DIGITS, **more}
        return guarded.post(f"/{kind}", json=body, headers=bearer(key))

    monkeypatch.delenv("EXPUNGE_SOURCES")
    db.reset()
    refused = register("datasets", data, format="npz")
    assert (refused.status_code, refused.json()["code"]) == (422, "source_refused")
    assert "EXPUNGE_SOURCES" in refused.json()["detail"]
    assert str(tmp_path) not in refused.text
    monkeypatch.setenv("EXPUNGE_SOURCES", f'["{tmp_path}/s"]')
    db.reset()
    dataset = register("datasets", data, format="npz")
    assert dataset.status_code == 201, dataset.text
    for place, status in ((folder, 201), (model_folder(tmp_path / "elsewhere"), 422)):
        assert register("models", place, family="ddpm", dataset_id=dataset.json()["id"]).status_code == status
