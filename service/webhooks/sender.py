"""The sender: takes what is due, signs it, sends it, writes down how it went. A thread of every worker; many are as good as
one.

It keeps no transaction open while it waits for somebody's server, and waits for at most one message an endpoint, so an endpoint
that hangs delays nobody's messages but its own. Projects take turns.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from sqlalchemy.exc import OperationalError

from service import db
from service.audit import vault
from service.config import Settings
from service.webhooks import deliveries, guard, signing
from service.webhooks.deliveries import Outcome, Taken

log = logging.getLogger("expunge.webhooks")

AT_ONCE = 8
LOOK_SECONDS = 0.5
PRUNE_SECONDS = 3600.0
Post = Callable[[str, dict[str, str], bytes], int]
"""Sends a body; returns the status. Raises: BadAddress, SendFailed."""


@dataclass
class Sender:
    """One process's."""

    settings: Settings
    post: Post | None = None
    """None: over the network, guarded."""
    sending: dict[Future[None], Taken] = field(default_factory=dict)
    """What is on its way."""
    prune_at: float = 0.0

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set, then let what is on its way arrive."""
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as pool:
            while not stop.is_set():
                try:
                    self._fill(pool)
                    self._prune()
                except OperationalError as error:  # the rows will still be there when the database is
                    log.warning("webhooks.waiting", extra={"kind": type(error).__name__})
                if self.sending:
                    wait(self.sending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
                else:
                    stop.wait(LOOK_SECONDS)
                self._forget_what_is_done()

    def once(self) -> int:
        """Attempt what is due now, one an endpoint, in this thread. Returns how many."""
        with db.reading() as session:
            found = deliveries.due(session, limit=AT_ONCE)
        taken = [one for one in map(self._take, found) if one is not None]
        for one in taken:
            self._deliver(one)
        return len(taken)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        free = AT_ONCE - len(self.sending)
        if not free:
            return
        with db.reading() as session:  # a look takes no write lock: as a rule there is nothing
            busy = {one.endpoint_id: one.project_id for one in self.sending.values()}
            found = deliveries.due(session, limit=free, busy=busy)
        for delivery_id in found:
            taken = self._take(delivery_id)
            if taken is not None:
                self.sending[pool.submit(self._deliver, taken)] = taken

    def _forget_what_is_done(self) -> None:
        for future in [future for future in self.sending if future.done()]:
            del self.sending[future]
            error = future.exception()
            if isinstance(error, OperationalError):  # not settled: the lease runs out, and it is sent again
                log.warning("webhook.not_settled", extra={"kind": type(error).__name__})
            elif error is not None:
                log.error("webhook.broke", exc_info=error)

    @staticmethod
    def _take(delivery_id: str) -> Taken | None:
        with db.transaction() as session:
            return deliveries.take(session, delivery_id)

    def _deliver(self, taken: Taken) -> None:
        outcome = self._attempt(taken)
        with db.transaction() as session:
            kept = deliveries.settle(session, taken, outcome, jitter=random.random())  # noqa: S311 — spreads load, hides nothing
        told = {"delivery": taken.id, "endpoint": taken.endpoint_id, "status": outcome.status, "error": outcome.error}
        log.log(logging.WARNING if outcome.error or not kept else logging.INFO, "webhook.sent", extra={**told, "kept": kept})

    def _attempt(self, taken: Taken) -> Outcome:
        keys = vault.get_keys(self.settings)
        try:
            secrets = [signing.opened(keys, wrapped) for wrapped in taken.secrets]
        except (vault.KekGone, vault.Unopenable, OSError):
            return Outcome(error="secret_unavailable")
        headers = signing.headers(secrets, taken.message_id, taken.at, taken.body)
        try:
            return Outcome.of((self.post or self._over_the_network)(taken.url, headers, taken.body.encode()))
        except guard.BadAddress:
            return Outcome(error="address_refused")
        except guard.SendFailed as error:
            return Outcome(error=error.code)

    def _over_the_network(self, url: str, headers: dict[str, str], body: bytes) -> int:
        return guard.post(url, headers, body, loopback=self.settings.webhook_allow_loopback)

    def _prune(self) -> None:
        if time.monotonic() < self.prune_at:
            return
        self.prune_at = time.monotonic() + PRUNE_SECONDS
        with db.transaction() as session:
            deliveries.prune(session)
