"""Looking again: what is looked at, when it ends, and that luck does not add up over the looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.engine import verification_job as vj
from worker.contract import Check, DatasetSpec, Finding, JudgePolicy, Policy, Report, Spec
from worker.engine import registry, verify
from worker.engine.looks import look
from worker.engine.statistics import ALPHA
from worker.engine.verifier import level
from worker.engine.verifiers.forget_rate import ForgetRate, Thresholds
from worker.engine.verifiers.retain_accuracy import Thresholds as RetainThresholds

N, TAU = 100, 0.05


def a_spec(looks: int, attempts: int = 1, *checks: str) -> Spec:
    asked = tuple(Check(verifier=name) for name in checks or ("forget_rate",))
    return Spec(
        request_id="r",
        family="painter",
        method="none",
        seed=1,
        verification_seed=7,
        class_names=vj.NAMES,
        forget_classes=(vj.FORGET,),
        base_digest="0" * 64,
        original_digest="0" * 64,
        dataset=DatasetSpec(format="npz", digest="0" * 64),
        policy=Policy(name="p", looks=looks, attempts=attempts, checks=asked),
    )


def found_by(spec: Spec, alpha: float, n: int, hits: int) -> tuple[Finding, ...]:
    """By the real check, of a candidate of whose n samples so many show the class, and an original of whom all do."""

    def shows(subject: str, k: int, n: int) -> Any:
        return torch.arange(n) < (n if subject == "original" else hits)

    env: Any = SimpleNamespace(spec=spec, alpha=alpha, shows=shows, judges=())
    return ForgetRate(Thresholds(n_per_class=n, max_rate=TAU)).run(env)


def verdicts(spec: Spec, rate: float, runs: int, *, alpha: float) -> tuple[float, float]:
    """Share of PASS, and the looks taken on average, under the real loop; each look keeps the samples of the one before."""
    rng, passed, looks = np.random.default_rng(20), 0, 0
    known: dict[tuple[int, int], tuple[Finding, ...]] = {}

    def measured(shows: Any, n: int) -> tuple[Finding, ...]:
        key = n, int(shows[:n].sum())
        if key not in known:
            known[key] = found_by(spec, alpha, *key)
        return known[key]

    for _ in range(runs):
        shows = rng.random(N * 2**spec.policy.looks) < rate
        found, taken = look([N], spec, run=partial(measured, shows), enlarge=lambda n: 2 * n)
        passed += verify.decide(found, spec) == "PASS"
        looks += taken
    return passed / runs, looks / runs


def test_a_model_that_shows_a_class_just_too_often_passes_at_some_look_no_oftener_than_alpha() -> None:
    """At a rate of exactly the threshold, the hardest to refuse. 4,000 runs: the standard error of 5 % is .34 points.

    With the whole of alpha at each look it would pass more often than that: that is what the shares are for.
    """
    spec = a_spec(4)
    shared, looks = verdicts(spec, TAU, 4000, alpha=level(spec))
    whole, _ = verdicts(spec, TAU, 4000, alpha=ALPHA)
    assert shared <= ALPHA
    assert whole > ALPHA + 2 * 0.0034
    assert looks > 2  # they were taken


def test_looking_again_lets_good_models_pass_that_one_look_of_few_samples_would_not() -> None:
    once, _ = verdicts(a_spec(1), 0.01, 1000, alpha=level(a_spec(4)))
    again, _ = verdicts(a_spec(4), 0.01, 1000, alpha=level(a_spec(4)))
    assert once < 0.5
    assert again > 0.95


def test_looks_and_attempts_share_the_error_budget() -> None:
    assert level(a_spec(1)) == ALPHA
    assert level(a_spec(2, 3)) == pytest.approx(ALPHA / 6)


# ---------------------------------------------------------------------------------------------------------- the loop


def finding(check: str, passed: bool | None, *, still_open: bool = False, n: int = 0) -> Finding:
    k = vj.FORGET if check == "forget_rate" else None
    return Finding(
        check=check, metric="m", subject="candidate", gating=True, passed=passed, open=still_open, n=n, class_index=k
    )


CONTROL = Finding(
    check="forget_rate", metric="m", subject="original", gating=False, control=True, passed=False, class_index=vj.FORGET
)


def looked(spec: Spec, answers: dict[str, Callable[[int], Finding]], most: int = 10**6) -> tuple[list[Finding], int, list[Any]]:
    """A check is its name and its n; what it finds is a function of n."""
    asked: list[tuple[str, int]] = []

    def run(check: tuple[str, int]) -> tuple[Finding, ...]:
        asked.append(check)
        found = answers[check[0]](check[1])
        return (found, CONTROL) if check[0] == "forget_rate" else (found,)

    def enlarge(check: tuple[str, int]) -> tuple[str, int] | None:
        return (check[0], 2 * check[1]) if 2 * check[1] <= most else None

    found, looks = look([(name, 10) for name in answers], spec, run=run, enlarge=enlarge)
    return found, looks, asked


def test_only_open_checks_are_run_again_until_they_pass() -> None:
    answers = {
        "forget_rate": lambda n: finding("forget_rate", n >= 40, still_open=n < 40, n=n),
        "integrity": lambda n: finding("integrity", True),
    }
    found, looks, asked = looked(a_spec(6, 1, *answers), answers)
    assert (looks, verify.decide(found, a_spec(6, 1, *answers))) == (3, "PASS")
    assert asked == [("forget_rate", 10), ("integrity", 10), ("forget_rate", 20), ("forget_rate", 40)]


def test_no_more_looks_than_the_policy_allows_and_the_verdict_stays_inconclusive() -> None:
    answers = {"forget_rate": lambda n: finding("forget_rate", False, still_open=True, n=n)}
    found, looks, _ = looked(a_spec(3), answers)
    assert (looks, verify.decide(found, a_spec(3))) == (3, "INCONCLUSIVE")


def test_what_is_refuted_at_a_later_look_fails() -> None:
    answers = {"forget_rate": lambda n: finding("forget_rate", False, still_open=n < 20, n=n)}
    found, looks, _ = looked(a_spec(6), answers)
    assert (looks, verify.decide(found, a_spec(6))) == (2, "FAIL")


@pytest.mark.parametrize("first", [finding("forget_rate", True), finding("forget_rate", False)], ids=["PASS", "FAIL"])
def test_a_verdict_that_stands_is_not_looked_at_again(first: Finding) -> None:
    assert looked(a_spec(6), {"forget_rate": lambda n: first})[1] == 1


def test_looking_ends_where_an_open_check_can_take_no_more_samples() -> None:
    answers = {"forget_rate": lambda n: finding("forget_rate", False, still_open=True, n=n)}
    assert looked(a_spec(6), answers, most=20)[1] == 2


def test_looking_ends_where_all_there_is_was_looked_at() -> None:
    answers = {"forget_rate": lambda n: finding("forget_rate", False, still_open=True, n=min(n, 20))}
    assert looked(a_spec(6), answers)[1] == 3  # the third saw what the second had seen


def test_doubling_counts_samples_alone_and_keeps_within_the_range() -> None:
    larger = RetainThresholds(n_per_class=80, max_drop=0.03).doubled()
    assert larger == RetainThresholds(n_per_class=160, max_drop=0.03)
    assert RetainThresholds(n_per_class=60_000).doubled() is None


@pytest.mark.parametrize("name", sorted(registry.verifiers()))
def test_only_counts_of_samples_are_named_as_such(name: str) -> None:
    """By convention: `n` and `n_…` are doubled, so they must be whole numbers."""
    fields = registry.verifiers()[name].Params.model_fields
    assert all(fields[f].annotation in (int, int | None) for f in fields if f == "n" or f.startswith("n_"))


# ------------------------------------------------------------------------------------------------------- in the engine


@pytest.mark.parametrize(("looks", "verdict", "n"), [(1, "PASS", [100]), (2, "PASS", [100, 200])])
def test_the_engine_looks_again_on_the_samples_that_it_has_and_says_how_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int, verdict: str, n: list[int]
) -> None:
    """One hit in 100 bounds a rate by .0466 at alpha, so one look is enough; at alpha/2 by .0545, and one in 200 by .0275."""
    report, drawn = with_hits(1, tmp_path, monkeypatch, looks)
    (gate,) = [f for f in report.findings if f.gating]
    assert (report.verdict, report.looks, gate.n, gate.count) == (verdict, looks, n[-1], 1)
    assert drawn == n


def test_what_is_open_after_all_looks_is_inconclusive_in_so_many_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hits in 100: between .0138 and .0892 at alpha, on either side of the threshold."""
    report, _ = with_hits(4, tmp_path, monkeypatch, 1)
    assert report.verdict == "INCONCLUSIVE"
    assert "neither show it nor refute it" in report.summary
    assert "forget_rate" in report.summary


