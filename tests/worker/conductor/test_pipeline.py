"""One attempt from the claim to the end, with a real child process that may misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service import db
from service.audit import trust
from service.certificates.dsse import key_of, payload_of
from service.certificates.signing import KeySigner, SignerUnavailable, SigningRefused
from service.certificates.statement import prompts_digest
from service.requests import endings, leases
from service.requests.endings import Problem
from service.requests.seeds import verification_secret
from service.tables import Checkpoint, CheckpointFile, Dataset, Model, ModelVersion
from tests.worker.conductor import house as h
from worker.conductor import heart, outcomes, pipeline, supervise, workspace
from worker.conductor.pipeline import Room
from worker.contract import Spec

pytestmark = pytest.mark.usefixtures("database")
one_database = pytest.mark.one_database
"""For rules about files and processes: they hold no SQL that the other tests do not run on both."""


SAID = ["run.started", "plan.committed", "run.finished"]


def published() -> int:
    with db.reading() as session:
        return session.execute(select(func.count()).select_from(Checkpoint)).scalar_one()


def nothing_left(room: Room, request_id: str) -> bool:
    return not (room.settings.jobs_dir / request_id).exists()


# ------------------------------------------------------------------------------------------------------------- success


def test_a_passing_result_is_stored_signed_and_published_with_its_record(house: h.House, kept: Path) -> None:
    room = h.make_room()
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"

    row = h.request(request_id)
    assert (row.status, row.attempts_charged, row.lease_owner, row.error) == ("succeeded", 1, None, None)
    with db.reading() as session:
        checkpoint = session.get_one(Checkpoint, row.checkpoint_id)
        files = session.execute(select(CheckpointFile).order_by(CheckpointFile.path)).scalars().all()
        version = session.execute(select(ModelVersion).where(ModelVersion.number == 2)).scalar_one()
        assert session.get_one(Model, house.model_id).current_version == 2
    assert [f.path for f in files] == sorted(h.WEIGHTS)
    assert all(room.store.size(f.sha256) == f.size for f in files)
    assert (version.checkpoint_id, version.forgotten_classes, version.digest) == (checkpoint.id, [3], checkpoint.digest)
    statement = json.loads(payload_of(checkpoint.certificate))
    root = {house.model_id: hashlib.sha256(b"".join(bytes.fromhex(f.sha256) for f in files)).hexdigest()}
    assert {s["name"]: s["digest"]["sha256"] for s in statement["subject"]} == root | {f.path: f.sha256 for f in files}
    assert statement["predicate"]["parent"]["version_id"] == house.version_id
    assert h.actions(request_id) == [
        "run.started", "plan.committed", "run.finished", "evaluation.finished", "certificate.issued", "model.published",
        "unlearning.request.closed", "caches.purged",
    ]  # fmt: skip
    (attempt,) = h.attempts(request_id)
    assert attempt.outcome == "succeeded"
    assert attempt.report["verdict"] == "PASS"
    assert attempt.evidence is not None
    assert room.store.open(attempt.evidence[0]["sha256"]).read() == b"a picture"
    assert h.events(request_id)[0] == "started"
    assert h.events(request_id)[-1] == "succeeded"
    assert nothing_left(room, request_id)


def test_the_second_request_starts_from_the_first_ones_result_and_keeps_what_it_forgot(house: h.House, kept: Path) -> None:
    room = h.make_room()
    first, second = h.ask(house, 3), h.ask(house, 5)
    assert pipeline.run(second, room) is None  # the older one first
    assert pipeline.run(first, room) == "succeeded"
    assert pipeline.run(second, room) == "succeeded"
    spec = json.loads((kept / "spec-1.json").read_text())
    with db.reading() as session:
        versions = session.execute(select(ModelVersion).order_by(ModelVersion.number)).scalars().all()
    assert [v.forgotten_classes for v in versions] == [[], [3], [3, 5]]
    assert (spec["forget_classes"], spec["forgotten_classes"]) == ([5], [3])
    assert (spec["base_digest"], spec["original_digest"]) == (versions[1].digest, versions[0].digest)


def test_samples_and_prompts_reach_the_spec_and_add_up_along_the_lineage(house: h.House, kept: Path) -> None:
    room = h.make_room()
    with db.transaction() as session:
        session.get_one(Model, house.model_id).prompts = [f"the digit {k}" for k in range(10)]
    first, second = h.ask(house, samples=("9", "8")), h.ask(house, samples=("7",))
    assert [pipeline.run(r, room) for r in (first, second)] == ["succeeded", "succeeded"]
    spec = json.loads((kept / "spec-1.json").read_text())  # of the second: each request counts its own fences
    assert (spec["forget_samples"], spec["forgotten_samples"]) == (["7"], ["8", "9"])
    assert (spec["forget_classes"], spec["forgotten_classes"]) == ([], [])
    assert spec["prompts"] == [f"the digit {k}" for k in range(10)]
    with db.reading() as session:
        versions = session.execute(select(ModelVersion).order_by(ModelVersion.number)).scalars().all()
        assert [v.forgotten_samples for v in versions] == [[], ["8", "9"], ["7", "8", "9"]]
        certificate = session.get_one(Checkpoint, versions[2].checkpoint_id).certificate
    forget_set = json.loads(payload_of(certificate))["predicate"]["forgetSet"]
    assert (forget_set["unit"], forget_set["samples"]["count"], forget_set["samplesForgottenEarlier"]["count"]) == (
        "sample",
        1,
        2,
    )


def test_the_chosen_retain_data_are_staged_recorded_and_certified(house: h.House, kept: Path, tmp_path: Path) -> None:
    room = h.make_room()
    dataset_id, _ = h.furnish_proxy(tmp_path / "letters")
    choice = {"real": 0.25, "classes": [0, 1], "proxy_classes": [8, 9], "proxy_dataset_id": dataset_id}
    first = h.ask(house, 3, retain=choice)
    assert pipeline.run(first, room) == "succeeded"
    spec = Spec.model_validate_json((kept / "spec-1.json").read_bytes())
    assert spec.retain is not None
    assert (spec.retain.real, spec.retain.classes, spec.retain.proxy_classes) == (0.25, (0, 1), (8, 9))
    assert spec.retain.proxy_class_names == ("a", "b")
    assert spec.retain.proxy_dataset is not None
    assert spec.retain.proxy_dataset.held_out_ids == ("0",)
    assert json.loads((kept / "proxy.json").read_text()) == {"letters.npz": spec.retain.proxy_dataset.digest}
    with db.reading() as session:
        proxy = session.get_one(Dataset, dataset_id)
        checkpoint = session.get_one(Checkpoint, h.request(first).checkpoint_id)
    statement = json.loads(payload_of(checkpoint.certificate))
    assert statement["predicate"]["retainData"] == {
        "real": "0.25", "classes": [0, 1], "proxyClasses": [8, 9],
        "proxyDataset": {"id": dataset_id, "digest": proxy.digest, "classNames": ["a", "b"]},
    }  # fmt: skip
    assert h.facts(first, "plan.committed")["proxyDigest"] == proxy.digest


def test_a_request_that_chooses_no_retain_data_says_nothing_of_them(house: h.House, kept: Path) -> None:
    room = h.make_room()
    request_id = h.ask(house, 3)
    assert pipeline.run(request_id, room) == "succeeded"
    assert "retain" not in json.loads((kept / "spec-1.json").read_text())  # digests of older specs stay what they were
    assert "proxy" not in json.loads((kept / "tree-unlearn.json").read_text())
    assert "proxyDigest" not in h.facts(request_id, "plan.committed")


@one_database
def test_proxy_data_that_changed_since_registration_end_the_request(house: h.House, tmp_path: Path) -> None:
    dataset_id, folder = h.furnish_proxy(tmp_path / "letters")
    (folder / "letters.npz").write_bytes(b"OTHER images")
    choice = {"real": 0.0, "classes": [], "proxy_classes": [], "proxy_dataset_id": dataset_id}
    request_id = h.ask(house, 3, retain=choice)
    assert pipeline.run(request_id, h.make_room()) == "failed"
    error = h.request(request_id).error
    assert error["code"] == "integrity"
    assert f"a file of {dataset_id} changed since registration: proxy/letters.npz" in error["message"]


@one_database
@pytest.mark.parametrize("prompts", [None, [f"a photo of a {k}" for k in range(10)]])
def test_the_certificate_of_a_model_that_is_asked_by_prompts_has_their_digest(
    house: h.House, prompts: list[str] | None
) -> None:
    with db.transaction() as session:
        model = session.get_one(Model, house.model_id)
        model.family, model.prompts = "stable_diffusion", prompts
    request_id = h.ask(house)
    assert pipeline.run(request_id, h.make_room()) == "succeeded"
    asked = dict(zip(h.CLASSES, prompts or h.CLASSES, strict=True))
    assert h.certificate(request_id)["model"]["promptsSha256"] == prompts_digest(asked)


@one_database
def test_retain_data_that_contradict_the_wish_make_no_spec(house: h.House) -> None:
    """The API refuses them; a row that says so all the same is not worked on."""
    choice = {"real": 0.0, "classes": [], "proxy_classes": [3], "proxy_dataset_id": None}
    request_id = h.ask(house, 3, retain=choice)
    assert pipeline.run(request_id, h.make_room()) == "failed"
    error = h.request(request_id).error
    assert (error["code"], "expected proxy classes that are not to be forgotten, got 3" in error["message"]) == (
        "bad_input",
        True,
    )


@one_database
def test_the_engine_sees_no_secret_of_ours(house: h.House, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_SIGNING_KEY", "/secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert pipeline.run(h.ask(house), h.make_room()) == "succeeded"
    seen = json.loads((kept / "environment-unlearn.json").read_text())
    assert {k for k in seen if k.startswith("EXPUNGE_")} == {"EXPUNGE_JOB", "EXPUNGE_FENCE"}
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert not any("postgresql" in v or ".db" in v for v in seen.values())


@one_database
def test_the_verification_secret_is_nowhere_that_the_engine_looks(house: h.House, kept: Path) -> None:
    room = h.make_room()
    assert pipeline.run(h.ask(house), room) == "succeeded"
    with db.reading() as session:
        secret = verification_secret(session, kept_on_host=Path("/nonexistent"))
    seen = [path.read_bytes() for path in kept.iterdir()]
    assert len(seen) > 2  # spec, environments, trees
    assert not any(form in content for content in seen for form in (secret, secret.hex().encode(), base64.b64encode(secret)))
    assert not [path for path in room.settings.data_dir.rglob("*") if "secret" in path.name]


@one_database
def test_judges_are_kept_for_the_next_run(house: h.House, kept: Path) -> None:
    room = h.make_room()
    assert pipeline.run(h.ask(house, 1), room) == "succeeded"
    assert (room.settings.judges_dir / ("a" * 64) / "judge.json").is_file()


# -------------------------------------------------------------------------------------------- the engine is not believed

FINAL = {
    "diverged": ({"unlearn": "diverged"}, "diverged", ["run.failed"]),
    "the manifest answers another spec": ({"unlearn": "other_spec"}, "bad_answer", ["run.failed"]),
    "a file is not what the manifest says": ({"unlearn": "torn"}, "integrity", ["run.failed"]),
    "a file that the manifest does not name": ({"unlearn": "extra_file"}, "integrity", ["run.failed"]),
    "the verdict does not follow from the findings": ({"verify": "lie"}, "bad_answer", ["run.failed"]),
    "a class forgotten earlier is not looked at": ({"verify": "skips", "earlier": 5}, "bad_answer", ["run.failed"]),
    "the report is about another candidate": ({"verify": "other_candidate"}, "bad_answer", ["run.failed"]),
    "verification changed the candidate": ({"verify": "meddle"}, "integrity", ["evaluation.finished", "run.failed"]),
    "the gate says no": ({"verify": "fail"}, "verification_failed", ["evaluation.rejected", "run.failed"]),
    "more samples may tell": ({"verify": "open"}, "inconclusive", ["evaluation.rejected", "run.failed"]),
    "an open gate is said to have passed": ({"verify": "open_lie"}, "bad_answer", ["run.failed"]),
    "the original passes too": ({"verify": "void"}, "void", ["evaluation.rejected", "run.failed"]),
    "a check could not run": ({"verify": "error"}, "verification_error", ["evaluation.rejected", "run.failed"]),
}


@one_database
@pytest.mark.parametrize("case", FINAL)
def test_a_result_that_does_not_hold_fails_the_request_and_nothing_is_published(house: h.House, case: str) -> None:
    params, code, ledger = FINAL[case]
    room = h.make_room()
    if "earlier" in params:
        with db.transaction() as session:
            session.get_one(ModelVersion, house.version_id).forgotten_classes = [params["earlier"]]
    request_id = h.ask(house, **params)
    assert pipeline.run(request_id, room) == "failed"
    row = h.request(request_id)
    assert row.error is not None
    assert (row.error["code"], row.error["attempt"]) == (code, 1)
    assert row.error["category"] == outcomes.CATEGORIES[code]
    assert published() == 0
    tail = [a for a in h.actions(request_id) if a not in ("run.started", "plan.committed", "run.finished")]
    assert tail == [*ledger, "unlearning.request.closed"]
    assert h.events(request_id)[-1] == "failed"
    assert nothing_left(room, request_id)
    if code == "diverged":
        assert (row.error["step"], row.error["loss"]) == (7, "nan")
    if ledger[0] == "evaluation.rejected":
        assert h.attempts(request_id)[0].report["verdict"] != "PASS"  # kept for whoever asks why


RETRIED = {
    "exit 0 without a manifest": ({"unlearn": "silent"}, "engine_died"),
    "a crash": ({"unlearn": "crash"}, "rank_lost"),
    "a kill": ({"unlearn": "killed"}, "rank_lost"),
    "a rank that the engine itself missed": ({"unlearn": "rank_lost"}, "rank_lost"),
    "a rank whose peer was killed": ({"unlearn": "survivor"}, "rank_lost"),
    "a rank that failed while nobody was killed": ({"unlearn": "survivor", "killed": False}, "internal"),
    "a loop that did not run to its end": ({"unlearn": "incomplete"}, "engine_died"),
    "out of memory": ({"unlearn": "oom"}, "out_of_memory"),
    "a crash while verifying": ({"verify": "crash"}, "rank_lost"),
}


@one_database
@pytest.mark.parametrize("case", RETRIED)
def test_an_attempt_that_died_counts_and_publishes_nothing(house: h.House, case: str) -> None:
    params, code = RETRIED[case]
    room = h.make_room(max_attempts=1)
    request_id = h.ask(house, **params)
    assert pipeline.run(request_id, room) == "failed"
    error = h.request(request_id).error
    assert error is not None
    assert (error["code"], error["last_code"], error["attempt"]) == ("attempts_exhausted", code, 1)
    assert published() == 0
    assert nothing_left(room, request_id)


def test_an_attempt_that_died_is_tried_again_after_a_rest_until_the_attempts_are_used_up(house: h.House) -> None:
    room = h.make_room(max_attempts=2)
    request_id = h.ask(house, unlearn="crash")
    assert pipeline.run(request_id, room) == "queued"
    row = h.request(request_id)
    assert (row.phase, row.attempts_charged, row.lease_owner) == (None, 1, None)
    assert pipeline.run(request_id, room) is None  # it rests
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "failed"
    assert [a.outcome for a in h.attempts(request_id)] == ["failed", "failed"]
    assert h.actions(request_id)[-2:] == ["run.failed", "unlearning.request.closed"]


@one_database
@pytest.mark.parametrize(("mode", "said"), [("killed", "signal 9 (SIGKILL)"), ("crash", "exit status 1")])
def test_a_lost_rank_is_named_with_what_it_died_of_and_tried_again(house: h.House, mode: str, said: str) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn=mode)
    assert pipeline.run(request_id, room) == "queued"
    detail = h.attempts(request_id)[0].detail
    assert detail is not None
    assert (detail["code"], detail["category"]) == ("rank_lost", "engine")
    assert said in detail["message"]


@one_database
def test_the_end_of_the_engines_output_is_kept_without_our_paths(house: h.House) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="crash")
    pipeline.run(request_id, room)
    detail = h.attempts(request_id)[0].detail
    assert detail is not None
    assert "Traceback: boom in <job>" in detail["log_tail"]


@one_database
def test_an_engine_without_progress_is_killed_and_tried_again(house: h.House) -> None:
    room = h.make_room(stall_seconds=0.5)
    request_id = h.ask(house, unlearn="hang")
    assert pipeline.run(request_id, room) == "queued"
    detail = h.attempts(request_id)[0].detail
    assert detail is not None
    assert detail["code"] == "stalled"


# -------------------------------------------------------------------------------------------------------------- staging


@one_database
@pytest.mark.parametrize("what", ["changed", "longer", "gone", "data"])
def test_bytes_that_changed_since_registration_fail_the_request_before_the_engine_runs(
    house: h.House, kept: Path, what: str
) -> None:
    target = house.data / "digits.npz" if what == "data" else house.weights / "model.safetensors"
    before = target.read_bytes()
    match what:
        case "gone":
            target.unlink()
        case "longer":
            target.write_bytes(before + b"x")
        case _:
            target.write_bytes(b"X" + before[1:])
    room = h.make_room()
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "failed"
    error = h.request(request_id).error
    assert error is not None
    assert error["code"] == "integrity"
    assert list(kept.iterdir()) == []
    assert published() == 0
    assert h.actions(request_id) == ["run.started", "run.failed", "unlearning.request.closed"]
    assert nothing_left(room, request_id)


@one_database
def test_a_later_attempt_adopts_the_step_checkpoints_and_has_the_same_spec(house: h.House, kept: Path) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="crash_once")
    assert pipeline.run(request_id, room) == "queued"
    (left,) = (room.settings.jobs_dir / request_id).iterdir()
    assert [p.name for p in left.iterdir()] == ["steps"]  # the staged data is gone
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "succeeded"
    assert (kept / "spec-1.json").read_text() == (kept / "spec-2.json").read_text()
    assert nothing_left(room, request_id)


@one_database
def test_a_worker_that_stood_still_while_another_took_over_leaves_its_directory_alone(
    house: h.House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes up between its claim, fence 1, and its directory: fence 3 is at work on the same disk."""
    room = h.make_room()
    request_id = h.ask(house)
    family = room.settings.jobs_dir / request_id

    def others_take_over(_request_id: str, _fence: int) -> None:
        with db.transaction() as session:
            endings.reap(session, request_id, 1, max_attempts=5, reason="a test says so", only_expired=False)
        h.make_due(request_id)
        with db.transaction() as session:
            later = leases.claim(session, request_id, owner="another", lease_seconds=60)
        assert later is not None
        job = workspace.open_job(room.settings, later)
        job.steps.mkdir()
        (job.steps / "step-1").write_text("state")

    monkeypatch.setattr(pipeline, "kill_older", others_take_over)
    assert pipeline.run(request_id, room) == "lost"
    assert sorted(p.relative_to(family).as_posix() for p in family.rglob("*")) == ["3", "3/steps", "3/steps/step-1"]
    assert (h.request(request_id).fence, h.request(request_id).lease_owner) == (3, "another")


