"""What may be done, and who may do it: one table. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Scope = Literal[
    "catalogue:read",
    "datasets:read",
    "datasets:create",
    "models:read",
    "models:create",
    "models:dispose",
    "requests:read",
    "requests:create",
    "requests:cancel",
    "requests:operate",
    "compliance:record",
    "checkpoints:read",
    "checkpoints:revoke",
    "checkpoints:approve",
    "webhooks:read",
    "webhooks:manage",
    "ledger:read",
    "ledger:export",
    "ledger:whole",
    "ledger:redact",
    "ledger:approve",
    "private:read",
    "private:shred",
    "private:hold",
    "keys:manage",
    "principals:manage",
    "projects:manage",
]
Role = Literal["requester", "approver", "operator", "auditor", "admin", "worker"]

SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
_READ: tuple[Scope, ...] = ("catalogue:read", "datasets:read", "models:read", "requests:read", "checkpoints:read")


def _scopes(*scopes: Scope) -> frozenset[Scope]:
    return frozenset(scopes)


ROLES: dict[Role, frozenset[Scope]] = {
    "requester": _scopes(*_READ, "requests:create", "requests:cancel"),
    "approver": _scopes(*_READ, "ledger:read", "checkpoints:revoke", "checkpoints:approve", "ledger:approve"),
    "operator": _scopes(
        *_READ,
        *("datasets:create", "models:create", "models:dispose", "requests:cancel", "requests:operate", "compliance:record"),
        *("checkpoints:revoke", "ledger:read", "ledger:redact", "private:shred", "private:hold"),
        *("webhooks:read", "webhooks:manage"),
    ),
    "auditor": _scopes(*_READ, "ledger:read", "ledger:export", "ledger:whole", "private:read", "webhooks:read"),
    "admin": _scopes("catalogue:read", "keys:manage", "principals:manage", "projects:manage"),
    "worker": _scopes(),  # it works on the rows, under its lease and fence: no route is for it
}
"""`requests:operate` is for other people's requests: without it only one's own can be cancelled."""

HOME_ONLY: frozenset[Scope] = frozenset({"ledger:whole", "projects:manage"})
"""They reach beyond one project, so a role gives them in the home project alone."""


def granted(roles: Iterable[str], *, home: bool) -> frozenset[Scope]:
    """Everything that these roles allow. A name that is no role allows nothing.

    Args:
        home: the caller belongs to the home project.
    """
    found = frozenset(scope for role in roles for scope in ROLES.get(role, frozenset()))  # type: ignore[call-overload]
    return found if home else found - HOME_ONLY
