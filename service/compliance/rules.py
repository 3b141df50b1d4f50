"""Whose clock runs for how long: `jurisdictions.json`, and the arithmetic of dates. Pure but for reading that file.

A month is a calendar month: from the 31st of January it ends on the last day of February. Days are counted from the day after
the receipt. Both keep the time of day of the receipt; the law's period ends with that day, so ours never ends later. The date
of the receipt is that by its offset, or that in UTC, whichever ends earlier: half past eleven at night on the last of February
is the 1st of March elsewhere, and months counted from there end days later.
Weekends and holidays count for periods of working days, and move the end of others only where a jurisdiction's data say
`moves_to_working_day`, as Reg. (EEC, Euratom) 1182/71 Art. 3(4) does: no deadline is later than one that nobody may rely on.
"""

from __future__ import annotations

import json
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

RULES_FILE = Path(__file__).with_name("jurisdictions.json")
Jurisdiction = Literal["gdpr", "uk-gdpr", "ccpa", "none"]
JURISDICTIONS: tuple[Jurisdiction, ...] = get_args(Jurisdiction)
DAY = timedelta(days=1)
ANYWHERE = tuple(timezone(timedelta(hours=hours)) for hours in (-12, 0, 14))
"""Between them they have every date that a moment has anywhere on earth."""


@dataclass(frozen=True)
class Calendar:
    """The days on which nobody works. A holiday that is not listed is a working day, so a deadline is the earlier for it."""

    weekend: frozenset[int] = frozenset({6, 7})
    """ISO: 7 is Sunday."""
    holidays: frozenset[date] = frozenset()
    moves: bool = False
    """A period that ends on such a day ends on the next working day."""

    def working(self, moment: datetime) -> datetime:
        """The same time on that day, or on the first working day after it, by the moment's offset."""
        while moment.isoweekday() in self.weekend or moment.date() in self.holidays:
            moment += DAY
        return moment


@dataclass(frozen=True)
class Period:
    """Calendar months, days or working days; two of the three are 0."""

    months: int = 0
    days: int = 0
    working_days: int = 0

    def after(self, moment: datetime, calendar: Calendar) -> datetime:
        """When it ends that begins at an aware moment, in UTC: counted there or by the moment's offset, the earlier of both."""
        ends = (self._after(begin, calendar) for begin in (moment, moment.astimezone(UTC)))
        return min(ends).astimezone(UTC)

    def _after(self, begin: datetime, calendar: Calendar) -> datetime:
        end = add_months(begin, self.months) + timedelta(days=self.days)
        for _ in range(self.working_days):
            end = calendar.working(end + DAY)
        return calendar.working(end) if calendar.moves else end


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
    calendar: Calendar = Calendar()


@dataclass(frozen=True)
class Extension:
    """A deadline after an extension."""

    due_at: datetime
    late: bool
    """The person was told too late: the first deadline stands."""


@lru_cache(maxsize=1)
def _read() -> dict[str, Rules]:
    return parse(json.loads(RULES_FILE.read_text())["jurisdictions"])


def parse(found: dict[str, Any]) -> dict[str, Rules]:
    """The rules of each jurisdiction as the file has them."""
    return {
        name: Rules(
            answer=Period(**said["answer"]) if said["answer"] else None,
            extended=Period(**said["extended"]) if said["extended"] else None,
            extension_reasons=frozenset(said["extension_reasons"]),
            grounds=frozenset(said["grounds"]),
            calendar=Calendar(
                weekend=frozenset(said.get("weekend", (6, 7))),
                holidays=frozenset(date.fromisoformat(day) for day in said.get("holidays", ())),
                moves=said.get("moves_to_working_day", False),
            ),
        )
        for name, said in found.items()
    }


def rules_of(jurisdiction: str) -> Rules:
    """Raises: KeyError: there is no such jurisdiction."""
    return _read()[jurisdiction]


def add_months(moment: datetime, months: int) -> datetime:
    """The same day and time so many months later, by the moment's offset; the month's last day where it has no such day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    return moment.replace(year=year, month=month + 1, day=min(moment.day, monthrange(year, month + 1)[1]))


def due(jurisdiction: str, received_at: datetime) -> datetime | None:
    """When a request must be answered that was received at an aware moment; None: no law's clock runs."""
    rules = rules_of(jurisdiction)
    return None if rules.answer is None else rules.answer.after(received_at, rules.calendar)


def extend(jurisdiction: str, received_at: datetime, first: datetime | None, informed_at: datetime) -> Extension:
    """The deadline once the person was told that it takes longer, at an aware moment.

    The offset of the receipt is not kept, so the end is the earliest that any offset gives which gave the first deadline: of
    months, at most a day before that of the right one.

    Args:
        first: the deadline as it was computed when the request was made.

    Raises:
        ValueError: no clock runs there.
    """
    rules = rules_of(jurisdiction)
    if first is None or (extended := rules.extended) is None:
        raise ValueError("no law's clock runs, so there is nothing to extend")
    if informed_at > first:
        return Extension(due_at=first, late=True)
    places = [received_at.astimezone(offset) for offset in ANYWHERE]
    agreeing = [place for place in places if due(jurisdiction, place) == first]
    return Extension(due_at=min(extended.after(place, rules.calendar) for place in agreeing or places), late=False)
