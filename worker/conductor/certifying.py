"""From a passed report to what will be published: the certificate's words, what lies beside it, and its signatures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service import db
from service.audit import trust
from service.audit.leaves import PlanCommitted, rfc3339
from service.catalogue import get_catalogue
from service.certificates import publication
from service.certificates import statement as certificate
from service.certificates.commitment import commit
from service.certificates.publication import Publication
from service.certificates.signing import Signed, Signer, SignerUnavailable, SigningRefused, differences, public_key
from service.checkpoints import membership, revocation
from service.checkpoints.membership import Committed, forgotten_items_of
from service.checkpoints.publish import Result
from service.config import Settings
from service.datasets import items
from service.errors import ServiceError
from service.files import FileEntry
from service.models import dispositions
from service.requests import approvals, leases
from service.tables import Checkpoint, LedgerEntry, ModelVersion, new_id
from service.verifier.note import Malformed
from worker.conductor.heart import Heart
from worker.conductor.outcomes import Died, Failed, problem
from worker.conductor.planning import Plan
from worker.contract import Manifest, Report, document_digest, document_json, tree_digest

log = logging.getLogger("expunge.conductor")

SIGNER_PAUSE_SECONDS = 0.5
LEDGER_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
WAITING = {"phase": "certifying", "for": "log_key"}


@dataclass(frozen=True)
class Times:
    """When the engine began and ended, RFC 3339 UTC by the database's clock."""

    started: str
    finished: str

    def as_json(self) -> dict[str, str]:
        return {"startedAt": self.started, "finishedAt": self.finished}


def began(session: OrmSession, request_id: str) -> datetime:
    """When the engine begins: by the database's clock, but not before the plan that is committed by now.

    The ledger's time never goes back, and a clock does, when it is set or another server takes over: the plan would seem to
    have come after the run, and whoever verifies the certificate would be right to refuse it.
    """
    return max(db.now(session), _plan(session, request_id).at)


def certify(
    heart: Heart,
    settings: Settings,
    sign: Callable[[Publication], Signed],
    origin: str,
    plan: Plan,
    manifest: Manifest,
    report: Report,
    files: tuple[FileEntry, ...],
    times: Times,
) -> Result:
    """Everything that the publishing transaction stores. Raises: Failed, and whatever `sign` does.

    Args:
        origin: the ledger's name: see `ledger_origin`.
    """
    checkpoint_id, digest, committed = new_id("ckpt"), tree_digest(manifest.files), _committed(heart, plan)
    family = get_catalogue().families[plan.spec.family]
    prompts = {"promptsSha256": certificate.prompts_digest(plan.prompts)} if family.prompts else {}
    statement = certificate.build(
        checkpoint_id=checkpoint_id,
        issued_at=max(times.finished, rfc3339(heart.write(db.now))),
        issuer=settings.tenant,
        request={"id": heart.lease.request_id, "fence": heart.lease.fence},
        model={"id": plan.model_id, "version": plan.number, "digest": digest, **prompts},
        parent=heart.write(lambda session: _parent(session, plan)),
        original={"version_id": plan.original.id, "digest": plan.original.digest},
        dataset={"id": plan.dataset.id, "digest": plan.dataset.digest},
        spec=document_json(plan.spec),
        spec_sha256=plan.spec_sha256,
        manifest=document_json(manifest),
        report=document_json(report),
        report_sha256=document_digest(report),
        guarantee=get_catalogue().methods[plan.spec.method].guarantee,
        requested=plan.requested,
        earlier=heart.write(lambda session: leases.earlier(session, heart.lease)),
        rejected_before=heart.write(lambda session: leases.rejected_before(session, heart.lease)),
        kind=family.kind,
        proxy={"id": plan.proxy.id, "digest": plan.proxy.digest} if plan.proxy else None,
        ledger={
            "origin": origin,
            "planSeq": heart.write(lambda session: _plan(session, heart.lease.request_id).seq),
        },
        commitment=commit(committed.leaves).as_json(),
        times=times.as_json(),
        approval=heart.write(lambda session: approvals.certified(session, heart.lease.request_id)),
    )
    wanted = publication.assemble(statement, kind=family.kind)
    signed = sign(wanted)
    return Result(checkpoint_id, digest, files, signed.certificate, signed.evidence(wanted), committed)


