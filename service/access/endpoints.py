"""/projects, /principals and /api-keys"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select

from service import tenancy
from service.access import service
from service.access.caller import Caller
from service.access.errors import KeyNotFound, PrincipalInactive, PrincipalNotFound, ProjectExists, ProjectNotFound
from service.access.schemas import (
    ApiKeyCreate,
    ApiKeyMade,
    ApiKeyRead,
    PrincipalCreate,
    PrincipalRead,
    ProjectAmendment,
    ProjectCreate,
    ProjectRead,
)
from service.access.tables import ApiKey, Principal, Project
from service.auth import CurrentActor, CurrentCaller, allowed
from service.db import reading
from service.edge import writing
from service.errors import BadRequest, InvalidCursor, Unprocessable, problems
from service.paging import Page, PageQuery, fetch_page, page

router = APIRouter(tags=["access"])


@contextmanager
def _administering(caller: Caller) -> Iterator[None]:
    """An admin of the home project sees to all projects; any other to their own."""
    with tenancy.acting(None if caller.project == tenancy.HOME else caller.project):
        yield


@router.post(
    "/projects",
    dependencies=[allowed("projects:manage")],
    status_code=201,
    response_model=ProjectRead,
    summary="Make a project",
    responses=problems(BadRequest, ProjectExists, Unprocessable),
)
def create_project(wanted: ProjectCreate, actor: CurrentActor) -> ProjectRead:
    """Its datasets, models, requests and entries are seen by its own principals alone."""
    return ProjectRead.model_validate(
        service.create_project(wanted.id, actor=actor, approvals=wanted.approvals), from_attributes=True
    )


@router.patch(
    "/projects/{project_id}",
    dependencies=[allowed("projects:manage")],
    response_model=ProjectRead,
    summary="Say how many must approve a project's requests",
    responses=problems(BadRequest, ProjectNotFound, Unprocessable),
)
def amend_project(project_id: str, wanted: ProjectAmendment, actor: CurrentActor) -> ProjectRead:
    """Of requests that are made from now on. It can ask for more than the installation does, never for less."""
    return ProjectRead.model_validate(
        service.amend_project(project_id, approvals=wanted.approvals, actor=actor), from_attributes=True
    )


@router.get(
    "/projects",
    dependencies=[allowed("projects:manage")],
    response_model=Page[ProjectRead],
    summary="List projects",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_projects(
    query: Annotated[PageQuery, Query()], request: Request, response: Response, caller: CurrentCaller
) -> dict[str, Any]:
    """Oldest first."""
    with _administering(caller), reading() as session:
        found = fetch_page(session, select(Project), (Project.created_at, Project.id), query, "asc")
    return page(found, lambda row: ProjectRead.model_validate(row, from_attributes=True), request, response)


@router.post(
    "/principals",
    dependencies=[allowed("principals:manage")],
    status_code=201,
    response_model=PrincipalRead,
    summary="Make a principal",
    responses=problems(BadRequest, ProjectNotFound, Unprocessable),
)
def create_principal(wanted: PrincipalCreate, caller: CurrentCaller) -> PrincipalRead:
    """A person or a program, with roles. It acts with an API key, which is made next."""
    project = wanted.project_id or caller.project or tenancy.HOME
    with _administering(caller), writing() as session:
        row = service.create_principal(
            session, project_id=project, kind=wanted.kind, name=wanted.name, roles=wanted.roles, actor=caller.actor
        )
        return _principal(row)


@router.get(
    "/principals",
    dependencies=[allowed("principals:manage")],
    response_model=Page[PrincipalRead],
    summary="List principals",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_principals(
    query: Annotated[PageQuery, Query()], request: Request, response: Response, caller: CurrentCaller
) -> dict[str, Any]:
    """Newest first, those who were deactivated among them."""
    with _administering(caller), reading() as session:
        found = fetch_page(session, select(Principal), (Principal.created_at, Principal.id), query, "desc")
    return page(found, _principal, request, response)


@router.delete(
    "/principals/{principal_id}",
    dependencies=[allowed("principals:manage")],
    response_model=PrincipalRead,
    summary="Deactivate a principal",
    responses=problems(PrincipalNotFound),
)
def deactivate_principal(principal_id: str, request: Request, caller: CurrentCaller) -> PrincipalRead:
    """For good: no key and no token of theirs opens anything any more. The row stays: the ledger names it. Safe to repeat."""
    with _administering(caller), writing() as session:
        shown = _principal(service.deactivate(session, principal_id, actor=caller.actor))
    request.app.state.authenticator.forget()
    return shown


@router.post(
    "/api-keys",
    dependencies=[allowed("keys:manage")],
    status_code=201,
    response_model=ApiKeyMade,
    summary="Make an API key",
    responses=problems(BadRequest, PrincipalNotFound, PrincipalInactive, Unprocessable),
)
def create_api_key(wanted: ApiKeyCreate, response: Response, caller: CurrentCaller) -> ApiKeyMade:
    """The answer holds the key; it is kept as a digest, so it cannot be shown again."""
    with _administering(caller), writing() as session:
        owner = service.get_principal(session, wanted.principal_id, lock=True)
        row, key = service.create_key(
            session, principal=owner, name=wanted.name, days=wanted.expires_in_days, actor=caller.actor
        )
        shown = _key(row, owner.project_id)
    response.headers["Cache-Control"] = "no-store"
    return ApiKeyMade(**shown.model_dump(), key=key)


@router.get(
    "/api-keys",
    dependencies=[allowed("keys:manage")],
    response_model=Page[ApiKeyRead],
    summary="List API keys",
    responses=problems(InvalidCursor, Unprocessable),
)
def list_api_keys(
    query: Annotated[PageQuery, Query()], request: Request, response: Response, caller: CurrentCaller
) -> dict[str, Any]:
    """Newest first, those that were revoked or have expired among them."""
    with _administering(caller), reading() as session:
        found = fetch_page(session, select(ApiKey), (ApiKey.created_at, ApiKey.id), query, "desc")
        projects = service.projects_of(session, found.rows)
    return page(found, lambda row: _key(row, projects[row.id]), request, response)


@router.delete(
    "/api-keys/{key_id}",
    dependencies=[allowed("keys:manage")],
    response_model=ApiKeyRead,
    summary="Revoke an API key",
    responses=problems(KeyNotFound),
)
def revoke_api_key(key_id: str, request: Request, caller: CurrentCaller) -> ApiKeyRead:
    """It opens nothing any more: here at once, on other hosts within five seconds. Safe to repeat."""
    with _administering(caller), writing() as session:
        row = service.revoke_key(session, key_id, actor=caller.actor)
        shown = _key(row, service.projects_of(session, [row])[row.id])
    request.app.state.authenticator.forget()
    return shown


def _principal(row: Principal) -> PrincipalRead:
    return PrincipalRead(
        id=row.id,
        project_id=row.project_id,
        kind=row.kind,
        name=row.name,
        roles=row.roles,
        token=row.issuer is not None,
        created_at=row.created_at,
        created_by=row.created_by,
        deactivated_at=row.deactivated_at,
    )


def _key(row: ApiKey, project_id: str) -> ApiKeyRead:
    return ApiKeyRead(
        id=row.id,
        principal_id=row.principal_id,
        project_id=project_id,
        name=row.name,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
