"""What clients send and see of models."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from service.audit.leaves import Disposition
from service.datasets.schemas import ClassNames, Place
from service.values import Name, Text

Key = Annotated[Text, Field(min_length=1, max_length=64)]
"""An id or an API name."""


Prompt = Annotated[Text, Field(min_length=1, max_length=1000)]


class ClassSet(BaseModel):
    """Classes of a model: by index, and by name in the same order."""

    classes: list[int]
    class_names: list[str]

    @classmethod
    def of(cls, indices: list[int], class_names: list[str]) -> Self:
        ordered = sorted(indices)
        return cls(classes=ordered, class_names=[class_names[k] for k in ordered])


class SampleCount(BaseModel):
    """How many single training items."""

    count: int


class ForgetSet(ClassSet):
    """Classes by index and name, and how many single training items besides."""

    samples: SampleCount

    @classmethod
    def of_both(cls, indices: Iterable[int], class_names: list[str], samples: int) -> Self:
        return cls(**ClassSet.of(list(indices), class_names).model_dump(), samples=SampleCount(count=samples))


class File(BaseModel):
    """One file by its path in the folder, size in bytes and SHA-256."""

    path: str
    size: int
    sha256: str


class ModelCreate(BaseModel):
    """Register a model's weights where they lie: safetensors only. Every file is hashed before the answer."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = Field(default=None, description="for people; default: the folder's name")
    family: Key = Field(description="how the model is built; see /catalogue")
    location: Place = Field(description="absolute path, file:// or s3:// URL of the folder")
    dataset_id: Key = Field(description="what it was trained on")
    class_names: ClassNames = Field(description="in the model's index order; the dataset's, exactly")
    prompts: dict[Name, Prompt] | None = Field(
        default=None,
        min_length=1,
        description="by class name, what a text-conditional model is told to draw it; for all classes or for none",
    )


class VersionRead(BaseModel):
    """One set of weights. Version 1 is as registered; each later one is a certified checkpoint."""

    id: str
    number: int
    parent_id: str | None
    checkpoint_id: str | None
    digest: str
    files: list[File]
    forgotten: ForgetSet
    created_at: datetime


class ModelSummary(BaseModel):
    """A registered model, in short."""

    object: Literal["model"] = "model"
    id: str
    name: str
    family: str
    dataset_id: str
    class_names: list[str]
    prompts: dict[str, str] | None
    current_version: int
    forgotten: ForgetSet = Field(description="by the current version")
    created_at: datetime
    created_by: str


class ModelRead(ModelSummary):
    """A registered model with its lineage, oldest version first."""

    versions: list[VersionRead]


class DispositionCreate(BaseModel):
    """What has become of a version that still knows what a later one has forgotten."""

    model_config = ConfigDict(extra="forbid")

    state: Disposition


class DispositionRead(BaseModel):
    """What an operator has said of a version."""

    object: Literal["disposition"] = "disposition"
    model_id: str
    number: int
    state: str
    by: str
    at: datetime