# --------------------------------------------------------------------------------------------------------------- signer


class Away:
    """A signer that comes back after so many calls, or that refuses."""

    def __init__(self, room: Room, absences: int, refusal: str = "") -> None:
        self.inner, self.absences, self.refusal = room.signer, absences, refusal

    def sign(self, statement):
        if self.refusal:
            raise SigningRefused(self.refusal)
        self.absences -= 1
        if self.absences >= 0:
            raise SignerUnavailable("nobody answers")
        return self.inner.sign(statement)


@one_database
def test_a_signer_that_restarts_costs_no_attempt(house: h.House) -> None:
    room = h.make_room()
    room.signer = Away(room, absences=2)
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "succeeded"
    assert h.request(request_id).attempts_charged == 1


@one_database
def test_a_signer_that_stays_away_puts_the_request_back(house: h.House) -> None:
    room = h.make_room()
    room.signer, room.signer_patience_seconds = Away(room, absences=9), 0.0
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "queued"
    assert published() == 0
    room.signer = room.signer.inner
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "succeeded"


@one_database
def test_a_signer_that_refuses_fails_the_request(house: h.House) -> None:
    room = h.make_room()
    room.signer = Away(room, absences=0, refusal="a control did not fail")
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "failed"
    assert h.request(request_id).error["code"] == "signing_refused"
    assert published() == 0


