"""Whatever is done to requests, in whatever order: what must hold, holds. On both databases."""

from __future__ import annotations

import contextlib
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text

from service import db, outbox
from service.audit import ledger
from service.checkpoints.publish import Result, publish
from service.config import get_settings
from service.errors import AlreadyForgotten, AlreadySuperseded, DuplicateRequest, InvalidTransition
from service.requests import changes, endings, leases, service
from service.requests.endings import Problem
from service.requests.leases import Lease, LeaseLost
from service.requests.lifecycle import HOLDS_LINEAGE, MOVES, PRIORITIES, TERMINAL
from service.requests.places import Known
from service.requests.schemas import Amendment, Forget, Retry, UnlearnRequestCreate
from service.tables import Checkpoint, LedgerEntry, LedgerHead, LedgerNode, Model, ModelVersion, UnlearnRequest, new_id
from service.verifier.merkle import Frontier, leaf_hash
from tests.worker.conductor import house as h

BOOM = Problem("engine_died", "engine", "it fell")
MOST_ATTEMPTS = 2
CLASSES = st.integers(0, 8)
PICK = st.integers(0, 1_000)
EXAMPLES, STEPS = 14, 40
"""Bounded to some 30 s on both databases."""
VERBS = (
    "create", "create", "pause", "resume", "cancel", "amend", "retry", "claim", "claim", "claim", "renew", "fail", "die",
    "give_back", "stop", "stop", "publish", "reap", "rest_is_over",
)  # fmt: skip
"""One rule for all of them: hypothesis leaves some rules out of each example, and a life without claims is a short one."""
REACHED = {
    "unlearning.request.received", "unlearning.request.paused", "unlearning.request.resumed", "unlearning.request.amended",
    "unlearning.request.superseded", "unlearning.request.withdrawn", "unlearning.request.closed", "run.started", "run.stopped",
    "run.failed", "run.lost", "model.published",
}  # fmt: skip
"""What the examples must have led to: the same ones every time, so this cannot fail by chance."""

Row = dict[str, Any]
COLUMNS = tuple(c for c in UnlearnRequest.__table__.columns if c.name not in ("forget_samples", "policy"))


