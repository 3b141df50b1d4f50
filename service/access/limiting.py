"""How often somebody may call: limits of reads and of writes for each principal, and of failed credentials for each address.

Counted in sliding windows, in the broker's Redis where there is one, so that all API processes count together; else, and while
that Redis is away or slow, in this process alone. A call never waits longer than `PATIENCE_SECONDS` for it, and after one that
did, nobody asks it for `AWAY_SECONDS`, and then one call at a time.

Source: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4, for the two headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from service.config import Settings
from service.errors import ServiceError
from service.telemetry.http import RATE_LIMIT_STORE_ERRORS, RATE_LIMITED

if TYPE_CHECKING:  # its import takes longer than all of ours, and many installations have no limits
    from limits import RateLimitItem
    from limits.aio.strategies import RateLimiter
    from redis.asyncio import ConnectionPool

log = logging.getLogger("expunge.access")

Kind = Literal["reads", "writes", "denied"]
READING = frozenset({"GET", "HEAD", "OPTIONS"})
PATIENCE_SECONDS = 0.25
AWAY_SECONDS = 5.0
IPV6_NETWORK = 64
"""Bits: what one household or host has at its disposal."""


class RateLimited(ServiceError):
    """Too many calls in too short a time; `Retry-After` says when the next one may be taken."""

    status, code, title, retryable, retry_after = 429, "rate_limited", "Too many calls in too short a time", True, 1


@dataclass(frozen=True)
class Window:
    """One limit: calls in so many seconds, how many of them are left, and in how many seconds there will be more."""

    quota: int
    seconds: int
    remaining: int
    reset: int


@dataclass(frozen=True)
class Standing:
    """How a call stands with the limits of a kind."""

    kind: Kind
    windows: tuple[Window, ...]
    within: bool

    def headers(self) -> dict[str, str]:
        """What the answer says of it."""
        names = [self.kind if len(self.windows) == 1 else f"{self.kind}-{w.seconds}" for w in self.windows]
        named = list(zip(names, self.windows, strict=True))
        said = {
            "RateLimit-Policy": ", ".join(f'"{name}";q={w.quota};w={w.seconds}' for name, w in named),
            "RateLimit": ", ".join(f'"{name}";r={w.remaining};t={w.reset}' for name, w in named),
        }
        return said if self.within else {**said, "Retry-After": str(self.retry_after)}

    @property
    def retry_after(self) -> int:
        """Seconds until every limit that is reached has room again."""
        return max([1, *(w.reset for w in self.windows if w.remaining == 0)])


Question = Callable[["RateLimiter"], Awaitable[Standing]]


class Limits:
    """One process's view of who has called how often."""

    def __init__(self, settings: Settings) -> None:
        texts: dict[Kind, str] = {kind: settings.rate_limit(kind) for kind in ("reads", "writes", "denied")}
        self._items = {kind: parsed(text) for kind, text in texts.items() if text}
        self._counts = _Counts(settings.broker_url.get_secret_value()) if self._items else None

    async def look(self, kind: Kind, who: str) -> Standing | None:
        """How somebody stands, without counting; None: there is no such limit."""
        return await self._standing(kind, who, count=False)

    async def count(self, kind: Kind, who: str) -> Standing | None:
        """Count a call, unless it is over the limit; None: there is no such limit."""
        return await self._standing(kind, who, count=True)

    async def close(self) -> None:
        if self._counts is not None:
            await self._counts.close()

    async def _standing(self, kind: Kind, who: str, *, count: bool) -> Standing | None:
        items = self._items.get(kind)
        if items is None or self._counts is None:
            return None

        async def ask(limiter: RateLimiter) -> Standing:
            return await _ask(limiter, kind, items, who, count=count)

        standing = await self._counts.ask(ask)
        if not standing.within:
            RATE_LIMITED.labels(kind).inc()
        return standing


async def _ask(
    limiter: RateLimiter, kind: Kind, items: tuple[RateLimitItem, ...], who: str, *, count: bool
) -> Standing:  # fmt: skip
    within, windows = True, []
    for item in items:
        if within:  # a call that is refused is not counted by the limits that come after
            within = await (limiter.hit if count else limiter.test)(item, kind, who)
            refused = not within
        else:
            refused = False
        stats = await limiter.get_window_stats(item, kind, who)
        reset = max(0, math.ceil(stats.reset_time - time.time()))
        windows.append(Window(item.amount, item.get_expiry(), 0 if refused else stats.remaining, reset))
    return Standing(kind, tuple(windows), within)


def parsed(text: str) -> tuple[RateLimitItem, ...]:
    """Limits in the notation of the library `limits`: `600/minute`, or several with `;`. Raises: ValueError."""
    from limits import parse_many

    return tuple(parse_many(text))


@lru_cache(maxsize=1024)
def place_of(address: str | None) -> str:
    """Where a call comes from, as it is counted: an IPv4 address, or an IPv6 network, of which one host has all."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return "nowhere"  # a socket file, or a test
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, IPV6_NETWORK), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)


class _Counts:
    """Redis, as long as it answers in time, and this process's memory."""

    def __init__(self, broker_url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        from limits.aio.storage import MemoryStorage
        from limits.aio.strategies import SlidingWindowCounterRateLimiter

        self._clock = clock
        self._own: RateLimiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._pool: ConnectionPool | None = None
        self._shared: RateLimiter | None = None
        self._away_until: float | None = None
        if broker_url.startswith(("redis://", "rediss://")):
            self._pool, self._shared = _in_redis(broker_url)

    async def ask(self, question: Question) -> Standing:
        if self._shared is None:
            return await question(self._own)
        if self._away_until is not None:
            if self._clock() < self._away_until:
                return await question(self._own)
            self._away_until = self._clock() + AWAY_SECONDS  # the others do not wait for what this call finds
        answer = await self._asked_in_time(self._shared, question)
        return await question(self._own) if answer is None else answer

    async def _asked_in_time(self, shared: RateLimiter, question: Question) -> Standing | None:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await question(shared)
        except (RedisError, OSError, TimeoutError) as error:
            RATE_LIMIT_STORE_ERRORS.inc()
            self._away_until = self._clock() + AWAY_SECONDS
            log.warning("rate_limit.store_away", extra={"kind": type(error).__name__, "seconds": AWAY_SECONDS})
            return None
        if self._away_until is not None:
            log.info("rate_limit.store_back")
            self._away_until = None
        return answer

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.disconnect()


def _in_redis(url: str) -> tuple[ConnectionPool, RateLimiter]:
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import SlidingWindowCounterRateLimiter
    from redis.asyncio import ConnectionPool

    # Celery writes these as Python's ssl does; redis writes them in lower case, without CERT_.
    plain = re.sub(r"ssl_cert_reqs=CERT_(\w+)", lambda found: f"ssl_cert_reqs={found[1].lower()}", url)
    pool = ConnectionPool.from_url(plain)
    storage = RedisStorage(
        "async+redis://",
        implementation="redispy",
        key_prefix="expunge-calls",
        connection_pool=pool,  # type: ignore[arg-type]  # as its documentation says
    )
    return pool, SlidingWindowCounterRateLimiter(storage)