@one_database
def test_a_certificate_around_another_statement_is_not_published(house: h.House) -> None:
    room = h.make_room()
    honest = room.signer

    class Swapped:
        def sign(self, wanted):
            predicate = {**wanted.statement["predicate"], "limits": []}
            return honest.sign(replace(wanted, statement={**wanted.statement, "predicate": predicate}))

    room.signer = Swapped()
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "failed"
    assert h.request(request_id).error["code"] == "signature_invalid"
    assert published() == 0


@one_database
def test_signatures_of_another_key_are_not_published(house: h.House) -> None:
    room = h.make_room()
    room.signer = KeySigner(key_of(ec.generate_private_key(ec.SECP256R1())), room.store)
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "failed"
    error = h.request(request_id).error
    assert (error["code"], "model.sig" in error["message"]) == ("signature_invalid", True)
    assert published() == 0


@one_database
def test_no_certificate_is_issued_before_the_ledger_has_a_name(house: h.House) -> None:
    """The log's signer has made no key: the worker waits, says so, and tries again later. It never leaves the name out."""
    room = h.make_room()
    room.signer_patience_seconds = 0.0
    keys = room.settings.log_keys_file
    keys.rename(away := keys.with_suffix(".away"))
    request_id = h.ask(house)
    assert pipeline.run(request_id, room) == "queued"
    assert published() == 0
    assert (h.attempts(request_id)[0].detail or {})["code"] == "log_key_missing"
    assert "waiting" in h.events(request_id)
    away.rename(keys)
    h.make_due(request_id)
    assert pipeline.run(request_id, room) == "succeeded"
    assert h.certificate(request_id)["certificate"]["ledger"]["origin"] == trust.origin(room.settings)


