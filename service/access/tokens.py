"""Bearer tokens of an identity provider: JWTs, signed with a key of its published set.

Source: RFC 7519 (claims), RFC 8725 (algorithms are ours to name, never the token's), RFC 7517 §5 (key set).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import extract_compact

from service.access.errors import BadCredentials
from service.access.scopes import ROLES
from service.config import Settings
from service.errors import Unavailable
from service.tenancy import HOME
from service.values import plain_text

log = logging.getLogger("expunge.access")

FRESH_SECONDS = 600.0
STALE_SECONDS = 86_400.0
"""So long the last set is used when no newer one can be had: the provider may be down for a day."""
PAUSE_SECONDS = 30.0
"""Between two looks at the provider, however many tokens name unknown keys."""
FETCH_SECONDS = 5.0
LONGEST_SUBJECT = 255


@dataclass(frozen=True)
class Claims:
    """What a good token says."""

    issuer: str
    subject: str
    project: str
    roles: tuple[str, ...]


def fetch(url: str) -> Any:
    """The key set's JSON. Raises: httpx2.HTTPError, ValueError."""
    response = httpx2.get(url, timeout=FETCH_SECONDS, follow_redirects=False)
    response.raise_for_status()
    return response.json()


class Tokens:
    """Checks tokens of the one issuer that the settings name."""

    def __init__(
        self, settings: Settings, *, load: Callable[[str], Any] = fetch, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._load, self._clock = load, clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched = self._tried = float("-inf")
        self._claims = jwt.JWTClaimsRegistry(
            leeway=settings.jwt_leeway_seconds,
            iss={"essential": True, "value": settings.jwt_issuer},
            aud={"essential": True, "value": settings.jwt_audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    def verify(self, token: str) -> Claims:
        """Raises: BadCredentials; Unavailable: there is no key set to check with."""
        try:
            kid = extract_compact(token.encode()).headers().get("kid")
            known = jwt.decode(token, self._key(kid), algorithms=list(self._settings.jwt_algorithms))
            self._claims.validate(known.claims)
            return self._read(known.claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.info("token.refused", extra={"kind": type(error).__name__})
            raise BadCredentials from error

    def _read(self, claims: Mapping[str, Any]) -> Claims:
        """Raises: ValueError: a claim is missing, or not of its type."""
        settings = self._settings
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(plain_text(subject)) <= LONGEST_SUBJECT:
            raise ValueError("expected sub to be a short text")
        project = _at(claims, settings.jwt_project_claim) if settings.jwt_project_claim else HOME
        roles = _at(claims, settings.jwt_roles_claim)
        if not isinstance(project, str) or not isinstance(roles, list) or not all(isinstance(one, str) for one in roles):
            raise ValueError("expected a text as project and a list of texts as roles")
        names = settings.jwt_role_map or {role: role for role in ROLES}
        mine = sorted({names[role] for role in roles if role in names})  # a provider has roles of other services, too
        return Claims(settings.jwt_issuer, subject, project, tuple(mine))

    def _key(self, kid: Any) -> Any:
        """The key that a token names; the one there is, where it names none. Raises: ValueError, Unavailable."""
        now = self._clock()
        with self._lock:
            keys = self._keys
            unknown = keys is None or _find(keys, kid) is None
            if (unknown or now - self._fetched > FRESH_SECONDS) and now - self._tried > PAUSE_SECONDS:
                self._refresh(now)
                keys = self._keys
            if keys is None or now - self._fetched > STALE_SECONDS:
                raise Unavailable("the identity provider's keys cannot be had just now")
        found = _find(keys, kid)
        if found is None:
            raise ValueError("the token names a key that is not in the set")
        return found

    def _refresh(self, now: float) -> None:
        self._tried = now
        try:
            self._keys = KeySet.import_key_set(self._load(self._settings.jwt_jwks_url))
        except (httpx2.HTTPError, JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("jwks.not_loaded", extra={"kind": type(error).__name__})
            return
        self._fetched = now


def _find(keys: KeySet, kid: Any) -> Any:
    if kid is None:
        return keys.keys[0] if len(keys.keys) == 1 else None
    return next((key for key in keys.keys if key.kid == kid), None)


def _at(claims: Mapping[str, Any], path: str) -> Any:
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
