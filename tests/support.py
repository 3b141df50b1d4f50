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
from sqlalchemy import select

from service import db
from service.certificates.dsse import BUNDLE
from service.files import FileEntry, tree_digest
from service.requests.lifecycle import Status
from service.storage import get_store
from service.tables import Attempt, Checkpoint, CheckpointFile, Model, ModelVersion, RequestEvent, UnlearnRequest, new_id

Json = dict[str, Any]
LOCAL_URL = "http://127.0.0.1"
"""For `TestClient`, whose own name is none that the service answers to without credentials."""

DIGITS = ["zero", "one", "two", "three", "four"]

CATALOGUE: Json = {
    "ladders": {"ddpm": {"class": [{"method": "staged", "preset": "gentle"}, {"method": "sfron"}]}},
    "families": {
        "ddpm": {"title": "DDPM"},
        "stone": {"title": "A family that no method works on"},
        "resnet": {"title": "Classifier", "kind": "classifier"},
        "wordy": {"title": "Text-conditional generator", "kind": "generator", "prompts": True},
        "mae": {"title": "Completes images", "kind": "i2i"},
    },
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
        "aaa_baseline": {"title": "Baseline", "families": ["ddpm", "mae"], "params": {"type": "object", "properties": {}}},
        "encoder_l2": {"title": "Distillation", "families": ["mae"], "params": {"type": "object", "properties": {}}},
        "staged": {
            "title": "A method with presets",
            "families": ["ddpm", "resnet", "wordy"],
            "params": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "preset": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                    "iterations": {"type": "integer", "minimum": 1, "default": 50},
                    "alpha": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
                },
            },
            "presets": {
                "gentle": {"families": ["ddpm"], "params": {"iterations": 10}, "source": "ours"},
                "harsh": {"families": ["ddpm"], "params": {"iterations": 900, "alpha": 9.0}, "source": "a paper"},
                "labels": {"families": ["resnet"], "params": {"alpha": 3.0}, "source": "another paper"},
            },
            "default_presets": {
                "ddpm": {"class": "gentle", "sample": "harsh"},
                "resnet": {"class": "labels"},
                "wordy": {"class": None},
            },
        },
    },
    "verifiers": {
        "integrity": {"title": "Integrity", "kinds": ["generator", "classifier", "i2i"]},
        "classes_gone": {"title": "Of every kind", "kinds": ["generator", "classifier", "i2i"], "measures": "classes"},
        "samples_gone": {"title": "Of every kind", "kinds": ["generator", "classifier", "i2i"], "measures": "samples"},
        "forget_rate": {"title": "Samples judged", "kinds": ["generator"], "measures": "classes"},
        "retain_accuracy": {"title": "Samples judged", "kinds": ["generator"]},
        "feature_distance": {"title": "Samples judged", "kinds": ["generator"]},
        "forget_accuracy": {"title": "Test accuracy", "kinds": ["classifier"], "measures": "classes"},
        "sample_membership": {"title": "Membership inference", "kinds": ["classifier"], "measures": "samples"},
        "retain_test_accuracy": {"title": "Test accuracy", "kinds": ["classifier"]},
    },
}
POLICY: Json = {
    "name": "test-v1",
    "checks": [{"verifier": v, "params": {}} for v in ("integrity", "classes_gone", "samples_gone")],
}


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
        one_each = {"images": np.zeros((len(names), 8, 8), np.uint8), "labels": np.arange(len(names)), "ids": None}
        dataset_file(folder / "data" / "d.npz", **(one_each if class_names else {}))
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


def image_folder(path: Path, class_names: list[str], train: int = 3, test: int = 1) -> Path:
    """A folder `train|test/<class>/<k>.png` that may be registered as a dataset; the pictures are none."""
    for name in class_names:
        for part, count in (("train", train), ("test", test)):
            (path / part / name).mkdir(parents=True)
            for k in range(count):
                (path / part / name / f"{k}.png").write_bytes(b"a picture")
    return path


def register_classifier(client: TestClient, folder: Path, class_names: list[str] | None = None, **dataset: Any) -> Json:
    """A classifier on an image folder (unless `dataset` says otherwise), registered through the API; returns the model."""
    names = class_names or DIGITS
    body = {"format": "image_folder", "class_names": names, **dataset}
    if "location" not in body:
        body["location"] = str(image_folder(folder / "pictures", names))
    made = client.post("/datasets", json=body)
    assert made.status_code == 201, made.text
    weights = {"family": "resnet", "location": str(model_folder(folder / "classifier")), "class_names": names}
    model = client.post("/models", json={**weights, "dataset_id": made.json()["id"]})
    assert model.status_code == 201, model.text
    answer: Json = model.json()
    return answer


def register_dataset(client: TestClient, path: Path, class_names: list[str], shape: tuple[int, ...] = (8, 8)) -> str:
    """An npz dataset of two images a class, registered through the API; returns its id."""
    count = len(class_names)
    dataset_file(path, images=np.zeros((2 * count, *shape), np.uint8), labels=np.arange(2 * count) % count, ids=None)
    made = client.post("/datasets", json={"format": "npz", "location": str(path), "class_names": class_names})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def register_completer(client: TestClient, folder: Path, class_names: list[str] | None = None) -> Json:
    """An image-to-image model of grey images of 8x8, registered through the API; returns the model."""
    names = class_names or DIGITS
    dataset_id = register_dataset(client, folder / "data" / "d.npz", names)
    weights = {"family": "mae", "location": str(model_folder(folder / "completer")), "class_names": names}
    model = client.post("/models", json={**weights, "dataset_id": dataset_id})
    assert model.status_code == 201, model.text
    answer: Json = model.json()
    return answer


def ask_samples(client: TestClient, model: Json, *ids: str, key: str | None = None, **more: Any) -> Any:
    """POST /unlearn-requests for single training items."""
    body = {"model_id": model["id"], "forget": {"samples": list(ids)}, **more}
    return client.post("/unlearn-requests", json=body, headers={"Idempotency-Key": key} if key else {})


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
        current = ModelVersion.model_id == lineage.id, ModelVersion.number == lineage.current_version
        base = session.scalars(select(ModelVersion).where(*current)).one()
        session.add(
            Checkpoint(
                id=checkpoint_id,
                request_id=request_id,
                model_id=model["id"],
                fence=1,
                digest=tree_digest(entries),
                certificate={"mediaType": BUNDLE, "verificationMaterial": {}, "dsseEnvelope": {"payload": "e30="}},
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
                forgotten_classes=sorted({*base.forgotten_classes, *request.forget_classes}),
                forgotten_samples=sorted({*base.forgotten_samples, *request.forget_samples}),
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
