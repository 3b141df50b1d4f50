"""People with keys, in projects of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient

from service import tenancy
from service.access import service
from service.access.scopes import ROLES, Role
from service.access.tables import Project
from service.audit.leaves import LOCAL
from service.db import reading
from service.edge import writing

ALL_ROLES: tuple[Role, ...] = tuple(ROLES)


def project(name: str) -> str:
    """A project, made unless it is there."""
    with reading() as session:
        known = session.get(Project, name) is not None
    if not known:
        service.create_project(name, actor=LOCAL)
    return name


def person(project_id: str, *roles: Role, days: int = 90) -> tuple[str, str, str]:
    """Somebody new: principal's id, key's id, key."""
    with tenancy.acting(None), writing() as session:
        who = service.create_principal(session, project_id=project_id, kind="user", name="x", roles=roles, actor=LOCAL)
    with tenancy.acting(None), writing() as session:
        owner = service.get_principal(session, who.id)
        row, key = service.create_key(session, principal=owner, name="k", days=days, actor=LOCAL)
    return who.id, row.id, key


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def calling(client: TestClient, key: str | None) -> Iterator[TestClient]:
    """From here on the client shows this key; None: none."""
    before: Any = client.headers.get("Authorization")
    client.headers.pop("Authorization", None)
    if key:
        client.headers["Authorization"] = f"Bearer {key}"
    try:
        yield client
    finally:
        client.headers.pop("Authorization", None)
        if before:
            client.headers["Authorization"] = before
