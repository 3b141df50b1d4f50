"""One attempt at one request, from the claim to the publication: read it from top to bottom.

    claim -> stage -> unlearn -> verify -> store -> sign -> publish

Every step may end the attempt; `_end` says how that is written down. Nothing is visible to anyone before the one transaction
at the end, and that one is fenced.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.orm import Session as OrmSession

from service import db, failpoints, logs
from service.audit.leaves import PlanCommitted, RunFinished, rfc3339
from service.audit.notary import Notary
from service.certificates.signing import Signer
from service.checkpoints.publish import BaseMoved, Result, publish
from service.config import Settings
from service.files import FileEntry
from service.requests import endings, leases
from service.requests.leases import Lease, LeaseLost, NoRoom
from service.requests.lifecycle import TERMINAL
from service.requests.rungs import CODES, REJECTED
from service.requests.seeds import verification_secret
from service.storage import Store, StoreError
from service.telemetry import tracing
from service.values import sha256_of
from worker.conductor import caches, certifying, launch, mounted, planning, storing, workspace
from worker.conductor.answers import read_manifest, read_report, require_success
from worker.conductor.certifying import Times
from worker.conductor.heart import Heart
from worker.conductor.outcomes import Cancelled, Died, Drained, Failed, Paused, Rejected, problem
from worker.conductor.planning import Plan
from worker.conductor.processes import Unkillable, any_left, kill_older
from worker.conductor.purging import Replaced, purge
from worker.conductor.supervise import run_stage
from worker.contract import JobDirectory, Manifest, Report, document_digest, document_json, tree_digest

log = logging.getLogger("expunge.conductor")

SIGNER_PATIENCE_SECONDS = 30.0
"""A signer that restarts is back sooner; after that the attempt is given up, and its step checkpoints save the next one."""


@dataclass
class Room:
    """What a worker works with. The doubles of the tests take these places."""

    settings: Settings
    store: Store
    signer: Signer
    owner: str
    command: launch.Command = launch.torchrun
    draining: threading.Event = field(default_factory=threading.Event)
    busy: threading.Event = field(default_factory=threading.Event)
    request_id: str | None = None
    """What is being worked on."""
    signer_patience_seconds: float = SIGNER_PATIENCE_SECONDS
    store_patience_seconds: float = storing.PATIENCE_SECONDS
    notary: Notary | None = None
    """None: nobody has the ledger signed."""
    unkillable: dict[tuple[str, int], Unkillable] = field(default_factory=dict)
    """By request and fence: attempts that this worker let go of while processes of theirs survived SIGKILL."""

    def still_here(self) -> set[tuple[str, int]]:
        """Of which of them processes are left, and may hold the GPU: beside them nothing is claimed."""
        return {attempt for attempt, error in tuple(self.unkillable.items()) if any_left(error.survivors)}


def run(request_id: str, room: Room) -> str | None:
    """Take a request and see it through.

    Returns:
        What became of the request: `succeeded`, `failed`, `cancelled`, `paused` or `queued`; `lost` when another worker has it
        now; None when it could not be claimed.
    """
    return _see_through(room, partial(leases.claim, request_id=request_id))


def run_next(room: Room) -> str | None:
    """Take the request that comes first among those that this worker may run, and see it through. Returns: as `run`."""
    return _see_through(room, partial(leases.claim_next, classes=room.settings.gpu_classes), tries=leases.CANDIDATES)


def _see_through(room: Room, claim: Callable[..., Lease | None], *, tries: int = 1) -> str | None:
    if room.draining.is_set() or room.still_here():
        return None
    settings, began = room.settings, time.time()
    lease = _claimed(room, claim, tries)
    if lease is None:
        return None
    tracing.record("claim", lease.traceparent, began, time.time(), request=lease.request_id, fence=lease.fence)
    with (
        logs.bind(request=lease.request_id, fence=lease.fence),
        tracing.span("attempt", parent=lease.traceparent, request=lease.request_id, fence=lease.fence) as span,
    ):
        log.info("request.claimed")
        room.request_id = lease.request_id
        try:
            with Heart(lease, settings, room.draining) as heart:
                status = _attempt(room, heart)
        finally:
            room.request_id = None
        if span is not None:
            span.set_attribute("status", status)
        log.info("attempt.ended", extra={"status": status})
    return status


def _claimed(room: Room, claim: Callable[..., Lease | None], tries: int) -> Lease | None:
    """Where a project's last place went to another worker meanwhile, there may still be another project's request."""
    settings = room.settings
    for _ in range(tries):
        with suppress(NoRoom), db.transaction() as session:
            return claim(
                session, owner=room.owner, lease_seconds=settings.lease_seconds, most_active=settings.max_active_requests
            )
    return None


def _attempt(room: Room, heart: Heart) -> str:
    job: JobDirectory | None = None
    status = "lost"
    try:
        try:
            kill_older(heart.lease.request_id, heart.lease.fence)
            job = workspace.open_job(room.settings, heart.lease)
            _work(room, heart, job)
            status = "succeeded"
        except Exception as error:
            if isinstance(error, Rejected) and job is not None:
                workspace.drop_steps(job)  # before another worker may take them up
            status = _end(error, room, heart)
    finally:
        _clean(room, heart.lease, job, keep_steps=status not in TERMINAL)
    return status


def _work(room: Room, heart: Heart, job: JobDirectory) -> None:
    with tracing.span("staging"):
        plan = _stage(room, heart, job)
    started = heart.write(lambda session: certifying.began(session, heart.lease.request_id))
    with tracing.span("unlearning"):
        manifest = _unlearn(room, heart, job, plan)
    times = Times(rfc3339(started), rfc3339(max(started, heart.write(db.now))))
    with tracing.span("verifying"):
        report = _verify(room, heart, job, plan, manifest)
    with tracing.span("certifying"):
        files = _keep_files(room, heart, job, manifest)
        patience = room.signer_patience_seconds
        origin = certifying.ledger_origin(heart, room.settings, patience_seconds=patience)
        sign = partial(certifying.ask, heart, room.settings, room.signer, patience_seconds=patience)
        result = certifying.certify(heart, room.settings, sign, origin, plan, manifest, report, files, times)
    with tracing.span("publishing"):
        heart.enter("publishing", may_drain=False)
        heart.write(partial(_publish, lease=heart.lease, result=result))
        failpoints.hit("publish.committed")
        _purge(room, heart, plan)
    if room.notary is not None:
        room.notary.wake()


def _publish(session: OrmSession, lease: Lease, result: Result) -> None:
    publish(session, lease, result)
    failpoints.hit("publish.commit")


# ------------------------------------------------------------------------------------------------------------ the story


def _stage(room: Room, heart: Heart, job: JobDirectory) -> Plan:
    """Inputs into the job directory, checked; what will be done, into the ledger before it is done."""
    settings, lease = room.settings, heart.lease
    older = settings.data_dir.resolve() / "keys" / "verification.secret"
    secret = heart.write(lambda session: verification_secret(session, kept_on_host=older))
    ranks = launch.ranks_for(heart.write(lambda session: planning.wanted_ranks(session, lease)), settings)
    asked = heart.write(lambda session: planning.makes_images(session, lease))
    weights = mounted.metric_weights(settings, heart.check) if asked else None
    plan = heart.write(lambda session: planning.read(session, lease, ranks=ranks, secret=secret, metric_weights=weights))
    workspace.stage(job, plan, room.store, settings, heart.check)
    recipe = {"method": plan.spec.method, "params": plan.spec.params, "seed": plan.spec.seed}
    fact = PlanCommitted(
        fence=lease.fence,
        rung=lease.rung,
        rungs=lease.rungs,
        method=plan.spec.method,
        params_sha256=sha256_of(plan.spec.params),
        spec_sha256=plan.spec_sha256,
        policy_sha256=plan.policy_sha256,
        base_digest=plan.base.digest,
        original_digest=plan.original.digest,
        dataset_digest=plan.dataset.digest,
        proxy_digest=plan.proxy.digest if plan.proxy else None,
    )
    gpus = min(ranks, launch.gpu_count())
    detail = {**recipe, "ranks": ranks, "gpus": gpus, "spec_sha256": plan.spec_sha256}
    heart.write(lambda session: leases.record(session, lease, fact, detail=detail))
    return plan


def _unlearn(room: Room, heart: Heart, job: JobDirectory, plan: Plan) -> Manifest:
    heart.enter("unlearning")
    ended = run_stage("unlearn", job, heart, room.settings, command=room.command, ranks=plan.spec.ranks)
    heart.check()
    require_success(ended, job, job.manifest)
    manifest = read_manifest(job, plan)
    caches.fishers(room.settings).keep(job.fishers)
    fact = RunFinished(
        fence=heart.lease.fence,
        candidate_digest=tree_digest(manifest.files),
        iterations=manifest.iterations_completed,
    )
    heart.write(lambda session: leases.record(session, heart.lease, fact))
    return manifest


def _verify(room: Room, heart: Heart, job: JobDirectory, plan: Plan, manifest: Manifest) -> Report:
    """Judge what was saved, keep what was seen, go on only with PASS."""
    heart.enter("verifying")
    ended = run_stage("verify", job, heart, room.settings, command=room.command, ranks=plan.spec.ranks)
    heart.check()
    require_success(ended, job, job.report)
    report = read_report(job, plan, manifest)
    caches.judges(room.settings).keep(job.judges)
    kept = storing.keep(room.store, heart, [job.evidence / e.path for e in report.evidence], room.store_patience_seconds)
    pictures = [{**document_json(e), "sha256": stored.sha256} for e, stored in zip(report.evidence, kept, strict=True)]
    heart.write(
        lambda session: leases.keep_report(
            session,
            heart.lease,
            report=document_json(report),
            report_sha256=document_digest(report),
            evidence=pictures,
            verification_seed=plan.spec.verification_seed,
        )
    )
    if report.verdict != "PASS":
        why = problem(CODES[report.verdict], report.summary)
        raise Rejected(why) if report.verdict in REJECTED else Failed(why)
    return report


def _keep_files(room: Room, heart: Heart, job: JobDirectory, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Into the store under their digests: visible to nobody yet. What verification left changed is noticed here."""
    heart.enter("certifying")
    kept = []
    paths = [job.out / entry.path for entry in manifest.files]
    for entry, stored in zip(manifest.files, storing.keep(room.store, heart, paths, room.store_patience_seconds), strict=True):
        if (stored.sha256, stored.size) != (entry.sha256, entry.size):
            raise Failed(problem("integrity", f"out/{entry.path} changed while it was verified"))
        kept.append(FileEntry(entry.path, entry.size, entry.sha256))
    return tuple(kept)


