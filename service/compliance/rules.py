"""Whose clock runs for how long: `jurisdictions.json`, and the arithmetic of dates. Pure but for reading that file.

A month is a calendar month: from the 31st of January it ends on the last day of February. Days are counted from the day after
the receipt. Both keep the time of day of the receipt, in UTC; the law's period ends with that day, so ours never ends later.
Weekends and holidays do not move it (Reg. (EEC, Euratom) 1182/71 Art. 3(4) would move it to the next working day).
"""

from __future__ import annotations

import calendar
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

RULES_FILE = Path(__file__).with_name("jurisdictions.json")
Jurisdiction = Literal["gdpr", "uk-gdpr", "ccpa", "none"]
JURISDICTIONS: tuple[Jurisdiction, ...] = get_args(Jurisdiction)


@dataclass(frozen=True)
class Period:
    """Calendar months or days; one of the two is 0."""

    months: int = 0
    days: int = 0

    def after(self, moment: datetime) -> datetime:
        """When it ends that begins at an aware moment, in UTC."""
        return add_months(moment, self.months) + timedelta(days=self.days)


@dataclass(frozen=True)
class Rules:
    """One jurisdiction's."""

    answer: Period | None
    """From the receipt; None: no clock runs."""
    extended: Period | None
    """From the receipt, too: the whole of it once it was extended."""
    extension_reasons: frozenset[str]
    grounds: frozenset[str]
    """On which a request may be refused."""


@dataclass(frozen=True)
class Extension:
    """A deadline after an extension."""

    due_at: datetime
    late: bool
    """The person was told too late: the first deadline stands."""


@lru_cache(maxsize=1)
def _read() -> dict[str, Rules]:
    found: dict[str, Any] = json.loads(RULES_FILE.read_text())["jurisdictions"]
    return {
        name: Rules(
            answer=Period(**said["answer"]) if said["answer"] else None,
            extended=Period(**said["extended"]) if said["extended"] else None,
            extension_reasons=frozenset(said["extension_reasons"]),
            grounds=frozenset(said["grounds"]),
        )
        for name, said in found.items()
    }


def rules_of(jurisdiction: str) -> Rules:
    """Raises: KeyError: there is no such jurisdiction."""
    return _read()[jurisdiction]


def add_months(moment: datetime, months: int) -> datetime:
    """The same day and time so many months later, in UTC; the last day of the month where it has no such day."""
    start = moment.astimezone(UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    return start.replace(year=year, month=month + 1, day=min(start.day, calendar.monthrange(year, month + 1)[1]))


def due(jurisdiction: str, received_at: datetime) -> datetime | None:
    """When a request must be answered that was received at an aware moment; None: no law's clock runs."""
    answer = rules_of(jurisdiction).answer
    return None if answer is None else answer.after(received_at)


def extend(jurisdiction: str, received_at: datetime, informed_at: datetime) -> Extension:
    """The deadline once the person was told that it takes longer, at an aware moment.

    Raises:
        ValueError: no clock runs there.
    """
    rules, first = rules_of(jurisdiction), due(jurisdiction, received_at)
    if first is None or rules.extended is None:
        raise ValueError("no law's clock runs, so there is nothing to extend")
    late = informed_at > first
    return Extension(due_at=first if late else rules.extended.after(received_at), late=late)
