"""What is fuzzed: the API on a database with one of everything in it, reached as each kind of caller."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from service import db
from service.app import create_app
from tests.benchmarks.ledger.places import database
from tests.service.access.people import ALL_ROLES, bearer, person
from tests.serving import served
from tests.support import DIGITS, LOCAL_URL, Json, ask, emit, image_folder, model_folder, publish

LOCAL = "local"
CALLERS: tuple[str, ...] = (LOCAL, *ALL_ROLES)
HOME = "default"
UNLIMITED = {f"EXPUNGE_RATE_LIMIT_{kind}": "" for kind in ("READS", "WRITES", "DENIED")}
"""Nearly all that is sent is refused, and hundreds of calls a second are the point."""
HELD_OUT = 100
"""Images a class."""


@contextmanager
def prepared(kind: str, folder: Path) -> Iterator[None]:
    """This process's database, new, with a dataset, a model, requests that wait and one that succeeded, and its checkpoint."""
    with database(kind, folder):
        with TestClient(create_app(), base_url=LOCAL_URL) as client:
            model = _model(client, folder / "files")
            asked = ask(client, model, 1, reason="a letter")
            assert asked.status_code == 202, asked.text
            done = asked.json()
            emit(done["id"], "progress", completed=1)
            publish(model, done["id"], {"model.safetensors": b"weights"}, folder)
            for classes in ([2], [3]):
                answer = ask(client, model, *classes)
                assert answer.status_code == 202, answer.text
        db.reset()
        yield


def _model(client: TestClient, folder: Path) -> Json:
    """A generator whose data has held-out images, as the packaged policies want."""
    pictures = image_folder(folder / "pictures", DIGITS, train=HELD_OUT, test=HELD_OUT)
    body = {"format": "image_folder", "location": str(pictures), "class_names": DIGITS}
    dataset = client.post("/datasets", json=body)
    assert dataset.status_code == 201, dataset.text
    weights = {"family": "ddpm", "location": str(model_folder(folder / "model")), "class_names": DIGITS}
    model = client.post("/models", json={**weights, "dataset_id": dataset.json()["id"]})
    assert model.status_code == 201, model.text
    answer: Json = model.json()
    return answer


@contextmanager
def reached(caller: str, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server's address, and the headers of a caller: somebody with one role in the first project, or nobody in particular."""
    if caller == LOCAL:
        with served(folder / "server.log") as server:
            yield server.url, {}
        return
    *_, key = person(HOME, *(role for role in ALL_ROLES if role == caller))
    db.reset()
    guarded = {**os.environ, "EXPUNGE_AUTH": "required", "EXPUNGE_SOURCES": json.dumps([str(folder)]), **UNLIMITED}
    with served(folder / "server.log", guarded) as server:
        yield server.url, bearer(key)
