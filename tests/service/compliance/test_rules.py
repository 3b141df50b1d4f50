"""When the law's clocks end: month ends, leap years, extensions."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.compliance import rules as rules_module
from service.compliance.rules import JURISDICTIONS, RULES_FILE, add_months, due, extend, parse, rules_of


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC, hour=14, minute=30)


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        ("2026-11-20", "2026-12-20"),
        ("2026-01-31", "2026-02-28"),  # no 31st of February: its last day
        ("2028-01-31", "2028-02-29"),  # a leap year
        ("2100-01-31", "2100-02-28"),  # divisible by 100 and not by 400
        ("2000-01-30", "2000-02-29"),
        ("2026-02-28", "2026-03-28"),  # the last day of February is no last day of March
        ("2028-02-29", "2028-03-29"),
        ("2026-03-31", "2026-04-30"),
        ("2026-12-31", "2027-01-31"),
        ("2026-12-01", "2027-01-01"),
    ],
)
def test_a_month_is_a_calendar_month(received: str, expected: str) -> None:
    for law in ("gdpr", "uk-gdpr"):
        assert due(law, day(received)) == day(expected)


@pytest.mark.parametrize(
    ("received", "expected"),
    [("2026-01-01", "2026-02-15"), ("2028-01-31", "2028-03-16"), ("2026-01-31", "2026-03-17"), ("2026-12-01", "2027-01-15")],
)
def test_california_counts_45_days(received: str, expected: str) -> None:
    assert due("ccpa", day(received)) == day(expected) == day(received) + timedelta(days=45)


def test_no_law_no_clock() -> None:
    assert due("none", day("2026-01-31")) is None
    with pytest.raises(ValueError, match="nothing to extend"):
        extend("none", day("2026-01-31"), None, day("2026-02-01"))
    with pytest.raises(KeyError):
        rules_of("atlantis")


@pytest.mark.parametrize(
    ("law", "received", "expected"),
    [
        ("gdpr", "2026-01-31", "2026-04-30"),  # three months from the receipt, not two from the 28th of February
        ("gdpr", "2026-11-30", "2027-02-28"),
        ("gdpr", "2027-11-30", "2028-02-29"),
        ("ccpa", "2026-01-01", "2026-04-01"),  # 90 days
    ],
)
def test_an_extension_counts_from_the_receipt(law: str, received: str, expected: str) -> None:
    first = due(law, day(received))
    assert first is not None
    in_time = extend(law, day(received), first, first)
    assert (in_time.due_at, in_time.late) == (day(expected), False)
    late = extend(law, day(received), first, first + timedelta(microseconds=1))
    assert (late.due_at, late.late) == (first, True)  # it moves nothing


@pytest.mark.parametrize(
    ("received", "answer", "extended"),
    [
        # the 31st in UTC, where the month ends on the 28th; here it would end on the 1st of March, which is the same moment
        ("2026-02-01T00:30+13:00", "2026-02-28T11:30Z", "2026-04-30T11:30Z"),
        # the 1st of March in UTC: the law's month ends on the 28th of March there, not on the 1st of April
        ("2027-02-28T23:30-01:00", "2027-03-28T23:30-01:00", "2027-05-28T23:30-01:00"),
        ("2027-04-30T23:30-03:00", "2027-05-30T23:30-03:00", "2027-07-30T23:30-03:00"),
        # the 30th in UTC, and the 31st here: both months end on the 28th, and that of here ends sooner
        ("2026-01-31T00:30+13:00", "2026-02-28T00:30+13:00", "2026-04-30T00:30+13:00"),
        # the first deadline does not tell the offset: +1 gives the 30th of December from either day, and three months do not
        ("2026-11-30T00:30+13:00", "2026-12-30T00:30+13:00", "2027-02-28T00:30+13:00"),
    ],
)
def test_where_the_day_is_another_one_the_deadline_is_the_earlier(received: str, answer: str, extended: str) -> None:
    there = datetime.fromisoformat(received)
    first = due("gdpr", there)
    assert first == datetime.fromisoformat(answer)
    assert extend("gdpr", there.astimezone(UTC), first, first).due_at == datetime.fromisoformat(extended)


offsets = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1)), offsets)
def test_no_deadline_is_after_the_law_s_and_none_much_before(moment: datetime, offset: timezone) -> None:
    """The law's is the end of the day, by the receipt's offset, that is so many months after the date of the receipt there."""
    there = moment.replace(tzinfo=offset)
    first = due("gdpr", there)
    assert first is not None
    ends = (first, add_months(there, 1)), (extend("gdpr", there.astimezone(UTC), first, first).due_at, add_months(there, 3))
    for ours, law in ends:
        assert ours.astimezone(offset).date() <= law.date()
        assert law - ours <= timedelta(days=3)  # the 1st in one place, the last of February in the other


@given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)), st.integers(0, 40))
def test_months_keep_the_day_or_take_the_last(moment: datetime, months: int) -> None:
    later = add_months(moment, months)
    assert (later.year * 12 + later.month) - (moment.year * 12 + moment.month) == months
    assert later.timetz() == moment.timetz()
    assert later.day == moment.day or (later.day < moment.day and (later + timedelta(days=1)).day == 1)


OFFICE = {
    "answer": {"working_days": 10},
    "extended": {"working_days": 15},
    "extension_reasons": ["x"],
    "grounds": {"x": ""},
    "holidays": ["2026-12-25", "2027-01-01"],
}


@pytest.mark.parametrize(
    ("received", "changes", "expected"),
    [
        # Monday the 2nd of November: Tuesday is the first, 3-6 and 9-13 are nine, Monday the 16th is the tenth
        ("2026-11-02", {}, "2026-11-16"),
        ("2026-11-07", {}, "2026-11-20"),  # a Saturday: Monday the 9th is the first
        ("2026-12-18", {}, "2027-01-05"),  # a Friday: 21-24, 28-31 are eight, the 4th and 5th of January; two holidays left out
        ("2026-12-18", {"holidays": []}, "2027-01-01"),  # what is not listed is a working day: earlier, not later
        ("2026-11-02", {"weekend": [7]}, "2026-11-13"),  # Saturdays count: 3-7 are five, 9-13 are five
        ("2026-11-25", {"answer": {"months": 1}}, "2026-12-25"),  # nothing moves a period of months
        (
            "2026-11-25",
            {"answer": {"months": 1}, "moves_to_working_day": True},
            "2026-12-28",
        ),  # Friday, a holiday; then a weekend
        ("2026-11-02", {"answer": {"days": 5}, "moves_to_working_day": True}, "2026-11-09"),  # Saturday
        ("2026-11-02", {"answer": {"days": 4}, "moves_to_working_day": True}, "2026-11-06"),
    ],
)
def test_working_days_are_counted_where_the_data_say_so(received: str, changes: dict[str, Any], expected: str) -> None:
    rules = parse({"office": OFFICE | changes})["office"]
    assert rules.answer is not None
    assert rules.answer.after(day(received), rules.calendar) == day(expected)


def test_a_working_day_is_one_where_the_person_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half past eleven on Friday evening is Saturday in UTC: ten working days end on a Friday from either, there and in UTC."""
    monkeypatch.setattr(rules_module, "_read", lambda: parse({"office": OFFICE}))
    there = datetime(2026, 11, 6, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    first = due("office", there)
    assert first == datetime(2026, 11, 20, 4, 30, tzinfo=UTC)  # Friday in UTC, Thursday night there; the law's is Friday there
    extended = extend("office", there.astimezone(UTC), first, first)
    assert extended.due_at == datetime(2026, 11, 27, 4, 30, tzinfo=UTC)


def test_the_rules_are_those_that_a_request_may_name() -> None:
    assert set(json.loads(RULES_FILE.read_text())["jurisdictions"]) == set(JURISDICTIONS)
    for name in JURISDICTIONS:
        rules = rules_of(name)
        assert rules.grounds
        assert bool(rules.extension_reasons) == (rules.answer is not None) == (rules.extended is not None)
