"""A furnished house for tests: a registered model and dataset on disk and in the rows, requests on it, a room to run them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select, update

from service import db
from service.audit.logsigner import open_folder
from service.certificates.dsse import payload_of
from service.certificates.signing import KeySigner, load_or_create_key
from service.config import Settings, get_settings
from service.files import FileEntry, dataset_digest, tree_digest
from service.storage import get_store
from service.tables import Attempt, Checkpoint, Dataset, LedgerEntry, Model, ModelVersion, RequestEvent, UnlearnRequest, new_id
from worker.conductor import identity, pipeline
from worker.conductor.launch import Stage
from worker.conductor.pipeline import Room
from worker.contract import JobDirectory

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")
CLASSES = [str(k) for k in range(10)]
POLICY = {"name": "test-v1", "checks": [{"verifier": name, "params": {}} for name in ("forget_rate", "sample_membership")]}
WEIGHTS = {"config.json": b'{"a": 1}', "unet/model.safetensors": b"", "model.safetensors": b"weights " * 1000}


def fake_engine(stage: Stage, job: JobDirectory, ranks: int) -> list[str]:
    return [sys.executable, str(FAKE_ENGINE), stage, str(job.root)]


@dataclass(frozen=True)
class House:
    """Where a registered model is."""

    model_id: str
    dataset_id: str
    version_id: str
    weights: Path
    data: Path


def _write(folder: Path, files: dict[str, bytes]) -> list[FileEntry]:
    found = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
    return sorted(found)


def furnish(folder: Path, held_out: tuple[str, ...] = ("1", "2")) -> House:
    """A model of ten classes with its dataset, registered. Item k is of class k % 10."""
    weights, data = folder / "weights", folder / "data"
    model_files = _write(weights, WEIGHTS)
    data_files = _write(data, {"digits.npz": npz(30)})
    house = House(new_id("mdl"), new_id("dset"), new_id("mver"), weights, data)
    with db.transaction() as session:
        at = db.now(session)
        common: dict[str, Any] = {"name": "digits", "class_names": CLASSES, "created_at": at, "created_by": "user:local"}
        session.add(
            Dataset(
                id=house.dataset_id, format="npz", location=data.as_uri(), held_out_ids=list(held_out),
                files=[f.row() for f in data_files],
                digest=dataset_digest(data_files, format="npz", class_names=CLASSES, held_out_ids=list(held_out)), **common,
            )
        )  # fmt: skip
        session.flush()
        session.add(Model(id=house.model_id, family="ddpm", dataset_id=house.dataset_id, current_version=1, **common))
        session.flush()
        session.add(
            ModelVersion(
                id=house.version_id, model_id=house.model_id, number=1, location=weights.as_uri(),
                files=[f.row() for f in model_files], digest=tree_digest(model_files), forgotten_classes=[], created_at=at,
            )
        )  # fmt: skip
    return house


def npz(count: int) -> bytes:
    """A dataset of so many items of ten classes, numbered; its images are nobody's."""
    written = io.BytesIO()
    np.savez(written, labels=np.arange(count) % len(CLASSES), images=np.zeros((count, 1, 1), dtype=np.uint8))
    return written.getvalue()


def furnish_proxy(folder: Path) -> tuple[str, Path]:
    """Another dataset, registered: its id, and where it lies."""
    files = _write(folder, {"letters.npz": b"other images"})
    names, dataset_id = ["a", "b"], new_id("dset")
    with db.transaction() as session:
        session.add(
            Dataset(
                id=dataset_id, name="letters", format="npz", location=folder.as_uri(), class_names=names, held_out_ids=["0"],
                files=[f.row() for f in files], created_at=db.now(session), created_by="user:local",
                digest=dataset_digest(files, format="npz", class_names=names, held_out_ids=["0"]),
            )
        )  # fmt: skip
    return dataset_id, folder


def ask(
    house: House,
    *classes: int,
    samples: tuple[str, ...] = (),
    retain: dict[str, Any] | None = None,
    method: str = "sfron",
    attempts: int = 1,
    **params: Any,
) -> str:
    """A queued request, for class 3 unless it says otherwise; `params` steer the fake engine."""
    request_id = new_id("ureq")
    with db.transaction() as session:
        at = db.now(session)
        session.add(
            UnlearnRequest(
                id=request_id, model_id=house.model_id, method=method, params=params, seed=7, on_conflict="queue_after",
                forget_classes=list(classes or (() if samples else (3,))), forget_samples=list(samples),
                policy=POLICY if attempts == 1 else {**POLICY, "attempts": attempts},
                retain=retain, client_metadata={}, status="queued", not_before=at, created_at=at, created_by="user:local",
            )
        )  # fmt: skip
    time.sleep(0.002)  # created_at of the next one is later: SQLite's clock has milliseconds
    return request_id


