"""A registered DDPM of about 17,000 parameters with 48 images of four classes: what the real engine trains in the chaos."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from service import db
from service.files import FileEntry, dataset_digest, tree_digest
from service.tables import Dataset, Model, ModelVersion, new_id
from tests.worker.conductor.house import House
from tests.worker.engine.tiny import NAMES, case, striped

PER_CLASS = 12
HELD_OUT = [str(k * PER_CLASS) for k in range(len(NAMES))]
PARAMS: dict[str, Any] = {"iterations": 10, "batch_size": 4}


def furnish(folder: Path) -> House:
    """Written and registered."""
    weights, data = folder / "weights", folder / "data"
    data.mkdir(parents=True)
    case("ddpm").write(weights)
    images, labels = striped(PER_CLASS)
    np.savez(data / "striped.npz", images=images, labels=labels)
    model_files, data_files = _entries(weights), _entries(data)
    house = House(new_id("mdl"), new_id("dset"), new_id("mver"), weights, data)
    names = list(NAMES)
    digest = dataset_digest(data_files, format="npz", class_names=names, held_out_ids=HELD_OUT)
    with db.transaction() as session:
        at = db.now(session)
        common: dict[str, Any] = {"name": "striped", "class_names": names, "created_at": at, "created_by": "user:local"}
        rows = [f.row() for f in data_files]
        session.add(
            Dataset(
                id=house.dataset_id, format="npz", location=data.as_uri(), held_out_ids=HELD_OUT, files=rows, digest=digest,
                **common,
            )
        )  # fmt: skip
        session.flush()
        session.add(Model(id=house.model_id, family="ddpm", dataset_id=house.dataset_id, current_version=1, **common))
        session.flush()
        session.add(
            ModelVersion(
                id=house.version_id, model_id=house.model_id, number=1, location=weights.as_uri(), forgotten_classes=[],
                files=[f.row() for f in model_files], digest=tree_digest(model_files), created_at=at,
            )
        )  # fmt: skip
    return house


def _entries(folder: Path) -> list[FileEntry]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return [FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256(p.read_bytes()).hexdigest()) for p in paths]
