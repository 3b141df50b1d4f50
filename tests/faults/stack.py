"""A whole installation of real processes on free ports, in both shapes, and the hands to break it with.

`embedded`: `expunge up` on SQLite and a broker in memory. `production`: PostgreSQL, Redis behind a wire, a signer, an API and
two workers, each started again when it dies, as an init system would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from sqlalchemy import select

from service import db, migrate
from service.client import ApiError, Client, Unreachable
from service.demo import free_port
from service.processes import PARENT
from service.requests.lifecycle import TERMINAL
from service.tables import UnlearnRequest
from tests.faults.process import CLOCK, HOME, OFF, SOCKET
from tests.faults.quick_engine import JOURNAL
from tests.faults.servers import Postgres, Redis, Wire
from tests.worker.conductor import house as h
from worker.conductor.processes import JOB

ROOT = Path(__file__).resolve().parents[2]
Kind = Literal["embedded", "production"]
KINDS: tuple[Kind, ...] = ("embedded", "production")
LEASE_SECONDS = 8.0
"""Long beside a pause of a busy machine, short beside a test's patience."""
MAX_ATTEMPTS = 5
AGAIN_SECONDS = 0.3
PATIENCE_SECONDS = 240.0
"""For a queue to empty. Load alone must fail no test, so nothing here is a measurement."""
POLICY = {"name": "faults-v1", "checks": [{"verifier": "forget_rate", "params": {}}]}
HELD_OUT = tuple(str(k) for k in range(10))
"""One of each class."""


@dataclass
class Servers:
    """What outlives a stack: one PostgreSQL and one Redis for all, migrated templates of both databases."""

    folder: Path
    _postgres: Postgres | None = None
    _redis: Redis | None = None
    _template: Path | None = None

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            self._postgres = Postgres()
            self._postgres.execute("CREATE DATABASE template_expunge")
            _migrate(self._postgres.url("template_expunge"))
        return self._postgres

    @property
    def redis(self) -> Redis:
        if self._redis is None:
            self._redis = Redis()
        return self._redis

    @property
    def sqlite(self) -> Path:
        if self._template is None:
            self._template = self.folder / "template.db"
            _migrate(f"sqlite:///{self._template}")
        return self._template

    def stop(self) -> None:
        for server in (self._postgres, self._redis):
            if server is not None:
                server.stop()


def _migrate(url: str) -> None:
    before = os.environ.get("EXPUNGE_DATABASE_URL")
    os.environ["EXPUNGE_DATABASE_URL"] = url
    db.reset()
    try:
        migrate.upgrade()
    finally:
        db.reset()
        os.environ.pop("EXPUNGE_DATABASE_URL")
        if before is not None:
            os.environ["EXPUNGE_DATABASE_URL"] = before


@dataclass
class Child:
    """A process of a stack, and what it is started with."""

    role: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True


