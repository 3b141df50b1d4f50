"""A request's last verification report, for programs and for people: as JSON, as one HTML file, as one PNG.

The JSON is the engine's own, byte for byte what the certificate's digest is of once its keys are sorted. The others are drawn
when they are asked for, out of it, the pictures in the store and the request's rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Response
from sqlalchemy.orm import Session as OrmSession

from service.catalogue import get_catalogue
from service.certificates.dsse import payload_of
from service.downloads import unchanged
from service.errors import ReportNotFound
from service.models import repository as models
from service.reports import contents, html
from service.reports.contents import About, Picture
from service.reports.plots import words
from service.requests import leases, repository
from service.requests.rungs import SPENT
from service.requests.wishes import Gone
from service.storage import Missing, Store, StoreError
from service.tables import Attempt, Checkpoint, Model, UnlearnRequest
from service.telemetry.http import STORE_ERRORS

Format = Literal["json", "html", "png"]
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "html": "text/html", "png": "image/png"}
LARGEST_PICTURE = 8 << 20
"""Bytes of a picture that is put into the page; a larger one has its own address."""
CAPTIONS = {"before_after.png": "Before and after, class by class. Classes that are to be forgotten are framed."}


@dataclass(frozen=True)
class Told:
    """All that the database knows of a report."""

    report: dict[str, Any]
    about: About
    evidence: tuple[Mapping[str, Any], ...]


def preferred(accept: str) -> Format:
    """What an `Accept` header asks for; JSON where it asks for nothing that there is, or for anything (RFC 9110 §12.5.1)."""
    weights = dict(_weights(accept))
    best: Format = "json"
    for kind in ("json", "html", "png"):
        if weights.get(MEDIA_TYPES[kind], 0.0) > weights.get(MEDIA_TYPES[best], 0.0):
            best = kind
    return best


def _weights(accept: str) -> Iterable[tuple[str, float]]:
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = [p.removeprefix("q=") for p in parameters if p.startswith("q=")]
        try:
            yield name, min(float(given[0]), 1.0) if given else 1.0
        except ValueError:
            yield name, 0.0


def read(session: OrmSession, request_id: str) -> Told:
    """The last report of a request, pass or fail, with the facts around it.

    Raises:
        RequestNotFound.
        ReportNotFound: nothing of it was verified yet.
    """
    row = repository.get(session, request_id)
    attempts = repository.attempts(session, request_id)
    last = next((a for a in reversed(attempts) if a.report), None)
    if last is None or last.report is None:
        raise ReportNotFound
    return Told(last.report, _about(session, row, attempts, last), tuple(last.evidence or ()))


def _about(session: OrmSession, row: UnlearnRequest, attempts: list[Attempt], last: Attempt) -> About:
    model = session.get_one(Model, row.model_id)
    base = repository.base_version(session, row)
    before = models.forgotten_in(base) if base else Gone()
    catalogue = get_catalogue()
    family = catalogue.families.get(model.family)
    published = session.get(Checkpoint, row.checkpoint_id) if row.checkpoint_id else None
    certified = _certified(published) if published else {}
    names = model.class_names
    return About(
        request_id=row.id,
        model=f"{model.name} ({model.id}, {model.family})",
        forget=tuple(names[k] for k in row.forget_classes),
        earlier=tuple(names[k] for k in sorted(before.classes)),
        samples=len(row.forget_samples) + len(before.samples),
        method=str((last.detail or {}).get("method", row.method)),  # of `auto`, the recipe that this report is about
        kind=family.kind if family else None,
        policy=row.policy,
        retain=row.retain,
        class_names=tuple(names),
        attempt=_attempt(attempts, last, int(row.policy.get("attempts") or 1)),
        rejected_before=int((last.detail or {}).get(leases.BEFORE, 0)),
        parent=certified.get("parent"),
        approval=certified.get("approval"),
        guarantee=str(certified["claim"]["guarantee"]) if "claim" in certified else None,
        certified_report=str(certified["verification"]["reportSha256"]) if "verification" in certified else "",
        checkpoint=published.id if published else "",
        titles={name: entry.title for name, entry in catalogue.verifiers.items()},
    )


def _attempt(attempts: list[Attempt], last: Attempt, most: int) -> str:
    """Which of how many results that may be verified, and what was said of those before: who tries often is lucky once.

    Runs are not counted: one that died, or was verified again under the same seeds, was no other chance.
    """
    earlier = {_rung(a): a for a in attempts if _rung(a) < _rung(last) and (a.report or (a.detail or {}).get(SPENT))}
    outcomes = [str(a.report["verdict"] if a.report else (a.detail or {}).get("code")) for _, a in sorted(earlier.items())]
    said = f"{_rung(last)} of {most}"
    if outcomes:
        said += f"; earlier ones ended with: {', '.join(outcomes)}"
    if most > 1:
        said += f"; all {most} share the chance of a false pass"
    return said


def _rung(run: Attempt) -> int:
    return int((run.detail or {}).get("rung", 1))


def _certified(published: Checkpoint) -> dict[str, Any]:
    """What the certificate says."""
    predicate: dict[str, Any] = json.loads(payload_of(published.certificate)).get("predicate", {})
    return predicate


def pictures(store: Store, evidence: Iterable[Mapping[str, Any]]) -> list[Picture]:
    """The pictures of the evidence, each held against its digest. One that cannot be had is named, with the reason."""
    return [_picture(store, entry) for entry in evidence if str(entry["path"]).endswith(".png")]


def _picture(store: Store, entry: Mapping[str, Any]) -> Picture:
    name = str(entry["path"]).removeprefix("evidence/")
    if entry["size"] > LARGEST_PICTURE:
        return Picture(name, "it is too large for this page; it has an address of its own below the report's")
    try:
        with store.open(entry["sha256"]) as stream:
            content = stream.read(LARGEST_PICTURE + 1)
    except Missing:
        return Picture(name, "the store no longer has it")
    except StoreError:
        STORE_ERRORS.inc()
        return Picture(name, "the store does not answer just now")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        return Picture(name, "the store holds other bytes than its digest says, so it is not shown")
    return Picture(name, CAPTIONS.get(name, words(name.removesuffix(".png"))), content)


def answer(told: Told, wanted: Format, store: Store, if_none_match: str | None) -> Response:
    """The report as it is wanted. HTML and PNG carry a tag of their bytes, so that looking again costs no transfer."""
    if wanted == "json":
        return Response(json.dumps(told.report), headers={"Vary": "Accept"}, media_type=MEDIA_TYPES["json"])
    page = contents.page(told.report, told.about, pictures(store, told.evidence))
    content = _renderer(wanted)(page)
    headers = {
        "ETag": f'"sha256:{hashlib.sha256(content).hexdigest()}"',
        "Vary": "Accept",
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": html.POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Disposition": f'inline; filename="report-{told.about.request_id}.{wanted}"',
    }
    if unchanged(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    media_type = f"{MEDIA_TYPES[wanted]}; charset=utf-8" if wanted == "html" else MEDIA_TYPES[wanted]
    return Response(content, headers=headers, media_type=media_type)


def _renderer(wanted: Format) -> Callable[[contents.Page], bytes]:
    if wanted == "html":
        return html.render
    from service.reports import png  # Pillow takes a moment to import; only a picture needs it

    return png.render
