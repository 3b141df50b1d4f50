"""Faults, each of which mends itself after a while, at moments that a seed decides."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.scenarios.databases import locked
from tests.faults.stack import Stack

HOUR = 3600


@dataclass
class Breaker:
    """Breaks one stack."""

    stack: Stack
    rng: random.Random
    longest_cut: float
    """Seconds that the broker is cut off."""
    done: Counter[str] = field(default_factory=Counter)
    _mending: list[threading.Timer] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    """What is broken now, and cannot be broken again before it is whole."""

    @property
    def faults(self) -> dict[str, tuple[int, Callable[[], bool]]]:
        """By name: how often beside others, and what it does. False: there was nothing to break."""
        common: dict[str, tuple[int, Callable[[], bool]]] = {
            "kill_api": (6, lambda: self._kill("serve")),
            "kill_worker": (8, lambda: self._kill("worker")),
            "kill_engine": (8, self._kill_engine),
            "kill_signer": (3, lambda: self._kill("signer")),
            "freeze_worker": (3, self._freeze_worker),
            "job_disk_full": (3, lambda: self._arm("job.write=full*1")),
            "store_refuses": (3, lambda: self._arm("store.write=refused*1")),
            "store_away": (2, lambda: self._arm("store.publish=away*2")),
            "die_publishing": (3, lambda: self._arm("publish.commit=die")),
            "die_published": (3, lambda: self._arm("publish.committed=die")),
            "clock": (3, self._clock),
            "lose_bells": (4, self._lose_bells),
        }
        if self.stack.embedded:
            return common | {"kill_supervisor": (2, lambda: self._kill("up")), "lock_database": (3, self._lock)}
        servers = self.stack.servers
        return common | {
            "kill_redis": (4, lambda: self._down("redis", servers.redis.kill, servers.redis.start, self.rng.uniform(0.2, 5))),
            "full_redis": (
                2,
                lambda: self._down("redis", lambda: servers.redis.limit(1), lambda: servers.redis.limit(0), 4),
            ),
            "cut_redis": (1, self._cut),
            "restart_postgres": (
                3,
                lambda: self._down("postgres", servers.postgres.kill, servers.postgres.start, self.rng.uniform(0.2, 5)),
            ),
        }

    def once(self) -> None:
        """One fault, some of which pass by without effect: those are not counted."""
        faults = self.faults
        names = list(faults)
        name = self.rng.choices(names, [faults[n][0] for n in names])[0]
        if faults[name][1]():
            self.done[name] += 1

    def mend(self) -> None:
        """Wait until everything is whole again."""
        for timer in self._mending:
            timer.join()
        self.stack.arm("")

    # ---------------------------------------------------------------------------------------------------------- each one

    def _kill(self, role: str) -> bool:
        return self.stack.kill(role, self.rng.randrange(4)) is not None

    def _kill_engine(self) -> bool:
        found = self.stack.engines()
        if not found:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(found).pid, signal.SIGKILL)
        return True

    def _freeze_worker(self) -> bool:
        if (pid := self.stack.kill("worker", self.rng.randrange(4), signal.SIGSTOP)) is None:
            return False

        def thaw() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self._later(self.stack.lease_seconds * self.rng.uniform(1.2, 2), thaw)
        return True

    def _arm(self, points: str) -> bool:
        if self.stack.armed():
            return False
        self.stack.arm(points)
        return True

    def _clock(self) -> bool:
        ahead = self.rng.choice((HOUR, -HOUR))
        self.stack.order(f"clock {ahead}", self.rng.randrange(4))
        return True

    def _lose_bells(self) -> bool:
        if "redis" in self._busy:
            return False
        self.stack.lose_bells()
        return True

    def _cut(self) -> bool:
        wire = self.stack.wire
        assert wire is not None
        return self._down("wire", wire.cut, wire.mend, self.longest_cut)

    def _lock(self) -> bool:
        def hold() -> None:
            with locked(self.stack):
                time.sleep(self.rng.uniform(0.5, 4))

        return self._down("database", lambda: None, hold, 0)

    def _down(self, what: str, break_: Callable[[], None], mend: Callable[[], None], seconds: float) -> bool:
        if what in self._busy:
            return False
        self._busy.add(what)
        break_()

        def whole() -> None:
            mend()
            self._busy.discard(what)

        self._later(seconds, whole)
        return True

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, mend)
        timer.daemon = True
        timer.start()
        self._mending.append(timer)
