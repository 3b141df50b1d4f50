"""When a class counts as learned, and the bounds of that."""

from __future__ import annotations

import math

import pytest

from worker.engine.attacks import Course, checkpoints
from worker.engine.relearning_time import Cell, Ratio, Time

ALPHA = 0.05


def course(*hits: int, every: int = 10, n: int = 100, diverged: str = "") -> Course:
    return Course(tuple(every * i for i in range(len(hits))), hits, n, diverged)


def ratio(candidate: Course, control: Course) -> Ratio:
    return Ratio.of(Cell("20 images, rate x1", 20, 1.0, candidate, control), ALPHA)


def test_time_lies_on_the_line_between_two_checkpoints() -> None:
    """From 0.2 after 10 updates to 0.8 after 20, one half is reached half-way, after 15."""
    assert Time.of(course(0, 20, 80), ALPHA).value == pytest.approx(15)


def test_time_of_what_is_known_untaught_is_zero() -> None:
    assert Time.of(course(90), ALPHA) == Time(0.0, 0.0, 0.0, 0.0)


def test_bounds_of_the_time_are_where_the_bounds_of_the_rate_cross() -> None:
    """Of 100 answers, 95 % one-sided: 41 hits bound the rate by 0.4973 from above and 42 by 0.5073; 59 by 0.5029 from below
    and 58 by 0.4927. So on a course of one hit an update the bounds lie near 42 and 59."""
    time = Time.of(course(*range(0, 101), every=1), ALPHA)
    assert time.value == 50
    assert 41 <= time.lower <= 42
    assert 58 <= time.upper <= 59


def test_time_beyond_the_end_has_no_upper_bound() -> None:
    time = Time.of(course(0, 1, 2), ALPHA)
    assert (time.value, time.lower, time.upper, time.followed) == (math.inf, 20.0, math.inf, 20.0)


def test_equal_courses_have_a_ratio_of_one_and_pass_within_chance() -> None:
    found = ratio(course(0, 10, 30, 70, 95), course(0, 10, 30, 70, 95))
    assert found.value == 1
    assert 0.5 < found.lower < 1 < found.upper


def test_candidate_that_is_not_back_by_the_end_counts_as_far_as_it_was_followed() -> None:
    """At least 40 updates, and the control 15 to at most 20."""
    found = ratio(course(0, 0, 0, 0, 0), course(0, 0, 100, 100))
    assert found.value == pytest.approx(40 / 15)
    assert found.lower >= 2
    assert found.powered


def test_attack_that_teaches_nobody_tells_nothing() -> None:
    assert not ratio(course(0, 0, 0), course(0, 0, 0, 0, 0)).powered


def test_control_that_knows_the_novel_class_untaught_tells_nothing() -> None:
    assert not ratio(course(0, 20, 80), course(80)).powered


def test_control_that_never_learns_refutes_a_candidate_that_does() -> None:
    """15 updates beside more than 40."""
    found = ratio(course(0, 20, 80), course(0, 0, 0, 0, 0))
    assert found.powered
    assert found.lower == 0
    assert found.upper < 0.5


def test_of_an_attack_that_broke_off_nothing_is_claimed() -> None:
    found = ratio(course(0, 0, 0, diverged="loss is NaN"), course(0, 20, 80, 100))
    assert found.powered
    assert found.lower == 0
    assert math.isinf(found.upper)


def test_checkpoints_lie_closer_at_the_beginning() -> None:
    assert checkpoints(100, 25, also=[50, 300]) == (0, 3, 6, 12, 25, 50, 75, 100)
    assert checkpoints(70, 50, from_start=False) == (0, 50, 70)
