"""Results that are verified in turn: each recipe once, with seeds of its own, all of them on record, under a fixed budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service import db
from service.requests import endings
from service.requests.leases import Lease
from service.requests.rungs import CODES, seed_at
from service.requests.seeds import verification_secret, verification_seed
from service.tables import RequestEvent
from service.verifier import claim
from tests.worker.conductor import house as h
from worker.conductor import pipeline
from worker.contract import Spec

pytestmark = pytest.mark.usefixtures("database")
one_database = pytest.mark.one_database
FAILS: dict[str, Any] = {"verify": "fail"}


def run_all(request_id: str, room: pipeline.Room, most: int = 5) -> list[str | None]:
    """Run a request until it has ended; what each run came to."""
    came: list[str | None] = []
    while h.request(request_id).finished_at is None and len(came) < most:
        came.append(pipeline.run(request_id, room))
    return came


def specs(kept: Path, count: int) -> list[Spec]:
    return [Spec.model_validate_json((kept / f"spec-{fence}.json").read_bytes()) for fence in range(1, count + 1)]


def event_data(request_id: str, kind: str) -> list[dict[str, Any]]:
    with db.reading() as session:
        chosen = select(RequestEvent.data).where(
            RequestEvent.request_id == request_id, RequestEvent.type == f"unlearning_request.{kind}"
        )
        return list(session.scalars(chosen.order_by(RequestEvent.id)))


def test_a_rejected_recipe_gives_way_to_the_next_and_the_certificate_names_both(house: h.House, kept: Path) -> None:
    room = h.make_room(max_attempts=1)  # nobody dies: three results are no three deaths
    request_id = h.ask_auto(house, ("sfron", {**FAILS, "seconds": 0}), ("salun", {}), ("retrain", {}))
    assert run_all(request_id, room) == ["queued", "succeeded"]

    first, second = specs(kept, 2)
    assert [(s.method, s.attempt, s.policy.attempts) for s in (first, second)] == [("sfron", 1, 3), ("salun", 2, 3)]
    assert (first.seed, second.seed) == (7, seed_at(7, 2))
    assert first.verification_seed != second.verification_seed
    assert second.base_digest == first.base_digest  # not what the first recipe made

    rows = h.attempts(request_id)
    assert [(a.outcome, a.detail["rung"], a.detail["method"], a.report["verdict"]) for a in rows] == [
        ("failed", 1, "sfron", "FAIL"),
        ("succeeded", 2, "salun", "PASS"),
    ]
    said = h.certificate(request_id)
    assert said["algorithm"]["name"] == "salun"
    assert said["claim"]["guarantee"] == "empirical"
    attempts = said["attempts"]
    assert (attempts["requested"], attempts["number"], attempts["of"]) == ("auto", 2, 3)
    (before,) = attempts["earlier"]
    assert before == {
        "number": 1, "fence": 1, "method": "sfron", "parameters": {"verify": "fail", "seconds": 0}, "seed": 7,
        "outcome": "FAIL", "verificationSeed": first.verification_seed, "specSha256": rows[0].detail["spec_sha256"],
        "reportSha256": rows[0].detail["report_sha256"], "findingsSha256": rows[0].detail["findings_sha256"],
    }  # fmt: skip


def test_every_attempt_is_in_the_ledger_and_followers_hear_of_the_rung(house: h.House) -> None:
    request_id = h.ask_auto(house, ("sfron", FAILS), ("retrain", {}))
    assert run_all(request_id, h.make_room()) == ["queued", "succeeded"]
    assert h.actions(request_id) == [
        "run.started", "plan.committed", "run.finished", "evaluation.rejected", "run.failed",
        "run.started", "plan.committed", "run.finished", "evaluation.finished", "certificate.issued", "model.published",
        "unlearning.request.closed", "caches.purged",
    ]  # fmt: skip
    plans = h.all_facts(request_id, "plan.committed")
    assert [(p["method"], p["rung"], p["rungs"]) for p in plans] == [("sfron", 1, 2), ("retrain", 2, 2)]
    rejected = h.facts(request_id, "evaluation.rejected")
    assert (rejected["rung"], rejected["rungs"], rejected["verdict"]) == (1, 2, "FAIL")
    assert rejected["findingsSha256"] == h.attempts(request_id)[0].detail["findings_sha256"]
    assert [(e["rung"], e["rungs"], e["method"]) for e in event_data(request_id, "started")] == [
        (1, 2, "sfron"),
        (2, 2, "retrain"),
    ]
    (requeued,) = event_data(request_id, "requeued")
    assert (requeued["next"], requeued["reason"]["code"]) == (
        {"rung": 2, "rungs": 2, "method": "retrain"},
        "verification_failed",
    )
    assert {e["rung"] for e in event_data(request_id, "progress")} == {1, 2}


@one_database
def test_only_a_retrained_result_is_called_exact(house: h.House) -> None:
    retrained = h.ask_auto(house, ("sfron", FAILS), ("retrain", {}))
    assert run_all(retrained, h.make_room())[-1] == "succeeded"
    assert h.certificate(retrained)["claim"]["guarantee"] == "exact-retrain"


@one_database
@pytest.mark.parametrize(("mode", "code"), [("void", "void"), ("error", "verification_error")])
def test_a_blind_or_broken_gate_stops_the_walk(house: h.House, mode: str, code: str) -> None:
    request_id = h.ask_auto(house, ("sfron", {"verify": mode}), ("retrain", {}))
    assert run_all(request_id, h.make_room()) == ["failed"]
    assert h.request(request_id).error["code"] == code


@one_database
def test_a_result_that_stays_unclear_gives_way_too(house: h.House) -> None:
    request_id = h.ask_auto(house, ("sfron", {"verify": "open"}), ("retrain", {}))
    assert run_all(request_id, h.make_room()) == ["queued", "succeeded"]
    assert h.certificate(request_id)["attempts"]["earlier"][0]["outcome"] == "INCONCLUSIVE"


@one_database
def test_a_recipe_that_diverges_has_had_its_turn(house: h.House) -> None:
    request_id = h.ask_auto(house, ("sfron", {"unlearn": "diverged"}), ("retrain", {}))
    assert run_all(request_id, h.make_room(max_attempts=1)) == ["queued", "succeeded"]
    (before,) = h.certificate(request_id)["attempts"]["earlier"]
    assert before["outcome"] == "diverged"
    assert "reportSha256" not in before


def test_a_ladder_without_a_passing_rung_ends_the_request_and_every_report_is_kept(house: h.House) -> None:
    request_id = h.ask_auto(house, ("sfron", FAILS), ("salun", FAILS), ("retrain", FAILS))
    assert run_all(request_id, h.make_room()) == ["queued", "queued", "failed"]
    error = h.request(request_id).error
    assert (error["code"], error["rung"], error["rungs"]) == ("verification_failed", 3, 3)
    assert error["message"].startswith("none of 3 results passed; the last one: ")
    assert [a.report["verdict"] for a in h.attempts(request_id)] == ["FAIL"] * 3
    assert len({a.detail["verification_seed"] for a in h.attempts(request_id)}) == 3
    assert len({a.detail["report_sha256"] for a in h.attempts(request_id)}) == 3


def reap(request_id: str) -> str | None:
    with db.transaction() as session:
        fence = h.request(request_id).fence
        return endings.reap(session, request_id, fence, max_attempts=2, reason="killed", only_expired=False)


def hold(request_id: str, room: pipeline.Room) -> Lease:
    """Claim a request as a worker does that is then killed."""
    with db.transaction() as session:
        lease = pipeline.leases.claim(session, request_id, owner="gone", lease_seconds=60)
    assert lease is not None
    return lease


def test_a_killed_second_rung_is_taken_up_again_with_its_own_seeds(house: h.House, kept: Path) -> None:
    room = h.make_room()
    request_id = h.ask_auto(house, ("sfron", FAILS), ("salun", {}), ("retrain", {}))
    assert pipeline.run(request_id, room) == "queued"
    assert hold(request_id, room).rung == 2
    assert reap(request_id) == "queued"
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "succeeded"
    spec = Spec.model_validate_json((kept / "spec-4.json").read_bytes())  # 1, 2 killed, 3 raised by the reaper
    assert (spec.method, spec.attempt) == ("salun", 2)
    with db.reading() as session:
        secret = verification_secret(session, kept_on_host=Path("/nonexistent"))
    assert spec.verification_seed == verification_seed(secret, request_id, 2)
    assert [e["number"] for e in h.certificate(request_id)["attempts"]["earlier"]] == [1]


def leave_report(request_id: str, lease: Lease, verdict: str) -> None:
    """What is in the rows when a worker is killed right after it has kept a report."""
    told = {"verdict": verdict, "findings": [], "summary": "the fake judge says so"}
    with db.transaction() as session:
        pipeline.leases.keep_report(session, lease, report=told, report_sha256="0" * 64, evidence=[], verification_seed=1)


@pytest.mark.parametrize(("verdict", "code"), [("FAIL", "verification_failed"), ("INCONCLUSIVE", "inconclusive")])
def test_a_worker_that_dies_after_a_rejection_gets_no_second_look(house: h.House, verdict: str, code: str) -> None:
    room = h.make_room()
    request_id = h.ask_auto(house, ("sfron", {}), ("retrain", {}))
    leave_report(request_id, hold(request_id, room), "FAIL")
    assert reap(request_id) == "queued"
    h.make_due(request_id)
    lease = hold(request_id, room)
    assert lease.rung == 2
    leave_report(request_id, lease, verdict)
    assert reap(request_id) == "failed"  # and not again: it was the last result that may be verified
    error = h.request(request_id).error
    assert (error["code"], error["category"], error["rung"], error["rungs"]) == (code, "verification", 2, 2)
    assert "the fake judge says so" in error["message"]


@pytest.mark.parametrize(("verdict", "code"), [("VOID", "void"), ("ERROR", "verification_error")])
def test_a_worker_that_dies_after_a_measurement_that_was_none_ends_the_request(house: h.House, verdict: str, code: str) -> None:
    """Nobody died of the recipe, so the next would be told the same: the gate is not run again until it says otherwise."""
    request_id = h.ask_auto(house, ("sfron", {}), ("retrain", {}))
    leave_report(request_id, hold(request_id, h.make_room()), verdict)
    assert reap(request_id) == "failed"
    assert h.request(request_id).error["code"] == code
    assert h.actions(request_id)[-3:] == ["evaluation.rejected", "run.lost", "unlearning.request.closed"]


@pytest.mark.parametrize(("verdict", "status"), [("VOID", "failed"), ("FAIL", "failed"), ("PASS", "queued")])
@pytest.mark.parametrize("end", ["retry", "give_back"])
def test_a_run_that_stops_after_its_report_is_repeated_only_where_that_passed(
    house: h.House, end: str, verdict: str, status: str
) -> None:
    request_id = h.ask(house)
    lease = hold(request_id, h.make_room())
    leave_report(request_id, lease, verdict)
    boom = endings.Problem("worker_error", "service", "it fell")
    with db.transaction() as session:
        came = {
            "retry": lambda: endings.retry(session, lease, boom, max_attempts=3),
            "give_back": lambda: endings.give_back(session, lease, reason="x"),
        }[end]()
    assert came == status
    if status == "failed":
        assert h.request(request_id).error["code"] == CODES[verdict]


@one_database
def test_a_policy_that_allows_it_tries_a_method_again_with_other_seeds(house: h.House, kept: Path) -> None:
    request_id = h.ask(house, attempts=2, verify="fail_first")
    assert run_all(request_id, h.make_room()) == ["queued", "succeeded"]
    first, second = specs(kept, 2)
    assert first.method == second.method == "sfron"
    assert len({first.seed, second.seed}) == len({first.verification_seed, second.verification_seed}) == 2
    attempts = h.certificate(request_id)["attempts"]
    assert (attempts["requested"], attempts["number"], attempts["of"]) == ("sfron", 2, 2)


@one_database
def test_one_attempt_says_that_it_is_the_only_one_and_its_spec_says_nothing(house: h.House, kept: Path) -> None:
    request_id = h.ask(house)
    assert run_all(request_id, h.make_room()) == ["succeeded"]
    assert h.certificate(request_id)["attempts"] == {
        "requested": "sfron", "number": 1, "of": 1, "earlier": [], "rejectedRequests": 0,
    }  # fmt: skip
    assert "attempt" not in json.loads((kept / "spec-1.json").read_text())
    assert all("rung" not in e for e in event_data(request_id, "progress"))


@one_database
def test_a_report_that_claims_a_higher_tier_than_its_findings_earn_is_refused(house: h.House) -> None:
    request_id = h.ask(house, verify="boasts")
    assert run_all(request_id, h.make_room()) == ["failed"]
    error = h.request(request_id).error
    assert (error["code"], "claims tier L3, its findings earn none" in error["message"]) == ("bad_answer", True)


@one_database
def test_what_is_published_of_a_ladder_has_no_shortcomings_and_a_hidden_attempt_is_one(house: h.House) -> None:
    request_id = h.ask_auto(house, ("sfron", FAILS), ("salun", {}))
    assert run_all(request_id, h.make_room())[-1] == "succeeded"
    said = h.certificate(request_id)
    assert claim.shortcomings(said) == []
    said["attempts"]["earlier"] = []
    assert claim.shortcomings(said) == ["an attempt before it is missing"]
