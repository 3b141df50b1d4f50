"""Verifying a published checkpoint again: what is needed, what is refused, and that the same seeds find the same."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import Tensor

from service import catalogue
from service.audit.leaves import sample_digest
from service.certificates import statement
from service.files import dataset_digest
from service.policies import service as policies
from tests.worker.engine import verification_job as vj
from worker.conductor import verify_model as command
from worker.conductor.dossier import Misused, Undecidable, Unsound, Wanted, assemble, certified_policy, folder
from worker.conductor.verify_model import Answer, verify_model
from worker.contract import JobDirectory, JudgePolicy, Policy, Verdict, document_digest, document_json

ROOT = Path(__file__).resolve().parents[3]
SEED = 7
POLICY = Policy(name="painted-v1", kind="generator", judge=JudgePolicy(epochs=6), checks=vj.CHECKS)


@pytest.fixture(autouse=True)
def painters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packaged catalogue and a family more."""
    known = json.loads(catalogue.CATALOGUE_FILE.read_text())
    known["families"]["painter"] = {"title": "Painter", "kind": "generator"}
    (tmp_path / "catalogue.json").write_text(json.dumps(known))
    monkeypatch.setattr(catalogue, "CATALOGUE_FILE", tmp_path / "catalogue.json")
    for cached in (catalogue.get_catalogue, policies._read):
        cached.cache_clear()
    yield
    for cached in (catalogue.get_catalogue, policies._read):
        cached.cache_clear()


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges") / "kept"


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    """All that is needed for a checkpoint without a certificate that forgot its class."""
    vj.save_model(tmp_path / "checkpoint", vj.forgotten_patterns())
    vj.save_model(tmp_path / "original", vj.patterns())
    held_out = vj.write_data(tmp_path / "data")
    (tmp_path / "held_out.json").write_text(json.dumps(held_out))
    (tmp_path / "policy.json").write_text(POLICY.model_dump_json())
    return Wanted(
        directory=tmp_path / "checkpoint",
        policy=str(tmp_path / "policy.json"),
        data=tmp_path / "data",
        original=tmp_path / "original",
        held_out=tmp_path / "held_out.json",
        forget=("columns",),
        class_names=vj.NAMES,
        family="painter",
        seed=SEED,
    )


def painting(stage: str, job: JobDirectory, ranks: int) -> list[str]:
    assert ranks == 1
    return [sys.executable, "-m", "tests.worker.conductor.painting_engine", stage, str(job.root)]


def never(stage: str, job: JobDirectory, ranks: int) -> list[str]:
    raise AssertionError("the engine was started")


def repaint(wanted: Wanted, pictures: Tensor) -> None:
    vj.save_model(wanted.directory, pictures)