@dataclass
class Stack:
    """One installation. Use `opened`."""

    kind: Kind
    home: Path
    servers: Servers
    environment: dict[str, str]
    wire: Wire | None = None
    children: dict[str, Child] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    """Every request that was answered with 202, or written into the rows by a test itself."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _houses: list[h.House] = field(default_factory=list)

    @property
    def embedded(self) -> bool:
        return self.kind == "embedded"

    @property
    def lease_seconds(self) -> float:
        return float(self.environment["EXPUNGE_LEASE_SECONDS"])

    # --------------------------------------------------------------------------------------------------------- processes

    def start(self, name: str, role: str, **more: str) -> None:
        self.children[name] = Child(role, {**self.environment, **more})
        self._start(name)

    def _start(self, name: str) -> None:
        child = self.children[name]
        with (self.home / f"{name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.process", child.role],
                cwd=ROOT, env=child.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def keep(self) -> None:
        """Start again whoever died and is wanted, until the stack is closed."""
        while not self._stopping.wait(AGAIN_SECONDS):
            with self._turn:
                for name, child in self.children.items():
                    if child.wanted and child.process is not None and child.process.poll() is not None:
                        self._start(name)

    def pids(self, role: str) -> list[int]:
        """Who plays a role now: `up`, `serve`, `worker`, `signer`. Oldest name first."""
        mine = [c.process.pid for c in self.children.values() if c.role == role and c.process and c.process.poll() is None]
        for child in self.children.values():
            if child.role == "up" and child.process is not None and child.process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    mine += [p.pid for p in psutil.Process(child.process.pid).children() if _role(p) == role]
        return mine

    def kill(self, role: str, which: int = 0, number: int = signal.SIGKILL) -> int | None:
        """A signal to one who plays a role; its pid. None: nobody does just now."""
        found = self.pids(role)
        if not found:
            return None
        pid = found[which % len(found)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def want(self, name: str, wanted: bool) -> None:
        with self._turn:
            self.children[name].wanted = wanted

    def engines(self, request_id: str | None = None) -> list[psutil.Process]:
        """Every live process that works for a request of this stack."""
        mine = self.accepted if request_id is None else {request_id}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(JOB) in mine:
                    found.append(process)
        return found

    def holder(self, request_id: str) -> int:
        """The pid of the worker that holds a request."""
        owner = h.until(lambda: h.request(request_id).lease_owner, PATIENCE_SECONDS)
        return int(owner.split("|")[1])

    # ------------------------------------------------------------------------------------------------------------ orders

    def arm(self, points: str) -> None:
        """Failpoints for the first worker that looks: `store.write=die`, or nothing at all."""
        part = self.home / ".failpoints"
        part.write_text(points)
        part.replace(self.home / "failpoints")

    def armed(self) -> bool:
        return (self.home / "failpoints").exists()

    def order(self, line: str, which: int = 0) -> None:
        """Tell a worker to do something to itself (`process.carry_out`)."""
        pids = self.pids("worker")
        if pids:
            part = self.home / ".order"
            part.write_text(line + "\n")
            part.replace(self.home / f"orders-{pids[which % len(pids)]}")

    def lose_bells(self) -> None:
        """All bells that wait in the broker are gone."""
        if self.embedded:
            self.order("lose_bells")
        else:
            self.servers.redis.flush()

    # ---------------------------------------------------------------------------------------------------------- requests

    def house(self, number: int = 0) -> h.House:
        """A registered model of ten classes; the same one for the same number."""
        while len(self._houses) <= number:
            self._houses.append(self.fresh_house())
        return self._houses[number]

    def fresh_house(self) -> h.House:
        return h.furnish(self.home / f"house-{uuid.uuid4().hex[:8]}", held_out=HELD_OUT)

    def ask(self, house: h.House, *classes: int, **params: Any) -> str:
        """A queued request, written as the API would, with parameters for the fake engine, which the API would refuse."""
        request_id = h.ask(house, *classes, **params)
        with db.transaction() as session:
            row = session.get_one(UnlearnRequest, request_id)
            row.policy = POLICY
        self.accepted.add(request_id)
        return request_id

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(f"http://127.0.0.1:{self.environment['EXPUNGE_PORT']}", timeout=40) as client:
            yield client

    def wait_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        def ready() -> bool:
            with self.client() as client:
                try:
                    client.get("/readyz")
                except (ApiError, Unreachable):
                    return False
                return True

        h.until(ready, seconds)

    def open_requests(self) -> list[str]:
        with db.reading() as session:
            chosen = select(UnlearnRequest.id).where(UnlearnRequest.status.not_in(sorted(TERMINAL)))
            return list(session.scalars(chosen))

    def drain(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Until no request is open."""
        try:
            h.until(lambda: not self.open_requests(), seconds)
        except AssertionError as error:
            left = [(r, h.request(r).status, [a.outcome for a in h.attempts(r)]) for r in self.open_requests()]
            raise AssertionError(f"still open after {seconds} s: {left}") from error

    def journal(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """What the engines noted, in order."""
        path = Path(self.environment[JOURNAL])
        lines = path.read_text().splitlines() if path.exists() else []
        notes = [json.loads(line) for line in lines]
        return [n for n in notes if request_id in (None, n["request"])]

    def logs(self, text: str) -> int:
        """How often the processes' logs hold a word."""
        return sum(path.read_text(errors="replace").count(text) for path in self.home.glob("*.log"))

    # -------------------------------------------------------------------------------------------------------------- ends

    def close(self) -> None:
        self._stopping.set()
        with self._turn:
            for child in self.children.values():
                child.wanted = False
        running = [c.process for c in self.children.values() if c.process is not None and c.process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.wire is not None:
            self.wire.close()


def _role(process: psutil.Process) -> str:
    command = process.cmdline()
    return command[-1] if "tests.faults.process" in command else ""


@contextlib.contextmanager
def opened(kind: Kind, servers: Servers, *, workers: int = 2, off: Sequence[str] = (), **settings: str) -> Iterator[Stack]:
    """An installation that runs, and is this process's own while the block lasts: rows are read and written directly.

    Args:
        workers: of production.
        off: safeguards to do without (`tests.faults.process`).
        settings: more environment.
    """
    home = Path(tempfile.mkdtemp(prefix=f"faults-{kind}-", dir=servers.folder))
    wire = None if kind == "embedded" else Wire(servers.redis.port)
    environment = _environment(home, off, settings)
    if wire is None:
        (home / "data").mkdir(mode=0o700)
        (home / "data" / "expunge.db").write_bytes(servers.sqlite.read_bytes())
    else:
        name = f"faults_{uuid.uuid4().hex[:10]}"
        servers.postgres.execute(f"CREATE DATABASE {name} TEMPLATE template_expunge STRATEGY FILE_COPY")
        environment["EXPUNGE_DATABASE_URL"] = servers.postgres.url(name)
        environment["EXPUNGE_BROKER_URL"] = f"redis://127.0.0.1:{wire.port}/0"
        servers.redis.flush()
    with _installed(environment):
        stack = Stack(kind, home, servers, environment, wire)
        try:
            if wire is None:
                stack.start("up", "up")
            else:
                for role in ("signer", "serve", *["worker"] * workers):
                    number = f"-{sum(c.role == role for c in stack.children.values()) + 1}" if role == "worker" else ""
                    stack.start(role + number, role)
            threading.Thread(target=stack.keep, name="keeper", daemon=True).start()
            stack.wait_ready()
            yield stack
        except BaseException:
            for log in sorted(home.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
            raise
        finally:
            stack.close()


def _environment(home: Path, off: Sequence[str], settings: dict[str, str]) -> dict[str, str]:
    policy = home / "policy.json"
    policy.write_text(json.dumps(POLICY))
    ours = (HOME, OFF, SOCKET, CLOCK, JOURNAL)
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("EXPUNGE_") and k not in ours},
        "EXPUNGE_DATA_DIR": str(home / "data"), "EXPUNGE_PORT": str(free_port()), "EXPUNGE_POLICY_FILE": str(policy),
        "EXPUNGE_LEASE_SECONDS": str(LEASE_SECONDS), "EXPUNGE_RENEW_SECONDS": "1", "EXPUNGE_SWEEP_SECONDS": "0.2",
        "EXPUNGE_STOP_GRACE_SECONDS": "10", "EXPUNGE_MAX_ATTEMPTS": str(MAX_ATTEMPTS), "EXPUNGE_ALLOW_FAILPOINTS": "1",
        "EXPUNGE_SIGNER_SOCKET": str(home / "s"), HOME: str(home), OFF: ",".join(off), JOURNAL: str(home / "journal.jsonl"),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), PARENT: str(os.getpid()), **settings,
    }  # fmt: skip


@contextlib.contextmanager
def _installed(environment: dict[str, str]) -> Iterator[None]:
    """This process reads the installation's settings and rows."""
    before = {k: v for k, v in os.environ.items() if k.startswith("EXPUNGE_")}
    for name in before:
        del os.environ[name]
    os.environ.update({k: v for k, v in environment.items() if k.startswith("EXPUNGE_") and k != PARENT})
    db.reset()
    try:
        yield
    finally:
        for name in [k for k in os.environ if k.startswith("EXPUNGE_")]:
            del os.environ[name]
        os.environ.update(before)
        db.reset()
