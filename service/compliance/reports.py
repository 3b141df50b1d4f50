"""Reports: what a regulator wants to see of a whole year, or of all requests. Rows as in `questions`."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, select

from service.audit.ledger import LOG_ID
from service.compliance.questions import ACCESS, Asking, Question, Row, entries, law
from service.db import reading
from service.tables import LedgerEntry, LedgerPrivate, RequestCompliance

DAY = timedelta(days=1)


def _chosen(asked: Asking) -> list[Any]:
    return [RequestCompliance.jurisdiction == asked.jurisdiction] if asked.jurisdiction else []


def _deadlines(asked: Asking) -> Iterator[Row]:
    for row, request in law(RequestCompliance.due_at.is_not(None), *_chosen(asked)):
        assert row.due_at is not None
        yield {
            "request_id": row.request_id,
            "jurisdiction": row.jurisdiction,
            "status": request.status,
            "received_at": row.received_at,
            "due_at": row.due_at,
            "extended_at": row.extended_at,
            "answered_at": row.answered_at,
            "state": _standing(row, asked.at),
            "days_left": None if row.answered_at else (row.due_at - asked.at) // DAY,
        }


def _standing(row: RequestCompliance, at: datetime) -> str:
    if row.answered_at is not None:
        return "answered" if row.due_at is None or row.answered_at <= row.due_at else "answered_late"
    return "overdue" if row.due_at is not None and row.due_at < at else "open"


def _annual(asked: Asking) -> Iterator[Row]:
    """Counts and times of a year's requests by jurisdiction (11 CCR §7102 asks for these); days are rounded up."""
    year = asked.year or asked.at.year
    begin, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    days: dict[str, list[int]] = defaultdict(list)
    for row, _ in law(RequestCompliance.received_at >= begin, RequestCompliance.received_at < end, *_chosen(asked)):
        of = counts[row.jurisdiction]
        of.update(["received", _standing(row, asked.at)])
        of.update(["refused"] * (row.ground is not None) + ["extended"] * (row.extended_at is not None))
        if row.answered_at is not None:
            days[row.jurisdiction].append(-((row.received_at - row.answered_at) // DAY))
    for name in sorted(counts):
        took = days[name]
        yield {
            "year": year,
            "jurisdiction": name,
            "received": counts[name]["received"],
            "answered": counts[name]["answered"] + counts[name]["answered_late"],
            "answered_late": counts[name]["answered_late"],
            "refused": counts[name]["refused"],
            "extended": counts[name]["extended"],
            "open": counts[name]["open"],
            "overdue": counts[name]["overdue"],
            "median_days": f"{statistics.median(took):.1f}" if took else None,
            "mean_days": f"{statistics.mean(took):.1f}" if took else None,
        }


def _access(asked: Asking) -> Iterator[Row]:
    found: dict[tuple[str, str, str], list[Any]] = {}
    for entry, public in entries(asked, LedgerEntry.action.in_(ACCESS)):
        key = entry.actor, entry.action, str(public.get("what", "private payloads"))
        seen = found.setdefault(key, [0, 0, entry.at, entry.at])
        seen[0] += 1
        seen[1] += len(public["seqs"]) if "seqs" in public else int(public.get("count", 0))
        seen[3] = entry.at
    for (actor, action, what), (times, rows, first, last) in sorted(found.items()):
        yield {"actor": actor, "action": action, "what": what, "times": times, "rows": rows, "first_at": first, "last_at": last}


def _retention(asked: Asking) -> Iterator[Row]:
    """By class and key: what is still sealed, what is held, what is due, and whether the key is gone."""
    kept = LedgerPrivate.shredded_at.is_(None)
    late = and_(kept, LedgerPrivate.retain_until <= asked.at)
    query = (
        select(
            LedgerPrivate.kind,
            LedgerPrivate.kek_id,
            func.count(),
            func.count().filter(kept),
            func.count().filter(and_(kept, LedgerPrivate.legal_hold)),
            func.count().filter(and_(kept, LedgerPrivate.retain_until.is_(None))),
            func.count().filter(late),
            func.min(LedgerPrivate.retain_until).filter(kept),
            func.max(LedgerPrivate.kek_destroyed_at),
        )
        .where(LedgerPrivate.log_id == LOG_ID)
        .group_by(LedgerPrivate.kind, LedgerPrivate.kek_id)
        .order_by(LedgerPrivate.kind, LedgerPrivate.kek_id)
    )
    with reading() as session:
        rows = session.execute(query).all()
    names = REPORTS["retention"].columns
    yield from (dict(zip(names, row, strict=True)) for row in rows)


def _recipients(asked: Asking) -> Iterator[Row]:
    for row, request in law(*_chosen(asked)):
        if not row.recipients:
            continue
        of_request = LedgerEntry.request_id == row.request_id, LedgerEntry.action == "recipient.notified"
        told = {public["recipient"]: public for _, public in entries(asked, *of_request) if public}
        for recipient in row.recipients:
            said = told.get(recipient, {})
            yield {
                "request_id": row.request_id,
                "status": request.status,
                "recipient": recipient,
                "told": recipient in row.recipients_told,
                "result": said.get("result"),
                "at": said.get("at"),
            }


REPORTS: dict[str, Question] = {
    "deadlines": Question(
        "Every request with a deadline, and where it stands.",
        (
            "request_id", "jurisdiction", "status", "received_at", "due_at", "extended_at", "answered_at", "state",
            "days_left",
        ),
        _deadlines,
        takes=("jurisdiction",),
    ),
    "annual": Question(
        "A year's requests by jurisdiction: how many, how they ended, and how long they took.",
        (
            "year", "jurisdiction", "received", "answered", "answered_late", "refused", "extended", "open", "overdue",
            "median_days", "mean_days",
        ),
        _annual,
        takes=("jurisdiction", "year"),
    ),
    "access": Question(
        "Who read the ledger, how often, and how much of it.",
        ("actor", "action", "what", "times", "rows", "first_at", "last_at"),
        _access,
    ),
    "retention": Question(
        "What private data are kept, under which key, and until when.",
        ("class", "kek_id", "rows", "kept", "held", "clock_not_running", "due", "next_due_at", "kek_destroyed_at"),
        _retention,
    ),
    "recipients": Question(
        "Who was given data that were to be forgotten, and what they were told.",
        ("request_id", "status", "recipient", "told", "result", "at"),
        _recipients,
        takes=("jurisdiction",),
    ),
}  # fmt: skip
"""By name."""