def certify(wanted: Wanted, answer: Answer | None = None, **changes: Any) -> Wanted:
    """Lay a certificate beside the checkpoint, and leave out what it says."""
    dossier = answer.dossier if answer and answer.dossier else assemble(wanted)
    spec = document_json(dossier.spec)
    report = document_json(answer.report) if answer and answer.report else {"judges": [], "findings": [], "environment": {}}
    held_out = json.loads(wanted.held_out.read_text()) if wanted.held_out else []
    entries = folder(wanted.data).entries if wanted.data else ()
    stated = statement.build(
        checkpoint_id="ckpt_1",
        issued_at="2026-11-21T10:00:00Z",
        issuer="somebody",
        request={"id": "ureq_1", "fence": 1},
        model={"id": "mdl_1", "version": 2, "digest": dossier.candidate.digest},
        parent={"version_id": "mver_1", "digest": dossier.parent.digest},
        original={"version_id": "mver_1", "digest": dossier.original.digest},
        dataset={
            "id": "ds_1",
            "digest": dataset_digest(entries, format="npz", class_names=vj.NAMES, held_out_ids=held_out),  # type: ignore[arg-type]
        },
        spec={**spec, **changes},
        spec_sha256=document_digest(dossier.spec),
        manifest={
            "files": [e.model_dump() for e in dossier.candidate.entries],
            "effective_params": {},
            "iterations_completed": 1,
            "seconds_prepare": 0.0,
            "seconds_unlearn": 0.0,
            "peak_memory_mb": 0.0,
            "environment": {},
        },
        report={"verdict": "PASS", "policy_digest": document_digest(dossier.spec.policy), **report},
        report_sha256="0" * 64,
    )
    place = wanted.directory / "UNLEARNING" / "certificate.dsse.json"
    place.parent.mkdir(exist_ok=True)
    payload = base64.b64encode(json.dumps(stated).encode()).decode()
    place.write_text(json.dumps({"payload": payload, "payloadType": "x", "signatures": []}))
    return dataclasses.replace(wanted, policy=None, forget=(), class_names=(), family=None, seed=None)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_a_checkpoint_that_forgot_passes_and_its_certificate_is_found_again_to_the_last_digit(
    wanted: Wanted, judges: Path, tmp_path: Path
) -> None:
    first = verify_model(wanted, judges=judges, out=tmp_path / "out", command=painting)
    assert (first.verdict, first.status) == ("PASS", 0), first.reason
    assert first.report is not None
    assert {"report.json", "engine.log", "evidence"} <= {p.name for p in (tmp_path / "out").iterdir()}
    again = verify_model(certify(wanted, first), judges=judges, command=painting)
    said = again.as_json()
    assert (again.verdict, said["seed"]) == ("PASS", SEED)
    assert said["certificate"] == {
        "id": "ckpt_1",
        "same_policy": True,
        "same_seed": True,
        "findings": len(first.report.findings),
        "findings_equal": len(first.report.findings),
    }
    assert not list(wanted.directory.glob("report*"))


def test_the_unchanged_original_fails(wanted: Wanted, judges: Path) -> None:
    repaint(wanted, vj.patterns())
    answer = verify_model(wanted, judges=judges, command=painting)
    assert (answer.verdict, answer.status) == ("FAIL", 1)
    assert "forget_rate" in answer.reason


def test_a_certificate_of_a_model_that_did_not_forget_does_not_help_it(wanted: Wanted, judges: Path) -> None:
    """Whoever publishes may write what he likes: the gate is run, not read."""
    repaint(wanted, vj.patterns())
    answer = verify_model(certify(wanted), judges=judges, command=painting)
    assert answer.verdict == "FAIL"


def test_every_verdict_has_its_exit_status_and_pass_alone_is_zero() -> None:
    statuses = {verdict: Answer(verdict, "").status for verdict in get_args(Verdict)}
    assert statuses == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "VOID": 4, "ERROR": 4}


def test_data_that_are_none_end_in_error_not_in_a_pass(wanted: Wanted, judges: Path) -> None:
    assert wanted.data is not None
    (wanted.data / "data.npz").write_bytes(b"not an archive")
    answer = verify_model(wanted, judges=judges, command=painting)
    assert (answer.verdict, answer.status) == ("ERROR", 4)
    assert "npz" in answer.reason


def test_an_engine_that_dies_or_lies_is_an_error(wanted: Wanted) -> None:
    dies = verify_model(wanted, command=lambda *_: [sys.executable, "-c", "raise SystemExit(3)"])
    silent = verify_model(wanted, command=lambda *_: [sys.executable, "-c", ""])
    assert [(a.verdict, a.status) for a in (dies, silent)] == [("ERROR", 4)] * 2
    lies = "import sys, pathlib; pathlib.Path(sys.argv[1], 'report.json').write_text('{\"verdict\": \"PASS\"}')"
    liar = verify_model(wanted, command=lambda _, job, __: [sys.executable, "-c", lies, str(job.root)])
    assert (liar.verdict, liar.status) == ("ERROR", 4)


