"""From a bearer to a caller. What was checked is believed for a few seconds, so a request costs a hash and a look-up.

A key that was revoked, or whose owner was switched off, works no longer than `TRUST_SECONDS` in other processes, and not at all
in the one that did it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from service import tenancy
from service.access import apikeys, service
from service.access.caller import Caller
from service.access.denials import ACCESS
from service.access.errors import Attempt, BadCredentials, Unauthenticated
from service.access.facts import DenialReason
from service.access.scopes import granted
from service.access.tables import ApiKey, Principal
from service.access.tokens import Tokens
from service.audit.leaves import Actor
from service.config import Settings
from service.db import now, reading
from service.edge import writing
from service.errors import Unavailable

log = logging.getLogger("expunge.access")

TRUST_SECONDS = 4.0
REMEMBERED = 1024
USE_EVERY = timedelta(minutes=1)
LONGEST = 8192
"""Of a bearer, in characters: what is longer is no token that anybody means."""


class Authenticator:
    """One process's view of who is who."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = Tokens(settings) if settings.jwt_issuer else None
        self._clock = clock
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._uses = _Uses()

    async def caller(self, authorization: str | None) -> Caller:
        """Who sent this header.

        Raises:
            Unauthenticated: there are no credentials. BadCredentials: they are not good.
            Unavailable: they cannot be checked just now.
        """
        bearer = _bearer(authorization)
        digest = hashlib.sha256(bearer.encode()).digest()
        found = self._known.get(digest)
        if found is not None and self._clock() < found[0]:
            return found[1]
        since = self._clock()  # the look-up may take its time
        caller = await run_in_threadpool(self._check, bearer)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[digest] = (since + TRUST_SECONDS, caller)
        return caller

    def has_seen(self, authorization: str | None) -> bool:
        """True when this header was good lately: it is no guess, whatever it is worth by now."""
        bearer = (authorization or "").partition(" ")[2].strip()
        return hashlib.sha256(bearer.encode(errors="replace")).digest() in self._known

    def forget(self) -> None:
        """Believe nobody until checked again: some key or principal was switched off."""
        self._known.clear()

    def close(self) -> None:
        self._uses.close()

    def _check(self, bearer: str) -> Caller:
        if bearer.startswith(apikeys.PREFIX):
            return self._by_key(bearer)
        if self._tokens is None:
            raise BadCredentials
        claims = self._tokens.verify(bearer)
        who = service.principal_of(claims)
        actor = Actor(kind=who.kind, id=who.id)
        scopes = granted(claims.roles, home=who.project_id == tenancy.HOME)
        if who.deactivated_at is not None:
            raise BadCredentials(attempt=Attempt(actor, who.project_id, "principal_deactivated"))
        return Caller(actor, who.project_id, "token", scopes)

    def _by_key(self, key: str) -> Caller:
        key_id = apikeys.id_of(key)
        if key_id is None:
            raise BadCredentials
        with tenancy.acting(None), reading() as session:
            chosen = select(ApiKey, Principal).join(Principal, Principal.id == ApiKey.principal_id).where(ApiKey.id == key_id)
            found, at = session.execute(chosen).one_or_none(), now(session)
        if found is None:
            raise BadCredentials
        row, who = found
        if not hmac.compare_digest(row.sha256, apikeys.digest(key)):  # whoever this is, it is not the key's owner
            raise BadCredentials(attempt=Attempt(ACCESS, who.project_id, "wrong_secret", key_id=key_id))
        actor = Actor(kind=who.kind, id=who.id)
        if (why := _spent(row, who, at)) is not None:
            raise BadCredentials(attempt=Attempt(actor, who.project_id, why, key_id=key_id))
        if row.last_used_at is None or at - row.last_used_at >= USE_EVERY:
            self._uses.note(key_id, at)
        scopes = granted(who.roles, home=who.project_id == tenancy.HOME)
        return Caller(actor, who.project_id, "api_key", scopes, key_id=key_id)


def _bearer(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() != "bearer" or not value:
        raise Unauthenticated
    if len(value) > LONGEST or not value.isascii():
        raise BadCredentials
    return value


def _spent(row: ApiKey, who: Principal, at: datetime) -> DenialReason | None:
    """Why a key that is right is not good."""
    if row.revoked_at is not None:
        return "revoked"
    if at >= row.expires_at:
        return "expired"
    return None if who.deactivated_at is None else "principal_deactivated"


class _Uses:
    """Writes when a key was last used, behind the request's back: no answer waits for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "expunge-key-uses")
        self._waiting: set[str] = set()
        self._lock = threading.Lock()

    def note(self, key_id: str, at: datetime) -> None:
        with self._lock:
            if key_id in self._waiting:
                return
            self._waiting.add(key_id)
        self._thread.submit(self._write, key_id, at)

    def _write(self, key_id: str, at: datetime) -> None:
        try:
            stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= at - USE_EVERY)
            with writing() as session:
                session.execute(
                    update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=at),
                    execution_options={"synchronize_session": False},
                )
        except (SQLAlchemyError, Unavailable):  # the next use writes it
            log.warning("key.use_not_written", extra={"key_id": key_id}, exc_info=True)
        finally:
            with self._lock:
                self._waiting.discard(key_id)

    def close(self) -> None:
        self._thread.shutdown()
