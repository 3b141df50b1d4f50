"""/datasets"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.auth import CurrentActor, allowed
from service.datasets import repository, service
from service.datasets.schemas import DatasetCreate, DatasetRead
from service.db import reading
from service.errors import BadLocation, BadRequest, DatasetNotFound, InvalidCursor, Unprocessable, problems
from service.paging import Page, PageQuery, fetch_page, page
from service.sources import SourceRefused
from service.tables import Dataset

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post(
    "",
    dependencies=[allowed("datasets:create")],
    status_code=201,
    response_model=DatasetRead,
    summary="Register a dataset",
    responses=problems(BadRequest, SourceRefused, BadLocation, Unprocessable),
)
def create_dataset(wanted: DatasetCreate, response: Response, actor: CurrentActor) -> DatasetRead:
    """The files stay where they are; a later change of theirs makes requests fail with `integrity`."""
    created = service.register(wanted, actor)
    response.headers["Location"] = f"/datasets/{created.id}"
    return created


@router.get(
    "",
    dependencies=[allowed("datasets:read")],
    response_model=Page[DatasetRead],
    summary="List datasets",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_datasets(query: Annotated[PageQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """Newest first."""
    with reading() as session:
        found = fetch_page(session, repository.listed(), (Dataset.created_at, Dataset.id), query, "desc")
        counts = repository.file_counts(session, [row.id for row in found.rows])
    return page(found, lambda row: service.read(row, counts[row.id]), request, response)


@router.get(
    "/{dataset_id}",
    dependencies=[allowed("datasets:read")],
    response_model=DatasetRead,
    summary="Read a dataset",
    responses=problems(DatasetNotFound),
)
def read_dataset(dataset_id: str) -> DatasetRead:
    """The dataset, without its file list."""
    with reading() as session:
        row = repository.get(session, dataset_id)
        return service.read(row, repository.file_counts(session, [row.id])[row.id])