def with_hits(hits: int, folder: Path, monkeypatch: pytest.MonkeyPatch, looks: int) -> tuple[Report, list[int]]:
    """The report on a model that forgot, of whose samples the judge takes the first few for the class all the same."""
    monkeypatch.setattr(registry, "families", lambda: {"painter": vj.Painter})
    drawn: list[int] = []
    shows = verify.Env.shows

    def with_some(self: Any, subject: Any, k: int, n: int, *way: Any) -> Any:
        seen_N = shows(self, subject, k, n, *way)
        if (subject, k) != ("candidate", vj.FORGET):
            return seen_N
        drawn.append(n)
        return seen_N | (torch.arange(n) < hits)

    monkeypatch.setattr(verify.Env, "shows", with_some)
    check = Check(verifier="forget_rate", params={"n_per_class": 100, "max_rate": 0.05})
    policy = Policy(name="p", judge=JudgePolicy(epochs=6), checks=(check,), looks=looks)
    return verify.run(vj.make_job(folder, vj.forgotten_patterns(), policy=policy)), drawn


def test_what_else_was_found_counts_in_whether_to_look_again() -> None:
    """A reference that is shown to be one, by a check that no policy asks for, does not end the looks; one that is not does."""
    bare = a_spec(3)
    spec = bare.model_copy(update={"reference_digest": "1" * 64})

    def measured(n: int) -> tuple[Finding, ...]:
        return found_by(bare, level(spec), n, 2)

    (seen, *_) = found_by(bare, level(spec), 200, 0)
    never = seen.model_copy(update={"subject": "reference", "gating": False})
    for beside, looks in (((never,), 2), ((), 1), ((never.model_copy(update={"passed": False}),), 1)):
        found, taken = look([N], spec, run=measured, enlarge=lambda n: 2 * n, beside=beside)
        assert taken == looks
        assert not any(f.subject == "reference" and f in beside for f in found)