class Lives(RuleBasedStateMachine):
    """Two models, their requests, and workers that may hold a lease which nobody honours any more."""

    def __init__(self) -> None:
        super().__init__()
        self.leases: list[Lease] = []
        self.mine: list[str] = []
        self.before: dict[str, Row] = {}
        self.scratch = tempfile.TemporaryDirectory()

    @initialize()
    def furnish(self) -> None:
        """What the examples before have left is ended: nothing of it may be claimed in this one."""
        for row in self.rows().values():
            if row["status"] not in TERMINAL:
                with db.transaction() as session:
                    service.cancel(session, row["id"])
                self.reap()
        folder = Path(self.scratch.name)
        self.models = [h.furnish(folder / name).model_id for name in "ab"]

    def teardown(self) -> None:
        self.scratch.cleanup()

    @rule(verb=st.sampled_from(VERBS), pick=PICK, k=CLASSES)
    def step(self, verb: str, pick: int, k: int) -> None:
        match verb:
            case "create":
                self.create(pick, k)
            case "claim":
                self.claim(f"w{pick % 2}")
            case "reap":
                self.reap()
            case "rest_is_over":
                with db.transaction() as session:
                    session.execute(text("UPDATE unlearn_request SET not_before = created_at WHERE status = 'queued'"))
            case "pause" | "resume" | "cancel" | "amend" | "retry" if self.mine:
                self.ask(self.mine[pick % len(self.mine)], verb)
            case _ if self.leases:
                self.work(self.leases[-1 - pick % min(len(self.leases), 3)], verb)

    # --------------------------------------------------------------------------------------------------------- clients

    def create(self, pick: int, k: int) -> None:
        wanted = UnlearnRequestCreate(
            model_id=self.models[pick % 2], forget=Forget(classes=[k]), priority=PRIORITIES[pick % len(PRIORITIES)]
        )
        with contextlib.suppress(DuplicateRequest, AlreadyForgotten), db.transaction() as session:
            self.mine.append(service.create(session, get_settings(), wanted, None, Known()).request.id)

    def ask(self, request_id: str, verb: str) -> None:
        refusals = (InvalidTransition, AlreadySuperseded, DuplicateRequest, AlreadyForgotten)
        with contextlib.suppress(*refusals), db.transaction() as session:
            match verb:
                case "pause":
                    changes.pause(session, request_id)
                case "resume":
                    changes.resume(session, get_settings(), request_id)
                case "cancel":
                    service.cancel(session, request_id)
                case "amend":
                    changes.amend(session, request_id, Amendment(priority="urgent"), "*")
                case "retry":
                    self.mine.append(changes.retry(session, get_settings(), request_id, Retry(), known=Known()).request.id)

    # --------------------------------------------------------------------------------------------------------- workers

    def claim(self, worker: str) -> None:
        with db.transaction() as session:
            best = outbox.due(session, limit=1)
            lease = leases.claim_next(session, owner=worker, lease_seconds=600, classes=("default",))
        assert [one.request_id for one in best] == ([lease.request_id] if lease else [])
        if lease:
            self.leases.append(lease)

    def work(self, lease: Lease, verb: str) -> None:
        """By any worker that held a lease of late: those that lost it change nothing."""
        row = self.rows()[lease.request_id]
        held = (row["fence"], row["lease_owner"]) == (lease.fence, lease.owner) and row["status"] in HOLDS_LINEAGE
        try:
            with db.transaction() as session:
                self.act(session, lease, verb)
            assert held
        except LeaseLost:
            assert not held or (verb == "publish" and row["status"] == "cancelling")

    def act(self, session: Any, lease: Lease, verb: str) -> None:
        match verb:
            case "renew":
                leases.renew(session, lease, lease_seconds=600, phase="unlearning")
            case "fail":
                endings.fail(session, lease, BOOM)
            case "die":
                endings.retry(session, lease, BOOM, max_attempts=MOST_ATTEMPTS)
            case "give_back":
                endings.give_back(session, lease, reason="deploy")
            case "publish":
                publish(session, lease, result())
            case "stop":  # what a worker does that hears what is wanted of it
                asked = leases.asked(session, lease)
                if asked == "cancel":
                    assert endings.cancelled(session, lease) == "cancelled"
                elif asked == "pause":
                    assert endings.pause(session, lease) == "paused"

    def reap(self) -> None:
        held = next((row for row in self.rows().values() if row["status"] in HOLDS_LINEAGE), None)
        if held is not None:
            with db.transaction() as session:
                endings.reap(
                    session, held["id"], held["fence"], max_attempts=MOST_ATTEMPTS, reason="silent", only_expired=False
                )

    # ------------------------------------------------------------------------------------------------------ invariants

    def rows(self) -> dict[str, Row]:
        with db.reading() as session:
            return {row.id: dict(row._mapping) for row in session.execute(select(*COLUMNS))}

    @invariant()
    def moves_are_legal_and_what_has_ended_never_changes(self) -> None:
        after = self.rows()
        for request_id, was in self.before.items():
            row = after[request_id]
            if was["status"] in TERMINAL:
                assert row == was
            assert row["status"] in {was["status"], *MOVES[was["status"]]}
            assert row["version"] >= was["version"]
        self.before = after

    @invariant()
    def a_lineage_has_one_holder(self) -> None:
        held = [row["model_id"] for row in self.before.values() if row["status"] in HOLDS_LINEAGE]
        assert len(held) == len(set(held))
        for row in self.before.values():
            assert (row["lease_owner"] is not None) == (row["status"] in HOLDS_LINEAGE)

    @invariant()
    def published_is_succeeded(self) -> None:
        with db.reading() as session:
            published = set(session.scalars(select(Checkpoint.request_id)))
            versions = session.scalars(select(ModelVersion.id).where(ModelVersion.checkpoint_id.is_not(None))).all()
            grown = sum(number - 1 for number in session.scalars(select(Model.current_version)))
        succeeded = {request_id for request_id, row in self.before.items() if row["status"] == "succeeded"}
        assert published == succeeded
        assert len(versions) == len(published) == grown

    @invariant()
    def the_ledger_has_no_gap_and_its_tree_is_that_of_its_entries(self) -> None:
        with db.reading() as session:
            entries = session.execute(
                select(LedgerEntry.seq, LedgerEntry.leaf, LedgerEntry.leaf_hash).order_by(LedgerEntry.seq)
            ).all()
            size = session.get_one(LedgerHead, ledger.LOG_ID).size
            stored = {(node.level, node.idx): node.hash for node in session.scalars(select(LedgerNode))}
        assert [entry.seq for entry in entries] == list(range(size))
        tree, made = Frontier(), {}
        for entry in entries:
            assert leaf_hash(entry.leaf) == entry.leaf_hash
            made |= {(level, idx): value for level, idx, value in tree.append(entry.leaf_hash)}
        assert stored == made


def result() -> Result:
    """Nothing but an envelope: what a certificate must say is tested elsewhere."""
    envelope = {"payload": "e30=", "payloadType": "x", "signatures": []}
    bundle = {"mediaType": "x", "verificationMaterial": {"publicKey": {"hint": "k"}}, "dsseEnvelope": envelope}
    return Result(checkpoint_id=new_id("ckpt"), digest="0" * 64, files=(), certificate=bundle)  # type: ignore[arg-type]


def test_whatever_is_done_in_whatever_order(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example begins with models of its own, on a database that keeps what the examples before have left."""
    monkeypatch.setattr(endings, "pause_after", lambda _attempts: timedelta(hours=1))  # else it depends on the machine's speed
    quick = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Lives, settings=quick)
    with db.reading() as session:
        assert set(session.scalars(select(LedgerEntry.action))) >= REACHED
