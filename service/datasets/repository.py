"""Dataset rows. The file list may be long, so only who needs it loads it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import defer

from service.errors import DatasetNotFound
from service.tables import Dataset
from service.values import is_id


def listed() -> Select[Any]:
    """All datasets, without their file lists."""
    return select(Dataset).options(defer(Dataset.files))


def get(session: OrmSession, dataset_id: str) -> Dataset:
    """One dataset, without its file list. Raises: DatasetNotFound."""
    if not is_id(dataset_id):
        raise DatasetNotFound
    found: Dataset | None = session.scalars(listed().where(Dataset.id == dataset_id)).one_or_none()
    if found is None:
        raise DatasetNotFound
    return found


def file_counts(session: OrmSession, ids: list[str]) -> dict[str, int]:
    """Number of files of each dataset, counted by the database (json_array_length is in SQLite and PostgreSQL)."""
    counted = select(Dataset.id, func.json_array_length(Dataset.files)).where(Dataset.id.in_(ids))
    return {row[0]: row[1] for row in session.execute(counted)}
