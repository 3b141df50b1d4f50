"""`python -m tests.faults.process ROLE`: a process of the installation under test, with the fake engine and a few switches.

The switches are the tests' own, so none of them is in the product:

    FAULTS_HOME      folder with orders: `failpoints` (taken by the first process that sees it), `orders-PID` (one a line)
    FAULTS_OFF       safeguards to do without: reaper_hold, socket_timeout
    FAULTS_SOCKET    seconds of the broker's socket timeout
    FAULTS_CLOCK     seconds that this process's clock is ahead
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

HOME, OFF, SOCKET, CLOCK = "FAULTS_HOME", "FAULTS_OFF", "FAULTS_SOCKET", "FAULTS_CLOCK"
POLL_SECONDS = 0.1


def main(role: str) -> int:
    from service.processes import die_with_supervisor

    if seconds := float(os.environ.get(CLOCK, "0")):
        set_clock(seconds)
    if role == "worker":
        die_with_supervisor()
        return worker()
    if role == "up":
        from service import supervisor

        command = [sys.executable, "-m", "tests.faults.process"]
        names = {"signer": "signer", "api": "serve", "worker": "worker"}
        supervisor.children = lambda _: [supervisor.Child(k, [*command, v]) for k, v in names.items()]  # type: ignore[assignment]
    from service import cli

    sys.argv = ["expunge", role]
    cli.app()
    return 0


def worker() -> int:
    """The worker, with whichever safeguards are off."""
    from tests.faults.engines import engine
    from worker.conductor import __main__ as conductor
    from worker.conductor import app as bell
    from worker.conductor import control

    off = set(filter(None, os.environ.get(OFF, "").split(",")))
    if "reaper_hold" in off:
        control.Sweeper._may_judge = lambda _: True  # type: ignore[method-assign]
    transport = bell._transport

    def changed(settings: object) -> dict[str, object]:
        options = transport(settings)  # type: ignore[arg-type]
        if "socket_timeout" in off:
            options.pop("socket_timeout", None)
        elif seconds := float(os.environ.get(SOCKET, "0")):
            options.update(socket_timeout=seconds, health_check_interval=max(1.0, seconds / 2))
        if "visibility_timeout" in options:
            options["visibility_timeout"] = 2  # what is redelivered is: early acknowledgement leaves nothing to redeliver
        return options

    bell._transport = changed  # type: ignore[assignment]
    threading.Thread(target=obey, name="orders", daemon=True).start()
    return conductor.main(command=engine)


def obey() -> None:
    """Take orders from the suite: failpoints, a broker in memory that loses all bells, a bell that is rung many times."""
    from service import failpoints

    home = Path(os.environ[HOME])
    points, mine = home / "failpoints", home / f"orders-{os.getpid()}"
    while True:
        if points.exists():
            taken = home / f"failpoints-{os.getpid()}"
            try:
                points.rename(taken)
            except FileNotFoundError:
                continue  # another worker was quicker
            failpoints.reset()
            os.environ[failpoints.VARIABLE] = taken.read_text()
            taken.unlink()
        if mine.exists():
            orders = mine.read_text().splitlines()
            mine.unlink()
            for order in orders:
                carry_out(order)
        time.sleep(POLL_SECONDS)


def carry_out(order: str) -> None:
    from kombu.transport.memory import Channel

    from service.config import get_settings
    from worker.conductor import app as bell

    match order.split():
        case ["lose_bells"]:
            for queue in Channel.queues.values():
                with queue.mutex:
                    queue.queue.clear()
        case ["ring", request_id, times]:
            app = bell.make_app(get_settings())
            for _ in range(int(times)):
                bell.ring(app, request_id, "default")
        case ["clock", seconds]:
            set_clock(float(seconds))
        case _:
            raise ValueError(f"no such order: {order!r}")


def set_clock(seconds: float) -> None:
    """From now on this process believes that it is so much later. Leases ask the database, so nothing may come of it."""
    true = getattr(time, "_true", time.time)
    time._true = true  # type: ignore[attr-defined]
    time.time = lambda: true() + seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
