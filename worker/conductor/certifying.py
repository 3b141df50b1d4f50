"""From a passed report to what will be published: the certificate's words, what lies beside it, and its signatures."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rfc8785
from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service import db
from service.audit import trust
from service.audit.leaves import PlanCommitted, rfc3339
from service.catalogue import get_catalogue
from service.certificates import publication
from service.certificates import statement as certificate
from service.certificates.commitment import commit
from service.certificates.dsse import payload_of
from service.certificates.publication import Publication
from service.certificates.signing import Signed, Signer, SignerUnavailable, SigningRefused
from service.checkpoints import revocation
from service.checkpoints.publish import Result
from service.checkpoints.service import forgotten_items_of
from service.config import Settings
from service.datasets import items
from service.errors import ServiceError
from service.files import FileEntry
from service.models import dispositions
from service.requests import leases
from service.tables import Checkpoint, LedgerEntry, ModelVersion, new_id
from service.verifier.note import Malformed
from worker.conductor.heart import Heart
from worker.conductor.outcomes import Died, Failed, problem
from worker.conductor.planning import Plan
from worker.contract import Manifest, Report, document_digest, document_json, tree_digest

log = logging.getLogger("expunge.conductor")

SIGNER_PAUSE_SECONDS = 0.5
SECRET_BYTES = 32


@dataclass(frozen=True)
class Times:
    """When the engine began and ended, RFC 3339 UTC by the database's clock."""

    started: str
    finished: str

    def as_json(self) -> dict[str, str]:
        return {"startedAt": self.started, "finishedAt": self.finished}


def certify(
    heart: Heart,
    settings: Settings,
    sign: Callable[[Publication], Signed],
    plan: Plan,
    manifest: Manifest,
    report: Report,
    files: tuple[FileEntry, ...],
    times: Times,
) -> Result:
    """Everything that the publishing transaction stores. Raises: Died, Failed, and whatever `sign` does."""
    checkpoint_id, digest, secret = new_id("ckpt"), tree_digest(manifest.files), os.urandom(SECRET_BYTES)
    family = get_catalogue().families[plan.spec.family]
    prompts = {"promptsSha256": certificate.prompts_digest(plan.prompts)} if family.prompts else {}
    origin = _origin(settings)
    statement = certificate.build(
        checkpoint_id=checkpoint_id,
        issued_at=rfc3339(heart.write(db.now)),
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
            "planSeq": heart.write(lambda session: _plan_seq(session, heart.lease.request_id)),
            **({"origin": origin} if origin else {}),
        },
        commitment=commit(secret, _forgotten(heart, plan)).as_json(),
        times=times.as_json(),
    )
    wanted = publication.assemble(statement, kind=family.kind)
    signed = sign(wanted)
    return Result(checkpoint_id, digest, files, signed.certificate, signed.evidence(wanted), secret)


def ask(heart: Heart, signer: Signer, wanted: Publication, *, patience_seconds: float) -> Signed:
    """Ask the signer, and again while it is away. Raises: Died, Failed."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
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
    for bundle, statement in ((signed.certificate, wanted.statement), (signed.provenance, wanted.provenance)):
        if payload_of(bundle) != rfc8785.dumps(dict(statement)):
            raise Failed(problem("signing_refused", "the signer answered with another statement than it was asked to sign"))
    return signed


def _origin(settings: Settings) -> str | None:
    """The ledger's name; None before its log's signer has made a key."""
    try:
        return trust.log_keys(settings)[0].name
    except (trust.NoLogKey, OSError, Malformed, IndexError) as error:
        log.warning("ledger.unnamed", extra={"why": str(error)})
        return None


def _parent(session: OrmSession, plan: Plan) -> dict[str, Any]:
    """The version that is replaced: its own certificate, where it has one, and what its operator said became of it."""
    version = session.get_one(ModelVersion, plan.base.id)
    row = session.get_one(Checkpoint, version.checkpoint_id) if version.checkpoint_id else None
    told = dispositions.latest(session, version.id)
    return {
        "version_id": plan.base.id,
        "digest": plan.base.digest,
        "checkpoint": row.id if row else None,
        "certificate": {"sha256": revocation.payload_sha256(row)} if row else None,
        "disposition": {"state": told.state, "at": rfc3339(told.at)} if told else {"state": "still-served"},
    }


def _plan_seq(session: OrmSession, request_id: str) -> int:
    """Where the plan of this attempt stands in the ledger: the last one of its request."""
    chosen = select(LedgerEntry.seq).where(LedgerEntry.request_id == request_id, LedgerEntry.action == PlanCommitted.action)
    return session.scalars(chosen.order_by(LedgerEntry.seq.desc()).limit(1)).one()


def _forgotten(heart: Heart, plan: Plan) -> list[str]:
    """Ids of every training item that the new version is to have forgotten. Raises: Failed: the data set cannot be read."""
    where = heart.write(lambda session: items.source(session, plan.dataset.id))
    chosen = forgotten_items_of(plan.spec.all_forgotten, plan.spec.all_forgotten_samples)
    try:
        return chosen(items.read(where))
    except ServiceError as error:
        raise Failed(problem("integrity", f"the items of the dataset cannot be read any more: {error.detail}")) from error