@one_database
def test_a_key_that_comes_while_a_worker_waits_costs_no_attempt(house: h.House, background: list[threading.Thread]) -> None:
    room = h.make_room()
    keys = room.settings.log_keys_file
    keys.rename(away := keys.with_suffix(".away"))
    request_id, outcome = h.ask(house), list[str | None]()
    background.append(thread := threading.Thread(target=lambda: outcome.append(pipeline.run(request_id, room))))
    thread.start()
    h.until(lambda: "waiting" in h.events(request_id))
    away.rename(keys)
    thread.join(30)
    assert outcome == ["succeeded"]
    assert h.events(request_id).count("waiting") == h.request(request_id).attempts_charged == 1


# ----------------------------------------------------------------------------------------- cancelled, drained, lost


@pytest.mark.parametrize("deaf", [False, True])
def test_cancelling_a_running_request_kills_every_process_first(
    house: h.House, background: list[threading.Thread], deaf: bool
) -> None:
    room = h.make_room(stop_grace_seconds=0.5)
    request_id = h.ask(house, unlearn="long", deaf=deaf)
    outcome, pids = h.start(request_id, room, background)
    h.withdraw(request_id)
    assert h.request(request_id).status == "cancelling"
    h.until(lambda: outcome)
    assert outcome == ["cancelled"]
    assert [h.is_running(pid) for pid in pids] == [False, False]
    assert h.request(request_id).status == "cancelled"
    assert h.attempts(request_id)[0].outcome == "cancelled"
    assert h.actions(request_id)[-2:] == ["run.stopped", "unlearning.request.closed"]
    assert nothing_left(room, request_id)


