"""Who is turned away, and why. The answer says as little as a client needs; the ledger says more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.access.facts import DenialReason
from service.access.scopes import Scope
from service.audit.leaves import Actor
from service.errors import Conflict, NotFound, ServiceError

REALM = 'Bearer realm="expunge"'


@dataclass(frozen=True)
class Attempt:
    """Whom a refusal can be laid to: a key that there is, or a caller who is known. Others leave no entry."""

    actor: Actor
    project: str
    reason: DenialReason
    key_id: str | None = None
    scope: Scope | None = None


class Refused(ServiceError):
    """Common to both refusals: what the ledger is to hold of it, and the header that RFC 6750 §3 wants."""

    def __init__(self, detail: str = "", *, attempt: Attempt | None = None, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.attempt = attempt

    @property
    def challenge(self) -> str:
        """`WWW-Authenticate`."""
        return REALM


class Unauthenticated(Refused):
    """No credentials, or none that are good. Why they are not good is not said."""

    status, code, title = 401, "unauthenticated", "Credentials are needed"


class BadCredentials(Unauthenticated):
    """Credentials came, and they are unknown, wrong, expired, revoked or their owner's no more."""

    title = "The credentials are not valid"

    @property
    def challenge(self) -> str:
        return f'{REALM}, error="invalid_token"'


class Forbidden(Refused):
    """The caller is known, and has no role that allows it."""

    status, code, title = 403, "forbidden", "The caller's roles do not allow this"

    @property
    def challenge(self) -> str:
        scope = self.attempt.scope if self.attempt else None
        return f'{REALM}, error="insufficient_scope"' + (f', scope="{scope}"' if scope else "")


class PrincipalNotFound(NotFound):
    """No principal has this id."""

    code, title = "principal_not_found", "No principal has this id"


class KeyNotFound(NotFound):
    """No API key has this id."""

    code, title = "api_key_not_found", "No API key has this id"


class ProjectNotFound(NotFound):
    """No project has this id."""

    code, title = "project_not_found", "No project has this id"


class ProjectExists(Conflict):
    """The name is taken."""

    code, title = "project_exists", "A project of this name exists"


class PrincipalInactive(Conflict):
    """They were switched off, for good."""

    code, title = "principal_inactive", "The principal was deactivated"


class AdminExists(Conflict):
    """The first admin key was made before."""

    code, title = "admin_exists", "There is an admin with a valid key: let them make the next one"
