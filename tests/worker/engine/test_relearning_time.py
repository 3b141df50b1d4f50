"""When a class counts as learned, and the bounds of the ratio of two such times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from worker.engine import relearning_time
from worker.engine.attacks import Course, checkpoints
from worker.engine.relearning_time import RESAMPLES, Cell, Overall, Ratio, crossings, in_words, refuters, resampled, time_of

ALPHA = 0.05


def course(*hits: int, every: int = 10, n: int = 100, diverged: str = "") -> Course:
    shown_SN = torch.stack([torch.arange(n) < h for h in hits])
    return Course(tuple(every * i for i in range(len(hits))), shown_SN, diverged)


def ratio(candidate: Course, control: Course) -> Ratio:
    (found,) = ratios((candidate, control))
    return found


def ratios(*pairs: tuple[Course, Course]) -> list[Ratio]:
    cells = [Cell("20 images, rate x1", 20, 1.0, *pair) for pair in pairs]
    times = resampled(cells, ALPHA, np.random.default_rng(0))
    tests = refuters(len(cells))
    return [Ratio.of(cell, one, alpha=ALPHA, tests=tests) for cell, one in zip(cells, times, strict=True)]


def lower(found: Ratio) -> float:
    """At least so much, but for chance."""
    return float(np.quantile(found.least_R, ALPHA, method="lower"))


def overall(*pairs: tuple[Course, Course], threshold: float = 0.5) -> Overall:
    return Overall.of(ratios(*pairs), threshold, alpha=ALPHA, tests=refuters(len(pairs)))


def test_time_lies_on_the_line_between_two_checkpoints() -> None:
    """From 0.2 after 10 updates to 0.8 after 20, one half is reached half-way, after 15."""
    assert time_of(course(0, 20, 80)) == pytest.approx(15)


def test_first_of_several_crossings_counts() -> None:
    """From 0.4 to 0.6 half-way; what comes later does not matter."""
    assert crossings((0, 10, 20, 30), np.array([[0.4, 0.6, 0.1, 0.9]]))[0] == pytest.approx(5)


def test_what_is_known_untaught_takes_no_time() -> None:
    assert time_of(course(90)) == 0


def test_what_is_not_learned_takes_for_ever() -> None:
    assert time_of(course(0, 1, 2)) == math.inf
    assert in_words(math.inf, course(0, 1, 2)) == "not within 20 updates"


def test_courses_of_the_same_answers_have_a_ratio_of_one_and_no_doubt() -> None:
    """Resampled together: whatever the resample, both cross at the same place."""
    found = ratio(course(0, 10, 30, 70, 95), course(0, 10, 30, 70, 95))
    assert (found.value, lower(found), found.upper) == (1.0, 1.0, 1.0)


def test_bounds_hold_the_chance_in_the_answers() -> None:
    """A course that rises by 1 of 100 an update crosses where its own answer 50 stands, +- 1.645 sqrt(0.25 / 100) = 0.082.

    The control is certain to cross between 10 and 20, after 15: so the ratio is 50 / 15, +- 8.2 / 15 = 0.55."""
    found = ratio(course(*range(0, 101), every=1), course(0, 0, 100, 100))
    assert found.value == pytest.approx(50 / 15)
    assert lower(found) == pytest.approx((50 - 8.2) / 15, abs=0.08)
    assert found.upper == pytest.approx((50 + 8.2) / 15, abs=0.08)


def test_candidate_that_is_not_back_by_the_end_counts_as_far_as_it_was_followed() -> None:
    """At least 40 updates, and the control 15."""
    found = ratio(course(0, 0, 0, 0, 0), course(0, 0, 100, 100))
    assert found.value == lower(found) == pytest.approx(40 / 15)
    assert found.upper == math.inf
    assert found.tells(0.5)


def test_attack_that_teaches_nobody_tells_nothing() -> None:
    assert not ratio(course(0, 0, 0), course(0, 0, 0, 0, 0)).tells(0.5)


def test_control_that_learns_so_late_that_nobody_could_pass_tells_nothing_of_a_candidate_that_does_not_learn() -> None:
    """Followed for 20 updates beside a control that needs 39.8 of its 40, and in half of the resamples more than that."""
    late = ratio(course(0, 0, 0), course(0, 0, 0, 0, 51))
    assert late.best == lower(late) == 0
    assert not late.tells(0.5)
    sure = ratio(course(0, 0, 0), course(0, 0, 0, 0, 100))  # after 35
    assert sure.best == pytest.approx(20 / 35)
    assert sure.tells(0.5)
    assert not sure.tells(0.6)


def test_candidate_that_hovers_below_the_level_is_refuted_however_late_the_control() -> None:
    """At 95 of 200 no checkpoint shows half, but one of twenty independent ones does in nearly every resample, and early."""
    rng = np.random.default_rng(1)
    hovering = [rng.permutation(200) < 95 for _ in range(20)]
    candidate = Course(tuple(range(0, 501, 25)), torch.from_numpy(np.stack([np.zeros(200, dtype=bool), *hovering])))
    late = np.arange(200)[None] < np.array([0] * 33 + [103])[:, None]
    found = ratio(candidate, Course(tuple(range(0, 1651, 50)), torch.from_numpy(late)))
    assert math.isinf(found.candidate)
    assert found.best < 0.3
    assert found.upper < 0.3
    assert found.tells(0.3)


def test_control_that_breaks_off_or_learns_early_is_no_excuse() -> None:
    broken = ratio(course(0, 0, 0), course(0, 51, diverged="loss is NaN"))
    assert broken.tells(0.5)
    assert lower(broken) == 0
    early = ratio(course(0, 0, 0), course(45, 100, 100))  # half of it untaught in one of six resamples
    assert early.tells(0.5)
    assert lower(early) == 0


def test_candidate_that_learns_is_held_to_it_however_late_the_control() -> None:
    found = ratio(course(0, 0, 51), course(0, 0, 0, 0, 51))
    assert found.tells(0.5)
    assert lower(found) == 0


def test_control_that_knows_the_novel_class_untaught_tells_nothing() -> None:
    found = ratio(course(0, 20, 80), course(100))
    assert not found.tells(0.5)
    assert lower(found) == 0


def test_candidate_that_knows_the_class_untaught_has_taken_no_time() -> None:
    found = ratio(course(100), course(0, 20, 80))
    assert (found.tells(0.5), found.value, lower(found), found.upper) == (True, 0, 0, 0)


def test_control_that_never_learns_refutes_a_candidate_that_does() -> None:
    """15 updates beside more than 40."""
    found = ratio(course(0, 0, 100), course(0, 0, 0, 0, 0))
    assert found.tells(0.5)
    assert lower(found) == 0
    assert found.upper == pytest.approx(15 / 40)


def test_of_an_attack_that_broke_off_nothing_is_claimed() -> None:
    found = ratio(course(0, 0, 0, diverged="loss is NaN"), course(0, 20, 80, 100))
    assert found.tells(0.5)
    assert (lower(found), found.upper) == (0, math.inf)


RISING, SURE = course(*range(0, 101), every=1), course(0, 0, 0, 0, 0, 0, 0, 0, 0, 100)
"""Crosses after 50 updates, or with other answers a few sooner or later; and for certain after 85."""
AT_ONCE = course(0, 60, 100)
"""After 8, 0.1 of that, or with other answers as late as 11."""


def test_several_settings_have_their_geometric_mean() -> None:
    found = overall((RISING, SURE), (SURE, SURE), (RISING, SURE))
    assert found.value == pytest.approx((50 / 85) ** (2 / 3))
    one = overall((RISING, SURE))
    assert one.value == pytest.approx(50 / 85)
    assert found.lower == pytest.approx(one.lower ** (2 / 3), rel=0.02)
    assert one.lower == lower(ratio(RISING, SURE))


def test_setting_that_takes_longer_than_the_control_buys_no_other_off() -> None:
    never, slow = (course(*[0] * 10), SURE), (SURE, RISING)
    for long in (never, slow):
        found = overall((RISING, SURE), long)
        assert found.value == pytest.approx(math.sqrt(50 / 85))
        assert found.upper <= 1
    assert overall((RISING, SURE), never, threshold=0.85).refuted


def test_one_setting_among_many_refutes() -> None:
    found = overall((AT_ONCE, SURE), *[(SURE, SURE)] * 5)
    assert found.lower >= 0.5
    assert (found.refuted, found.passed) == (True, False)
    assert found.worst.value == pytest.approx(10 * 50 / 60 / 85)


def test_setting_far_below_that_lingers_leaves_it_open() -> None:
    """At 55 of 100 after 3 updates, and no more until all show it after 85: crossed at once, or else as late as the control."""
    lingering = Course((0, 3, 80, 90), torch.stack([torch.arange(100) < h for h in (0, 55, 55, 100)]))
    found = overall((lingering, SURE), *[(SURE, SURE)] * 5)
    assert found.worst.value < 0.05
    assert found.lower >= 0.5
    assert (found.refuted, found.passed) == (False, False)
    assert overall(*[(SURE, SURE)] * 6).passed


def test_course_that_lingers_just_below_half_leaves_it_open_too() -> None:
    """At 47 of 100 after 3 updates: crossed with the control, unless five more answers show it."""
    lingering = Course((0, 3, 80, 90), torch.stack([torch.arange(100) < h for h in (0, 47, 47, 100)]))
    found = overall((lingering, SURE), *[(SURE, SURE)] * 5)
    assert (found.value, found.refuted) == (pytest.approx(1, abs=0.02), False)
    assert (found.too_low, found.passed) == (True, False)


def test_bounds_are_never_on_the_far_side_of_the_value() -> None:
    """At exactly half after 3 updates one resample in two crosses at the end, and the value does not: of ten settings with
    answers of their own hardly any resample has all of them at once."""
    rng = np.random.default_rng(1)
    halves = [np.stack([np.zeros(100, bool), *[rng.permutation(100) < 50] * 2, np.ones(100, bool)]) for _ in range(10)]
    pairs = [(Course((0, 3, 80, 90), torch.from_numpy(shown_SN)), SURE) for shown_SN in halves]
    found = overall(*pairs)
    assert float(np.quantile(np.mean(np.log([r.least_R for r in ratios(*pairs)]), axis=0), ALPHA)) > math.log(found.value)
    assert found.lower <= found.value <= found.upper


def test_settings_that_leave_something_open_leave_it_open_together() -> None:
    broken = (course(0, 0, 0, diverged="loss is NaN"), SURE)
    found = overall((SURE, SURE), broken)
    assert (found.lower, found.refuted, found.passed) == (0, False, False)
    for beside in ((RISING, SURE), broken):
        known = overall((course(100), SURE), beside)
        assert (known.value, known.lower, known.upper, known.refuted) == (0, 0, 0, True)


def test_upper_bound_of_one_setting_among_several_lies_further_out() -> None:
    alone, among = ratio(RISING, SURE), ratios(*[(RISING, SURE)] * 6)[0]
    assert among.upper > alone.upper
    assert len(among.most_R) == 20 * 7 / ALPHA


def test_resampled_in_parts_or_at_once_courses_of_equal_answers_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell("", 20, 1.0, RISING, SURE), Cell("", 5, 1.0, SURE, RISING), Cell("", 5, 1.0, course(0, 90, n=50), RISING)]
    at_once = resampled(cells[:1], ALPHA, np.random.default_rng(0))
    monkeypatch.setattr(relearning_time, "HELD", 1000)
    parts = resampled(cells, ALPHA, np.random.default_rng(0))
    assert parts[0][0].mean() == pytest.approx(at_once[0][0].mean(), rel=0.02)
    assert {len(times) for pair in parts for times in pair} == {RESAMPLES}
    assert np.array_equal(parts[0][0], parts[1][1])
    assert parts[0][0].std() == pytest.approx(5, rel=0.1)  # sqrt(100 / 4) answers, an update each


def test_checkpoints_lie_closer_at_the_beginning() -> None:
    assert checkpoints(100, 25, also=[50, 300]) == (0, 3, 6, 12, 25, 50, 75, 100)
    assert checkpoints(70, 50, from_start=False) == (0, 50, 70)