def ask_auto(house: House, *recipes: tuple[str, dict[str, Any]]) -> str:
    """A queued request for class 3 that tries these methods in turn, each with what steers the fake engine."""
    ladder = [{"method": method, "params": params} for method, params in recipes]
    return ask(house, method="auto", attempts=len(ladder), ladder=ladder)


def make_room(**changes: Any) -> Room:
    """A room with the fake engine and a signer in this process; quick settings unless `changes` says otherwise."""
    quick = {"lease_seconds": 10.0, "renew_seconds": 0.2, "stop_grace_seconds": 3.0, "max_attempts": 2}
    settings: Settings = get_settings().model_copy(update=quick | changes)
    store = get_store(settings)
    log = open_folder(settings.log_folder, settings.log_keys_file, settings.ledger_origin)
    signer = KeySigner(load_or_create_key(settings.key_file, settings.public_key_file), store, log.origin)
    return Room(settings, store, signer, identity.owner(), command=fake_engine)


def request(request_id: str) -> UnlearnRequest:
    with db.reading() as session:
        return session.get_one(UnlearnRequest, request_id)


def request_of(checkpoint_id: str) -> str:
    """Which request published it."""
    with db.reading() as session:
        return session.get_one(Checkpoint, checkpoint_id).request_id


def attempts(request_id: str) -> list[Attempt]:
    with db.reading() as session:
        chosen = select(Attempt).where(Attempt.request_id == request_id).order_by(Attempt.fence)
        return list(session.execute(chosen).scalars())


def events(request_id: str) -> list[str]:
    with db.reading() as session:
        chosen = select(RequestEvent.type).where(RequestEvent.request_id == request_id).order_by(RequestEvent.id)
        return [kind.removeprefix("unlearning_request.") for kind in session.execute(chosen).scalars()]


def actions(request_id: str) -> list[str]:
    """The ledger's entries about a request, in order."""
    with db.reading() as session:
        chosen = select(LedgerEntry.action).where(LedgerEntry.request_id == request_id).order_by(LedgerEntry.seq)
        return list(session.execute(chosen).scalars())


def seq_of(request_id: str, action: str) -> int:
    """Where the one entry of this action stands in the ledger."""
    with db.reading() as session:
        chosen = select(LedgerEntry.seq).where(LedgerEntry.request_id == request_id, LedgerEntry.action == action)
        return session.scalars(chosen).one()


def facts(request_id: str, action: str) -> dict[str, Any]:
    """What the ledger's one entry of this action says of a request."""
    (said,) = all_facts(request_id, action)
    return said


def all_facts(request_id: str, action: str) -> list[dict[str, Any]]:
    """What each entry of this action says of a request, in order."""
    with db.reading() as session:
        chosen = (
            select(LedgerEntry.leaf)
            .where(LedgerEntry.request_id == request_id, LedgerEntry.action == action)
            .order_by(LedgerEntry.seq)
        )
        return [json.loads(leaf)["public"] for leaf in session.execute(chosen).scalars()]


def certificate(request_id: str) -> dict[str, Any]:
    """The predicate of what a request published."""
    with db.reading() as session:
        checkpoint = session.execute(select(Checkpoint).where(Checkpoint.request_id == request_id)).scalar_one()
        predicate: dict[str, Any] = json.loads(payload_of(checkpoint.certificate))["predicate"]
        return predicate


def withdraw(request_id: str) -> None:
    """What the API does when somebody cancels a running request."""
    with db.transaction() as session:
        row = session.get_one(UnlearnRequest, request_id, with_for_update=True)
        row.cancel_requested_at = db.now(session)
        row.status = "cancelled" if row.status == "queued" else "cancelling"


def make_due(request_id: str) -> None:
    """Skip the pause after a dead attempt."""
    change(request_id, not_before=timedelta(0))


def expire_lease(request_id: str) -> None:
    change(request_id, lease_expires_at=timedelta(seconds=-1))


def change(request_id: str, **times: timedelta) -> None:
    with db.transaction() as session:
        at = db.now(session)
        values = {name: at + offset for name, offset in times.items()}
        session.execute(update(UnlearnRequest).where(UnlearnRequest.id == request_id).values(**values))


def until(holds: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait for something to become true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := holds():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def start(request_id: str, room: Room, background: list[threading.Thread]) -> tuple[list[str | None], list[int]]:
    """Run in a thread until the engine is at work; the result to be, and the pids of agent and rank."""
    outcome: list[str | None] = []
    thread = threading.Thread(target=lambda: outcome.append(pipeline.run(request_id, room)))
    background.append(thread)
    thread.start()
    note = room.settings.jobs_dir / request_id / "1" / "rank.pid"
    pids = until(lambda: note.exists() and note.read_text().split())
    return outcome, [int(p) for p in pids]


def is_running(pid: int) -> bool:
    """True while a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
