"""Rows of the registry: datasets, models, versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import JSON

from service import tenancy
from service.tables.base import Row


class Dataset(Row):
    """Images and labels that models were trained on; files stay where they are, their digests are kept."""

    __tablename__ = "dataset"
    __table_args__ = (
        Index("ix_dataset_project", "project_id", "created_at", "id"),
        Index("ix_dataset_created", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    format: Mapped[str] = mapped_column(String(32))
    location: Mapped[str] = mapped_column(Text)
    class_names: Mapped[list[Any]]
    held_out_ids: Mapped[list[Any]]
    files: Mapped[list[Any]]
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class Model(Row):
    """A registered model: a lineage of versions, of which one is current."""

    __tablename__ = "model"
    __table_args__ = (
        Index("ix_model_project", "project_id", "created_at", "id"),
        Index("ix_model_created", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    family: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    class_names: Mapped[list[Any]]
    prompts: Mapped[list[Any] | None] = mapped_column(JSON(), comment="what a text-conditional model calls each class")
    current_version: Mapped[int]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(200))
    project_id: Mapped[str] = mapped_column(String(64), default=tenancy.project_or_home, server_default=text("'default'"))


class ModelVersion(Row):
    """One set of weights of a lineage. Number 1 is as registered; each later one is a published checkpoint."""

    __tablename__ = "model_version"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.id"))
    number: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("model_version.id"))
    checkpoint_id: Mapped[str | None] = mapped_column(String(64))
    location: Mapped[str | None] = mapped_column(Text, comment="of a registered version; a published one is in the store")
    files: Mapped[list[Any]]
    digest: Mapped[str] = mapped_column(String(64))
    forgotten_classes: Mapped[list[Any]]
    forgotten_samples: Mapped[list[Any]] = mapped_column(default=list, deferred=True)
    created_at: Mapped[datetime]
