"""Making and switching off projects, principals and keys. Each change is one transaction with its ledger entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.access import apikeys
from service.access.errors import (
    AdminExists,
    BadCredentials,
    KeyNotFound,
    PrincipalInactive,
    PrincipalNotFound,
    ProjectExists,
    ProjectNotFound,
)
from service.access.facts import (
    ApiKeyCreated,
    ApiKeyRevoked,
    PrincipalCreated,
    PrincipalDeactivated,
    ProjectAmended,
    ProjectCreated,
)
from service.access.scopes import Role
from service.access.tables import ApiKey, Principal, Project
from service.audit import ledger
from service.audit.leaves import LOCAL, Actor, rfc3339
from service.db import now, reading
from service.edge import writing
from service.tables import LedgerEntry, new_id
from service.values import is_id

if TYPE_CHECKING:
    from service.access.tokens import Claims

ADMIN: Role = "admin"
FIRST_KEY_DAYS = 30


def create_project(project_id: str, *, actor: Actor, approvals: int = 0) -> Project:
    """A new tenant. Raises: ProjectExists; also for a name that the ledger has, or had, for the first project."""
    with tenancy.acting(None), writing() as session:
        used = session.scalars(select(LedgerEntry.seq).where(LedgerEntry.tenant == project_id).limit(1)).first() is not None
        if used or project_id == tenancy.tenant(tenancy.HOME) or session.get(Project, project_id) is not None:
            raise ProjectExists
        row = Project(id=project_id, created_at=now(session), created_by=str(actor), approvals=approvals)
        session.add(row)
        session.flush()
        with tenancy.acting(project_id):
            ledger.append(session, ProjectCreated(project_id=project_id, approvals=approvals or None), actor=actor)
    return row


def amend_project(project_id: str, *, approvals: int, actor: Actor) -> Project:
    """Another number of people must approve what is asked for from now on. Raises: ProjectNotFound."""
    with tenancy.acting(None), writing() as session:
        row = session.scalars(select(Project).where(Project.id == project_id).with_for_update()).one_or_none()
        if row is None:
            raise ProjectNotFound
        if row.approvals != approvals:
            row.approvals = approvals
            session.flush()
            with tenancy.acting(project_id):
                ledger.append(session, ProjectAmended(project_id=project_id, approvals=approvals), actor=actor)
    return row


def create_principal(
    session: OrmSession, *, project_id: str, kind: str, name: str, roles: Sequence[Role], actor: Actor
) -> Principal:
    """Somebody new who may act. Raises: ProjectNotFound."""
    row = _principal(session, project_id=project_id, kind=kind, name=name, roles=roles, actor=actor)
    _record_principal(session, row, actor, token=False)
    return row


def _principal(session: OrmSession, *, project_id: str, kind: str, name: str, roles: Sequence[Role], actor: Actor) -> Principal:
    if session.get(Project, project_id) is None:
        raise ProjectNotFound(pointer="/project_id")
    row = Principal(
        id=new_id("prin"),
        project_id=project_id,
        kind=kind,
        name=name,
        roles=sorted(set(roles)),
        created_at=now(session),
        created_by=str(actor),
    )
    session.add(row)
    session.flush()
    return row


def _record_principal(session: OrmSession, row: Principal, actor: Actor, *, token: bool) -> None:
    fact = PrincipalCreated(principal_id=row.id, project_id=row.project_id, kind=row.kind, roles=tuple(row.roles), token=token)
    with tenancy.acting(row.project_id):
        ledger.append(session, fact, actor=actor)


def get_principal(session: OrmSession, principal_id: str, *, lock: bool = False) -> Principal:
    """One principal. Raises: PrincipalNotFound."""
    chosen = select(Principal).where(Principal.id == principal_id)
    found = session.scalars(chosen.with_for_update() if lock else chosen).one_or_none() if is_id(principal_id) else None
    if found is None:
        raise PrincipalNotFound
    return found


def deactivate(session: OrmSession, principal_id: str, *, actor: Actor) -> Principal:
    """They act no more. Doing it again changes nothing. Raises: PrincipalNotFound."""
    row = get_principal(session, principal_id, lock=True)
    if row.deactivated_at is None:
        row.deactivated_at = now(session)
        session.flush()
        with tenancy.acting(row.project_id):
            ledger.append(session, PrincipalDeactivated(principal_id=row.id, project_id=row.project_id), actor=actor)
    return row


def create_key(session: OrmSession, *, principal: Principal, name: str, days: int, actor: Actor) -> tuple[ApiKey, str]:
    """A new key of a principal: its row, and the key itself, which is nowhere else. Raises: PrincipalInactive."""
    row, key = _key(session, principal=principal, name=name, days=days, actor=actor)
    _record_key(session, row, principal, actor)
    return row, key


def _key(session: OrmSession, *, principal: Principal, name: str, days: int, actor: Actor) -> tuple[ApiKey, str]:
    if principal.deactivated_at is not None:
        raise PrincipalInactive
    made, at = apikeys.make(), now(session)
    row = ApiKey(
        id=made.id,
        principal_id=principal.id,
        name=name,
        sha256=apikeys.digest(made.key),
        created_at=at,
        created_by=str(actor),
        expires_at=at + timedelta(days=days),
    )
    session.add(row)
    session.flush()
    return row, made.key


def _record_key(session: OrmSession, row: ApiKey, principal: Principal, actor: Actor, *, bootstrap: bool = False) -> None:
    fact = ApiKeyCreated(
        key_id=row.id,
        principal_id=principal.id,
        project_id=principal.project_id,
        expires_at=rfc3339(row.expires_at),
        bootstrap=bootstrap,
    )
    with tenancy.acting(principal.project_id):
        ledger.append(session, fact, actor=actor)


def revoke_key(session: OrmSession, key_id: str, *, actor: Actor) -> ApiKey:
    """It opens nothing any more. Doing it again changes nothing. Raises: KeyNotFound."""
    chosen = select(ApiKey).where(ApiKey.id == key_id).with_for_update()
    row = session.scalars(chosen).one_or_none() if apikeys.KEY_ID.fullmatch(key_id) else None
    if row is None:
        raise KeyNotFound
    if row.revoked_at is None:
        owner = session.get_one(Principal, row.principal_id)
        row.revoked_at = now(session)
        session.flush()
        fact = ApiKeyRevoked(key_id=row.id, principal_id=owner.id, project_id=owner.project_id)
        with tenancy.acting(owner.project_id):
            ledger.append(session, fact, actor=actor)
    return row


def projects_of(session: OrmSession, rows: Iterable[ApiKey]) -> dict[str, str]:
    """The project of each of these keys, by the key's id."""
    ids = [row.id for row in rows]
    chosen = select(ApiKey.id, Principal.project_id).join(Principal, Principal.id == ApiKey.principal_id)
    return {row[0]: row[1] for row in session.execute(chosen.where(ApiKey.id.in_(ids)))}


