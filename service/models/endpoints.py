"""/models"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service.auth import CurrentActor, allowed
from service.db import reading
from service.edge import writing
from service.errors import (
    BadLocation,
    BadRequest,
    ConcurrentChange,
    DatasetNotFound,
    InvalidCursor,
    ModelNotFound,
    PickleWeights,
    UnknownFamily,
    Unprocessable,
    problems,
)
from service.models import dispositions, repository, service
from service.models.schemas import DispositionCreate, DispositionRead, ModelCreate, ModelRead, ModelSummary
from service.paging import Page, PageQuery, fetch_page, page
from service.sources import SourceRefused
from service.tables import Model

router = APIRouter(prefix="/models", tags=["models"])


@router.post(
    "",
    dependencies=[allowed("models:create")],
    status_code=201,
    response_model=ModelRead,
    summary="Register a model",
    responses=problems(BadRequest, DatasetNotFound, UnknownFamily, PickleWeights, SourceRefused, BadLocation, Unprocessable),
)
def create_model(wanted: ModelCreate, response: Response, actor: CurrentActor) -> ModelRead:
    """The files stay where they are; a later change of theirs makes requests fail with `integrity`."""
    created = service.register(wanted, actor)
    response.headers["Location"] = f"/models/{created.id}"
    return created


@router.get(
    "",
    dependencies=[allowed("models:read")],
    response_model=Page[ModelSummary],
    summary="List models",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_models(query: Annotated[PageQuery, Query()], request: Request, response: Response) -> dict[str, Any]:
    """Newest first, each with the classes its current version has forgotten."""
    with reading() as session:
        found = fetch_page(session, repository.listed(), (Model.created_at, Model.id), query, "desc")
        forgotten = repository.forgotten(session, found.rows)
    return page(found, lambda model: service.summary(model, forgotten[model.id]), request, response)


@router.get(
    "/{model_id}",
    dependencies=[allowed("models:read")],
    response_model=ModelRead,
    summary="Read a model",
    responses=problems(ModelNotFound),
)
def read_model(model_id: str) -> ModelRead:
    """With every version of its lineage and what each has forgotten."""
    with reading() as session:
        return service.read(session, repository.get(session, model_id))


@router.post(
    "/{model_id}/versions/{number}/disposition",
    dependencies=[allowed("models:dispose")],
    status_code=201,
    response_model=DispositionRead,
    summary="Record what became of a version",
    responses=problems(
        ModelNotFound,
        BadRequest,
        dispositions.VersionNotFound,
        dispositions.StillCurrent,
        dispositions.Gone,
        ConcurrentChange,
        Unprocessable,
    ),
)
def record_disposition(
    model_id: str, number: Annotated[int, Path(ge=1, le=2**31 - 1)], wanted: DispositionCreate, actor: CurrentActor
) -> DispositionRead:
    """Withdrawn, quarantined or destroyed: the operator's statement, in the ledger. Nothing is deleted by it."""
    with writing() as session:
        row = dispositions.record(session, model_id, number, wanted.state, actor)
        return DispositionRead(model_id=model_id, number=number, state=row.state, by=row.by, at=row.at)
