"""Which recipe comes next, and with which seed."""

from __future__ import annotations

from typing import get_args

from service.requests.rungs import CODES, FINAL, REJECTED, ladder_of, rung_after, seed_at
from service.verifier import claim
from worker.contract import Verdict


def test_a_plain_method_is_its_own_recipe_as_often_as_its_policy_allows() -> None:
    assert [r.method for r in ladder_of("sfron", {}, {})] == ["sfron"]
    assert len(ladder_of("sfron", {"a": 1}, {"attempts": 3})) == 3


def test_auto_is_as_long_as_its_ladder_whatever_its_policy_allows() -> None:
    ladder = [{"method": "sfron", "params": {}}, {"method": "retrain", "params": {"iterations": 5}}]
    recipes = ladder_of("auto", {"ladder": ladder}, {"attempts": 5})
    assert [(r.method, dict(r.params)) for r in recipes] == [("sfron", {}), ("retrain", {"iterations": 5})]


def test_runs_that_died_spend_no_rung_and_each_rung_is_spent_once() -> None:
    assert rung_after([]) == 1
    assert rung_after([None, {}, {"rung": 1}]) == 1  # of releases before this one, or lost
    assert rung_after([{"rung": 1, "spent": True}, {"rung": 2}, {"rung": 2}]) == 2
    assert rung_after([{"rung": 2, "spent": True}, {"rung": 1, "spent": True}]) == 3


def test_seeds_of_rungs_differ_and_the_first_is_the_requests_own() -> None:
    seeds = [seed_at(7, rung) for rung in range(1, 17)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert seed_at(8, 2) != seed_at(7, 2)


def test_every_verdict_but_pass_gives_way_or_ends_the_request_and_has_a_code() -> None:
    assert REJECTED | FINAL == set(CODES) == set(get_args(Verdict)) - {"PASS"}
    assert not REJECTED & FINAL


def test_the_offline_verifier_lets_those_attempts_come_before_that_spend_a_rung() -> None:
    """A recipe that diverges spends one, too: see `answers.require_success`."""
    assert REJECTED | {"diverged"} == claim.SPENT
