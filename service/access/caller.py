"""Who makes a call, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.access.errors import Attempt, Forbidden
from service.access.facts import DenialReason
from service.access.scopes import SCOPES, Scope
from service.audit.leaves import LOCAL, Actor
from service.tenancy import HOME

Method = Literal["local", "api_key", "token"]


@dataclass(frozen=True)
class Caller:
    """A principal, as it was when its credentials were checked."""

    actor: Actor
    project: str | None
    """None: the local caller, who is the operator."""
    method: Method
    scopes: frozenset[Scope]
    key_id: str | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def require(self, scope: Scope) -> None:
        """Raises: Forbidden."""
        if scope not in self.scopes:
            raise Forbidden(attempt=self.attempt("role_missing", scope))

    def require_own(self, made_by: str, scope: Scope) -> None:
        """What somebody else made needs this scope. Raises: Forbidden."""
        if made_by != str(self.actor) and scope not in self.scopes:
            raise Forbidden("somebody else made it", attempt=self.attempt("not_own", scope))

    def attempt(self, reason: DenialReason, scope: Scope) -> Attempt:
        return Attempt(self.actor, self.project or HOME, reason, key_id=self.key_id, scope=scope)


LOCAL_CALLER = Caller(actor=LOCAL, project=None, method="local", scopes=SCOPES)