@one_database
def test_who_cancels_does_not_wait_for_the_time_that_a_drain_gets(
    house: h.House, background: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "CANCEL_SECONDS", 0.5)
    room = h.make_room(stop_grace_seconds=600)
    request_id = h.ask(house, unlearn="long", deaf=True)
    outcome, _ = h.start(request_id, room, background)
    h.withdraw(request_id)
    h.until(lambda: outcome)
    assert outcome == ["cancelled"]


def test_a_cancelled_queued_request_is_never_claimed(house: h.House) -> None:
    request_id = h.ask(house)
    h.withdraw(request_id)
    assert pipeline.run(request_id, h.make_room()) is None
    assert h.attempts(request_id) == []


def test_draining_gives_the_request_back_uncharged_with_its_steps(house: h.House, background: list[threading.Thread]) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="long_once")
    outcome, pids = h.start(request_id, room, background)
    room.draining.set()
    h.until(lambda: outcome)
    assert outcome == ["queued"]
    assert [h.is_running(pid) for pid in pids] == [False, False]
    row = h.request(request_id)
    assert (row.status, row.attempts_charged) == ("queued", 0)
    assert h.attempts(request_id)[0].outcome == "drained"
    assert h.actions(request_id)[-1] == "run.stopped"
    assert pipeline.run(request_id, room) is None  # a draining worker claims nothing
    (left,) = (room.settings.jobs_dir / request_id).iterdir()
    assert [p.name for p in left.iterdir()] == ["steps"]
    room.draining.clear()
    assert pipeline.run(request_id, room) == "succeeded"  # at once, without a pause, and from its steps