def _purge(room: Room, heart: Heart, plan: Plan) -> None:
    """Fisher information of the replaced weights was computed from what is forgotten now, and nothing needs it any more."""
    lease = heart.lease
    replaced = Replaced(plan.base.digest, plan.model_id, lease.request_id, lease.fence)
    purge(room.settings, replaced, lease.actor, heart.write, say_none=True)


# -------------------------------------------------------------------------------------------------------------- the end


def _end(error: Exception, room: Room, heart: Heart) -> str:
    """Write down why an attempt stopped, and say where that leaves the request."""
    lease, most = heart.lease, room.settings.max_attempts
    try:
        match error:
            case LeaseLost():
                return _after_loss(heart)
            case Cancelled():
                return heart.write(lambda session: endings.cancelled(session, lease))
            case Paused():
                return heart.write(lambda session: endings.pause(session, lease))
            case Drained():
                return heart.write(lambda session: endings.give_back(session, lease, reason="its worker is shutting down"))
            case Failed(problem=why):
                return heart.write(lambda session: endings.fail(session, lease, why))
            case Rejected(problem=why):
                return heart.write(lambda session: endings.reject(session, lease, why))
            case Died(problem=why):
                return heart.write(lambda session: endings.retry(session, lease, why, max_attempts=most))
            case Unkillable():
                # Processes may still hold the GPU: let the lease run out rather than say that they are gone.
                room.unkillable[lease.request_id, lease.fence] = error
                log.critical("processes.unkillable", extra={"request": lease.request_id, "why": str(error)})
                return "lost"
            case BaseMoved():
                why = problem("base_moved", str(error))
            case StoreError():
                why = storing.problem_of(error)
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                why = problem("disk_full", "there is no room left on this worker's disk")
            case _:
                log.exception("attempt.crashed", extra={"request": lease.request_id}, exc_info=error)
                why = problem("worker_error", f"unexpected {type(error).__name__} in the worker; its log says more")
        return heart.write(lambda session: endings.retry(session, lease, why, max_attempts=most))
    except LeaseLost:
        return "lost"


def _after_loss(heart: Heart) -> str:
    """A publication that was refused because somebody asked to cancel is a cancellation, not a loss."""
    try:
        asked = heart.write(lambda session: leases.asked(session, heart.lease))
    except LeaseLost:
        return "lost"
    return heart.write(lambda session: endings.cancelled(session, heart.lease)) if asked == "cancel" else "lost"


def _clean(room: Room, lease: Lease, job: JobDirectory | None, *, keep_steps: bool) -> None:
    """Delete what the attempt staged. A failure to do so changes no outcome: the sweep comes by again."""
    try:
        if job is not None:
            workspace.close_job(job, keep_steps=keep_steps)
        if not keep_steps:
            workspace.close_request(room.settings, lease.request_id)
    except OSError:
        log.exception("jobs.not_cleaned", extra={"request": lease.request_id})