def ask(heart: Heart, settings: Settings, signer: Signer, wanted: Publication, *, patience_seconds: float) -> Signed:
    """Ask the signer, and again while it is away; what its public key does not confirm is no answer. Raises: Died, Failed."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            key = public_key(settings)
            signed = signer.sign(wanted)
            break
        except SigningRefused as refusal:
            raise Failed(problem("signing_refused", f"the signer refused: {refusal}")) from refusal
        except SignerUnavailable as absence:
            log.warning("signer.away", extra={"request": heart.lease.request_id, "why": str(absence)})
            if time.monotonic() > deadline:
                raise Died(problem("signer_unavailable", str(absence))) from absence
        heart.check()
        time.sleep(SIGNER_PAUSE_SECONDS)
    if found := differences(signed, wanted, key):
        log.critical("signer.answer.refused", extra={"request": heart.lease.request_id, "why": found})
        raise Failed(problem("signature_invalid", f"the signer's answer is not what was asked for: {'; '.join(found)}"))
    return signed


def ledger_origin(heart: Heart, settings: Settings, *, patience_seconds: float) -> str:
    """The ledger's name. Until its signer has made a key there is none, and no certificate can say where it is logged.

    Waits for it, ever longer, and says so once to the request's followers. Raises: Died: it stays away; LeaseLost, Cancelled,
    Drained.
    """
    deadline, pause, told = time.monotonic() + patience_seconds, LEDGER_PAUSE_SECONDS, False
    while True:
        try:
            return trust.origin(settings)
        except (trust.NoLogKey, OSError, Malformed) as error:
            why = str(error)
        log.warning("ledger.unnamed", extra={"request": heart.lease.request_id, "why": why})
        if not told:
            heart.write(lambda session: leases.announce(session, heart.lease.request_id, "waiting", WAITING))
            told = True
        if time.monotonic() > deadline:
            raise Died(problem("log_key_missing", f"no certificate without the ledger's name: {why}"))
        heart.check()
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _parent(session: OrmSession, plan: Plan) -> dict[str, Any]:
    """The version that is replaced: its own certificate, where it has one, and what its operator said became of it."""
    version = session.get_one(ModelVersion, plan.base.id)
    row = session.get_one(Checkpoint, version.checkpoint_id) if version.checkpoint_id else None
    told = dispositions.latest(session, version.id)
    said = {
        "version_id": plan.base.id,
        "digest": plan.base.digest,
        "checkpoint": row.id if row else None,
        "certificate": _certificate(session, row) if row else None,
        "disposition": {"state": told.state, "at": rfc3339(told.at)} if told else {"state": "still-served"},
    }
    ancestors = select(ModelVersion.checkpoint_id).where(
        ModelVersion.model_id == version.model_id, ModelVersion.number < version.number, ModelVersion.checkpoint_id.is_not(None)
    )
    lineage = session.scalars(ancestors.order_by(ModelVersion.number))
    revoked = [one for one in lineage if one is not None and revocation.is_revoked(session, one)]
    return said | ({"revokedAncestors": revoked} if revoked else {})


def _certificate(session: OrmSession, row: Checkpoint) -> dict[str, Any]:
    """The parent's, and whether it still stands: who gets the new certificate need not know of the old one's end."""
    taken_back = revocation.steps(session, row.id).get("approved")
    said = {"sha256": revocation.payload_sha256(row), "state": "revoked" if taken_back else "valid"}
    return said | ({"revokedAt": rfc3339(taken_back.at), "reason": taken_back.reason} if taken_back else {})


def _plan(session: OrmSession, request_id: str) -> LedgerEntry:
    """The ledger's entry of the plan of this attempt: the last one of its request."""
    chosen = select(LedgerEntry).where(LedgerEntry.request_id == request_id, LedgerEntry.action == PlanCommitted.action)
    return session.scalars(chosen.order_by(LedgerEntry.seq.desc()).limit(1)).one()


def _committed(heart: Heart, plan: Plan) -> Committed:
    """To every training item that the new version is to have forgotten. Raises: Failed: the data set cannot be read."""
    where = heart.write(lambda session: items.source(session, plan.dataset.id))
    before = heart.write(lambda session: membership.before(session, session.get_one(ModelVersion, plan.base.id).checkpoint_id))
    spec = plan.spec
    try:
        known = items.read(where)
    except ServiceError as error:
        raise Failed(problem("integrity", f"the items of the dataset cannot be read any more: {error.detail}")) from error
    gone = forgotten_items_of(spec.all_forgotten, spec.all_forgotten_samples)(known)
    return membership.committed(gone, forgotten_items_of(spec.forgotten_classes, spec.forgotten_samples)(known), before)
