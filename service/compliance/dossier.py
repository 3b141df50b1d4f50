"""Everything that the ledger says of one request, as a zip that can be checked without this service.

    events.ndjson                              every entry of the request, in order: they are a chain
    proofs/<seq>.tlog-proof                    that each is in the signed ledger, and so is what took the text of one away
    certificates/<checkpoint id>.sigstore.json
    policy.txt manifest.json SHA256SUMS

Private payloads are not in it: it may be handed on.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from service import tenancy
from service.audit import checkpoints, proofs, trust
from service.audit.ledger import LOG_ID
from service.config import Settings
from service.errors import NotYetSigned
from service.tables import Checkpoint, LedgerCheckpoint, LedgerEntry
from service.verifier.note import Checkpoint as Signed
from service.verifier.note import Note

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same entries give the same bytes: a zip's times say nothing here."""


def build(session: OrmSession, settings: Settings, request_id: str) -> tuple[bytes, int]:
    """The zip, and how many entries it holds. One read, so that proofs and entries are of the same moment.

    Raises:
        NotYetSigned: its latest entry, or one that took a text of it away, is in no signed tree yet.
    """
    chosen = select(LedgerEntry).where(LedgerEntry.log_id == LOG_ID, LedgerEntry.request_id == request_id)
    events = list(session.scalars(chosen.order_by(LedgerEntry.request_ordinal)))
    files = {"events.ndjson": b"".join(map(_event, events))}
    shown = [event.seq for event in events] + [event.redacted_by for event in events if event.redacted_by is not None]
    signed = _signed(session, settings, above=max(shown))
    with tenancy.acting(None):  # whoever took a text away may have done it as another project's
        for seq in shown:
            files[f"proofs/{seq}.tlog-proof"] = str(proofs.in_checkpoint(session, seq, signed)).encode()
    for made in session.scalars(select(Checkpoint).where(Checkpoint.request_id == request_id)):
        files[f"certificates/{made.id}.sigstore.json"] = _json(made.certificate)
    files["policy.txt"] = trust.policy_text(settings).encode()
    tree = Signed.parse(Note.parse(signed.note).text)
    files["manifest.json"] = _json({"request_id": request_id, "size": tree.size, "origin": tree.origin})
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return _zip(files | {"SHA256SUMS": sums.encode()}), len(events)


def _signed(session: OrmSession, settings: Settings, *, above: int) -> LedgerCheckpoint:
    """One signed tree for all proofs, which holds every entry. Raises: NotYetSigned: the newest does not reach so far."""
    try:
        found = checkpoints.accepted(session, trust.policy(settings), above=above)
    except trust.NoLogKey as error:
        raise NotYetSigned(str(error)) from error
    if found is None:
        raise NotYetSigned("the request's latest entry is in no signed tree yet; it is within a minute as a rule")
    return found


def _event(row: LedgerEntry) -> bytes:
    said: dict[str, Any] = {"seq": row.seq}
    if row.leaf is None:
        said |= {"redacted_by": row.redacted_by, "leaf_hash": row.leaf_hash.hex()}
    else:
        said |= {"leaf": row.leaf.decode()}
    return _json(said)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()
