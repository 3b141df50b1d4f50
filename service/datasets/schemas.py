"""What clients send and see of datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from service.values import Name, Text

MOST_CLASSES = 100_000


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("class names must differ")
    return names


ClassNames = Annotated[list[Name], Field(min_length=2, max_length=MOST_CLASSES), AfterValidator(_distinct)]
"""In index order: class k is the k-th name."""


def _item_id(value: Any) -> Any:
    return str(value) if type(value) is int and 0 <= value < 2**53 else value


ItemId = Annotated[Text, BeforeValidator(_item_id), Field(min_length=1, max_length=512)]
Place = Annotated[Text, Field(min_length=1, max_length=4096)]


class DatasetCreate(BaseModel):
    """Register images and labels where they lie. Every file is read and hashed before the answer."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = Field(default=None, description="for people; default: the folder's name")
    format: Literal["npz", "image_folder"]
    location: Place = Field(description="absolute path, file:// or s3:// URL of a folder, or of one .npz file")
    class_names: ClassNames
    held_out_ids: list[ItemId] = Field(
        default_factory=list, description="items that nothing may train on: only verification looks at them"
    )


class DatasetRead(BaseModel):
    """A registered dataset."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    format: str
    location: str = Field(description="the folder")
    class_names: list[str]
    held_out_count: int
    file_count: int
    digest: str = Field(description="SHA-256 over format, files, class names and held-out ids")
    created_at: datetime
    created_by: str