# ------------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("lacking", [("data",), ("original",), ("data", "original")])
def test_without_the_data_or_the_original_it_is_inconclusive_never_a_pass(wanted: Wanted, lacking: tuple[str, ...]) -> None:
    for given in (wanted, certify(wanted)):
        answer = verify_model(dataclasses.replace(given, **dict.fromkeys(lacking)), command=never)  # type: ignore[arg-type]
        assert (answer.verdict, answer.status) == ("INCONCLUSIVE", 3)
        assert all(f"--{what}" in answer.reason for what in lacking)


def test_another_original_than_the_certificates_is_inconclusive(wanted: Wanted, tmp_path: Path) -> None:
    """An original that never knew the class, or one that passes for another, would make the control worthless."""
    given = certify(wanted)
    vj.save_model(tmp_path / "other", vj.forgotten_patterns())
    answer = verify_model(dataclasses.replace(given, original=tmp_path / "other"), command=never)
    assert (answer.verdict, "--original" in answer.reason) == ("INCONCLUSIVE", True)


@pytest.mark.parametrize("change", ["the data", "fewer held out", "none held out"])
def test_other_data_than_the_certificates_are_inconclusive(wanted: Wanted, change: str) -> None:
    given = certify(wanted)
    assert given.held_out is not None
    assert given.data is not None
    if change == "the data":
        (given.data / "more.npz").write_bytes(b"")
    elif change == "fewer held out":
        given.held_out.write_text(json.dumps(json.loads(given.held_out.read_text())[1:]))
    else:
        given = dataclasses.replace(given, held_out=None)
    answer = verify_model(given, command=never)
    assert (answer.verdict, "--held-out" in answer.reason) == ("INCONCLUSIVE", True)


def test_a_later_versions_parent_is_needed_and_held_against_the_certificate(wanted: Wanted, tmp_path: Path) -> None:
    vj.save_model(tmp_path / "parent", vj.patterns() * 0.9)
    given = certify(dataclasses.replace(wanted, parent=tmp_path / "parent"))
    assert assemble(given).parent.path == tmp_path / "parent"
    for parent in (None, tmp_path / "original"):
        with pytest.raises(Undecidable, match="--parent"):
            assemble(dataclasses.replace(given, parent=parent))


def test_samples_are_named_by_their_ids_which_the_certificate_proves(wanted: Wanted, tmp_path: Path) -> None:
    """A policy for samples is not needed: the ids are asked for before."""
    ids = ["1", "2", "3"]
    given = certify(wanted, forget_classes=[], forget_samples=ids)
    assert (
        json.loads(base64.b64decode(json.loads(next(given.directory.rglob("*.dsse.json")).read_text())["payload"]))[
            "predicate"
        ]["forgetSet"]["samples"]
        == sample_digest("ureq_1", ids).model_dump()
    )
    with pytest.raises(Undecidable, match="--samples"):
        assemble(given)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    assert assemble(dataclasses.replace(given, samples=(tmp_path / "ids.json",))).spec.forget_samples == ("1", "2", "3")
    (tmp_path / "others.json").write_text(json.dumps(["4"]))
    with pytest.raises(Misused, match="--samples"):
        assemble(dataclasses.replace(given, samples=(tmp_path / "ids.json", tmp_path / "others.json")))


def test_a_checkpoint_that_is_not_what_its_certificate_names_is_unsound(wanted: Wanted) -> None:
    given = certify(wanted)
    repaint(given, vj.patterns())
    answer = verify_model(given, command=never)
    assert (answer.verdict, answer.status) == ("ERROR", 4)
    repaint(given, vj.forgotten_patterns())
    assemble(given)
    (given.directory / "extra.json").write_text("{}")
    with pytest.raises(Unsound, match=r"extra\.json"):
        assemble(given)