def bootstrap(name: str, *, actor: Actor = LOCAL) -> tuple[ApiKey, str]:
    """The first admin of the installation, and a key. Raises: AdminExists: one has a key that still opens."""
    with tenancy.acting(None), writing() as session:
        session.scalars(select(Project).where(Project.id == tenancy.HOME).with_for_update()).one()  # one at a time
        at = now(session)
        if any(ADMIN in roles for roles in session.scalars(_roles_with_keys(at))):
            raise AdminExists
        who = _principal(session, project_id=tenancy.HOME, kind="user", name=name, roles=[ADMIN], actor=actor)
        row, key = _key(session, principal=who, name="bootstrap", days=FIRST_KEY_DAYS, actor=actor)
        _record_principal(session, who, actor, token=False)  # after both rows: the head is the last lock
        _record_key(session, row, who, actor, bootstrap=True)
    return row, key


def _roles_with_keys(at: datetime) -> Select[Any]:
    opens = ApiKey.revoked_at.is_(None), ApiKey.expires_at > at, Principal.deactivated_at.is_(None)
    mine = Principal.project_id == tenancy.HOME
    return select(Principal.roles).join(ApiKey, ApiKey.principal_id == Principal.id).where(mine, *opens)


def principal_of(claims: Claims) -> Principal:
    """Whose token it is. One who comes for the first time is written down: the ledger knows people by ids, never by what their
    provider calls them.

    Raises:
        BadCredentials: there is no such project.
    """
    chosen = select(Principal).where(
        Principal.project_id == claims.project, Principal.issuer == claims.issuer, Principal.subject == claims.subject
    )
    with tenancy.acting(None), reading() as session:
        if (found := session.scalars(chosen).one_or_none()) is not None:
            return found
        if session.get(Project, claims.project) is None:
            raise BadCredentials
    try:
        return _first_seen(claims)
    except IntegrityError:  # at the same time, by another request
        with tenancy.acting(None), reading() as session:
            return session.scalars(chosen).one()


def _first_seen(claims: Claims) -> Principal:
    with tenancy.acting(None), writing() as session:
        row = Principal(
            id=new_id("prin"),
            project_id=claims.project,
            kind="user",
            name=claims.subject[:200],
            roles=[],
            issuer=claims.issuer,
            subject=claims.subject,
            created_at=now(session),
            created_by="",
        )
        actor = Actor(kind="user", id=row.id)
        row.created_by = str(actor)
        session.add(row)
        session.flush()
        _record_principal(session, row, actor, token=True)
    return row
