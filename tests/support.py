"""What tests need to make: small real files, and rows that no endpoint of ours writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save_file

from service import db
from service.files import FileEntry, tree_digest
from service.requests.lifecycle import Status
from service.storage import get_store
from service.tables import Attempt, Checkpoint, CheckpointFile, Model, ModelVersion, RequestEvent, UnlearnRequest, new_id

Json = dict[str, Any]

DIGITS = ["zero", "one", "two", "three", "four"]

CATALOGUE: Json = {
    "families": {"ddpm": {"title": "DDPM"}, "stone": {"title": "A family that no method works on"}},
    "methods": {
        "sfron": {
            "title": "SFR-on",
            "families": ["ddpm"],
            "params": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "iterations": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
                    "alpha": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
                    "optimizer": {"enum": ["dual", "shared"], "default": "dual"},
                },
            },
        },
        "aaa_baseline": {"title": "Baseline", "families": ["ddpm"], "params": {"type": "object", "properties": {}}},
    },
    "verifiers": {"integrity": {"title": "Integrity"}},
}
POLICY: Json = {"name": "test-v1", "checks": [{"verifier": "integrity", "params": {}}]}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def model_folder(path: Path) -> Path:
    """A folder that may be registered as a model."""
    path.mkdir(parents=True)
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, path / "weights.safetensors")
    write_json(path / "config.json", {"_class_name": "UNet2DModel"})
    return path


def dataset_file(path: Path, **arrays: Any) -> Path:
    """An npz file that may be registered as a dataset, unless `arrays` say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": np.zeros((len(DIGITS), 8, 8), np.uint8),
        "labels": np.arange(len(DIGITS)),
        "ids": np.array([f"scan-{k}" for k in range(len(DIGITS))]),
        **arrays,
    }
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path


def register(client: TestClient, folder: Path, class_names: list[str] | None = None) -> Json:
    """A dataset and a model, registered through the API; returns the model."""
    names = class_names or DIGITS
    if not (folder / "data").exists():
        dataset_file(folder / "data" / "d.npz")
        model_folder(folder / "model")
    dataset = client.post("/datasets", json={"format": "npz", "location": str(folder / "data" / "d.npz"), "class_names": names})
    assert dataset.status_code == 201, dataset.text
    model = client.post(
        "/models",
        json={
            "family": "ddpm",
            "location": str(folder / "model"),
            "dataset_id": dataset.json()["id"],
            "class_names": names,
        },
    )
    assert model.status_code == 201, model.text
    body: Json = model.json()
    return body


def ask(client: TestClient, model: Json, *classes: int | str, key: str | None = None, **more: Any) -> Any:
    """POST /unlearn-requests."""
    body = {"model_id": model["id"], "forget": {"classes": list(classes)}, **more}
    return client.post("/unlearn-requests", json=body, headers={"Idempotency-Key": key} if key else {})


def move(request_id: str, *path: Status, **columns: Any) -> None:
    """Take a request along legal moves, as the conductor would."""
    for status in path:
        with db.transaction() as session:
            row = session.get_one(UnlearnRequest, request_id)
            row.status = status
            row.version += 1
            for name, value in columns.items():
                setattr(row, name, value)


def emit(request_id: str, kind: str, **data: Any) -> int:
    """Add an event to a request's stream; returns its id."""
    with db.transaction() as session:
        row = RequestEvent(request_id=request_id, type=f"unlearning_request.{kind}", data=data, at=datetime.now(UTC))
        session.add(row)
        session.flush()
        return row.id


def publish(model: Json, request_id: str, files: dict[str, bytes], scratch: Path) -> str:
    """What a publish leaves behind: stored files, a checkpoint, the lineage's next version, a request that succeeded."""
    store = get_store()
    entries = []
    for path, content in files.items():
        source = scratch / "publish.tmp"
        source.write_bytes(content)
        kept = store.put(source)
        entries.append(FileEntry(path, kept.size, kept.sha256))
    at, checkpoint_id = datetime.now(UTC), new_id("ckpt")
    move(request_id, "running", phase="publishing")
    with db.transaction() as session:
        request = session.get_one(UnlearnRequest, request_id)
        lineage = session.get_one(Model, model["id"])
        session.add(
            Checkpoint(
                id=checkpoint_id,
                request_id=request_id,
                model_id=model["id"],
                fence=1,
                digest=tree_digest(entries),
                certificate={"payloadType": "application/vnd.in-toto+json", "payload": "e30=", "signatures": []},
                created_at=at,
            )
        )
        session.flush()
        session.add_all(CheckpointFile(checkpoint_id=checkpoint_id, **e.row()) for e in entries)
        session.add(
            ModelVersion(
                id=new_id("mver"),
                model_id=model["id"],
                number=lineage.current_version + 1,
                checkpoint_id=checkpoint_id,
                files=[e.row() for e in entries],
                digest=tree_digest(entries),
                forgotten_classes=list(request.forget_classes),
                created_at=at,
            )
        )
        lineage.current_version += 1
        request.status, request.checkpoint_id, request.finished_at = "succeeded", checkpoint_id, at
        request.version += 1
    return checkpoint_id


def attempt(request_id: str, **columns: Any) -> None:
    """An attempt of a request, as the conductor leaves it."""
    with db.transaction() as session:
        session.add(Attempt(request_id=request_id, worker="w", started_at=datetime.now(UTC), **columns))


one_database = pytest.mark.one_database
"""For tests of what happens before any SQL."""


def code_of(response: Any) -> str:
    """The stable code of a problem, once it is one: its media type, its fields, and nothing of a traceback."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert {"type", "title", "status", "detail", "instance", "code"} <= set(body)
    assert body["status"] == response.status_code
    assert "Traceback" not in response.text
    return str(body["code"])