@one_database
def test_a_killed_agent_is_a_dead_attempt_and_its_ranks_go_too(house: h.House, background: list[threading.Thread]) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="long")
    outcome, (agent, rank) = h.start(request_id, room, background)
    h.until(lambda: h.request(request_id).progress_completed)  # the tree was looked at
    os.kill(agent, signal.SIGKILL)
    h.until(lambda: outcome)
    assert outcome == ["queued"]
    assert not h.is_running(rank)
    assert h.attempts(request_id)[0].detail["code"] == "rank_lost"


def test_a_lost_lease_stops_the_work_and_writes_nothing(house: h.House, background: list[threading.Thread]) -> None:
    room = h.make_room()
    request_id = h.ask(house, unlearn="long")
    outcome, pids = h.start(request_id, room, background)
    with db.transaction() as session:
        endings.reap(session, request_id, 1, max_attempts=5, reason="a test says so", only_expired=False)
    ledger, row = h.actions(request_id), h.request(request_id)
    h.until(lambda: outcome)
    assert outcome == ["lost"]
    assert [h.is_running(pid) for pid in pids] == [False, False]
    assert h.actions(request_id) == ledger
    after = h.request(request_id)
    assert (after.status, after.fence, after.version) == (row.status, 2, row.version)


def test_progress_reaches_the_row_and_its_followers(house: h.House) -> None:
    room = h.make_room()
    request_id = h.ask(house, seconds=1.0)
    assert pipeline.run(request_id, room) == "succeeded"
    assert h.events(request_id).count("progress") >= 5  # three phases entered after staging, two renewals at least