@pytest.mark.parametrize("key", ["forgetSet", "original", "dataset", "plan", "verification", "model", "certificate"])
@pytest.mark.parametrize("value", [None, [], {}, "x", {"digest": 5}])
def test_a_certificate_that_is_not_written_as_ours_are_is_unsound(wanted: Wanted, key: str, value: Any) -> None:
    given = certify(wanted)
    place = next(given.directory.rglob("*.dsse.json"))
    envelope = json.loads(place.read_text())
    stated = json.loads(base64.b64decode(envelope["payload"]))
    stated["predicate"][key] = value
    place.write_text(json.dumps({**envelope, "payload": base64.b64encode(json.dumps(stated).encode()).decode()}))
    with pytest.raises(Unsound):
        assemble(given)


def test_more_may_be_asked_of_a_checkpoint_than_its_certificate_claims(wanted: Wanted) -> None:
    assert assemble(dataclasses.replace(certify(wanted), forget=("diagonal", "0"))).spec.forget_classes == (0, 1, 2)


def test_the_certificates_policy_is_read_back_exactly_or_not_at_all(wanted: Wanted) -> None:
    certificate = assemble(certify(wanted)).certificate
    assert certificate is not None
    assert certificate["plan"]["policy"]["checks"][1]["params"]["max_rate"] == "0.05"  # as certificates hold fractions
    assert document_digest(certified_policy(certificate)) == document_digest(POLICY)
    certificate["plan"]["policy"]["checks"][1]["params"]["max_rate"] = "0.5"
    with pytest.raises(Misused, match="--policy"):
        certified_policy(certificate)


# ---------------------------------------------------------------------------------------------------------------- usage

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": ({"directory": Path("/nonexistent")}, "no such folder"),
    "no policy": ({"policy": None}, "--policy"),
    "an unknown policy": ({"policy": "easy-v1"}, "default-v1"),
    "a policy for another kind": ({"policy": "classifier-v1"}, "not for a generator"),
    "nothing to forget": ({"forget": ()}, "--forget"),
    "an unknown class": ({"forget": ("sevens",)}, "rows, columns"),
    "all classes": ({"forget": ("0", "1", "2", "9")}, "indices"),
    "an unknown family": ({"family": "poet"}, "--family"),
    "no class names": ({"class_names": ()}, "--class"),
    "data that are not there": ({"data": Path("/nonexistent")}, "no such folder"),
    "an original that is not there": ({"original": Path("/nonexistent")}, "no such folder"),
    "held-out ids that are no list": ({"held_out": Path("/dev/null")}, "JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_said_so(wanted: Wanted, case: str) -> None:
    changes, said = WRONG[case]
    with pytest.raises(Misused, match=said):
        verify_model(dataclasses.replace(wanted, **changes), command=never)


def test_a_fresh_seed_is_drawn_where_none_is_given(wanted: Wanted) -> None:
    first, second = (assemble(dataclasses.replace(wanted, seed=None)).spec.verification_seed for _ in range(2))
    assert first != second


def test_a_packaged_policy_is_resolved_for_the_kind(wanted: Wanted) -> None:
    policy = assemble(dataclasses.replace(wanted, policy="fast-v1")).spec.policy
    assert (policy.name, policy.kind, policy.attempts) == ("fast-v1", "generator", 1)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        ([], 2),
        (["DIR", "--nonsense"], 2),
        (["DIR", "--seed", "-1"], 2),
        (["/nonexistent", "--policy", "fast-v1"], 2),
    ],
)
def test_the_command_exits_as_it_says(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        came = command.main(arguments)
    except SystemExit as left:
        came = int(left.code or 0)
    assert came == status
    assert "Traceback" not in capsys.readouterr().err


def test_the_answer_is_one_json_object_and_the_status_that_of_the_verdict(
    wanted: Wanted, capsys: pytest.CaptureFixture[str]
) -> None:
    certify(wanted)
    assert command.main([str(wanted.directory), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "INCONCLUSIVE"
    assert command.main([str(wanted.directory)]) == 3
    assert capsys.readouterr().out.startswith("INCONCLUSIVE: nothing can be verified without")


def test_expunge_hands_the_command_over_with_its_status(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify-model", str(tmp_path / "nothing"), "--policy", "fast-v1", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
