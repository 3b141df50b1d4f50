"""Model and version rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, bindparam, func, select, tuple_
from sqlalchemy.orm import Session as OrmSession

from service.errors import ModelNotFound
from service.requests.wishes import Gone
from service.tables import Model, ModelVersion
from service.values import is_id


def listed() -> Select[Any]:
    """All models."""
    return select(Model)


def get(session: OrmSession, model_id: str, *, lock: bool = False) -> Model:
    """One model. `lock` makes whoever wants to change its lineage wait until the transaction ends.

    Raises:
        ModelNotFound.
    """
    query = _LOCKED if lock else _ONE
    found = session.scalars(query, {"id": model_id}).one_or_none() if is_id(model_id) else None
    if found is None:
        raise ModelNotFound
    return found


_ONE = select(Model).where(Model.id == bindparam("id"))
_LOCKED = _ONE.with_for_update()


def by_id(session: OrmSession, ids: Iterable[str]) -> dict[str, Model]:
    """Models by id."""
    return {m.id: m for m in session.scalars(select(Model).where(Model.id.in_(set(ids))))}


def versions(session: OrmSession, model_id: str) -> list[ModelVersion]:
    """All versions of a model, oldest first."""
    query = select(ModelVersion).where(ModelVersion.model_id == model_id).order_by(ModelVersion.number)
    return list(session.scalars(query))


def forgotten(session: OrmSession, models: Iterable[Model]) -> dict[str, tuple[list[int], int]]:
    """What each model's current version has forgotten, by model id: its classes, and how many single samples."""
    current = [(m.id, m.current_version) for m in models]
    query = select(ModelVersion.model_id, ModelVersion.forgotten_classes, _SAMPLES).where(
        tuple_(ModelVersion.model_id, ModelVersion.number).in_(current)
    )
    return {row[0]: (list(row[1]), row[2]) for row in session.execute(query)} if current else {}


def forgotten_by(session: OrmSession, model: Model) -> Gone:
    """What a model's current version has forgotten."""
    query = select(ModelVersion.forgotten_classes, ModelVersion.forgotten_samples).where(
        ModelVersion.model_id == model.id, ModelVersion.number == model.current_version
    )
    classes, samples = session.execute(query).one()
    return Gone(frozenset(classes), frozenset(samples))


def forgotten_in(version: ModelVersion) -> Gone:
    """What a version has forgotten."""
    return Gone(frozenset(version.forgotten_classes), frozenset(version.forgotten_samples))


def sample_counts(session: OrmSession, model_id: str) -> dict[str, int]:
    """How many single samples each version of a model has forgotten, by version id."""
    query = select(ModelVersion.id, _SAMPLES).where(ModelVersion.model_id == model_id)
    return {row[0]: row[1] for row in session.execute(query)}


_SAMPLES = func.json_array_length(ModelVersion.forgotten_samples)
"""Counted by the database: the list itself may be long."""