@pytest.mark.parametrize(
    ("verdict", "once"),
    [
        ("pass", [*SAID, "evaluation.finished", "certificate.issued", "model.published"]),
        ("fail", [*SAID, "evaluation.rejected", "run.failed"]),
    ],
)
def test_what_was_committed_is_not_said_again_when_only_the_answer_got_lost(
    house: h.House, monkeypatch: pytest.MonkeyPatch, verdict: str, once: list[str]
) -> None:
    """Of every first try to commit, so that each transaction of the attempt is run twice."""
    tries: list[int] = []

    @contextmanager
    def answered_every_other_time() -> Iterator[Session]:
        with db.transaction() as session:
            yield session
        if threading.current_thread() is threading.main_thread():
            tries.append(1)
            if len(tries) % 2:
                raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    room, request_id = h.make_room(), h.ask(house, verify=verdict)
    monkeypatch.setattr(heart, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(heart, "db", SimpleNamespace(transaction=answered_every_other_time, now=db.now, reading=db.reading))
    pipeline.run(request_id, room)
    assert h.request(request_id).status == {"pass": "succeeded", "fail": "failed"}[verdict]
    said = [action for action in h.actions(request_id) if action != "caches.purged"]
    assert said == [*once, "unlearning.request.closed"]


def test_a_cancellation_that_arrives_while_publishing_wins(house: h.House) -> None:
    room = h.make_room()
    request_id = h.ask(house)
    honest = room.signer

    class CancelsMeanwhile:
        def sign(self, statement):
            h.withdraw(request_id)
            return honest.sign(statement)

    room.signer = CancelsMeanwhile()
    assert pipeline.run(request_id, room) == "cancelled"
    assert published() == 0
    assert "certificate.issued" not in h.actions(request_id)  # the signatures are discarded


@one_database
def test_every_problem_code_has_a_category() -> None:
    assert isinstance(outcomes.problem("integrity", "x"), Problem)
    with pytest.raises(KeyError):
        outcomes.problem("no such code", "x")
