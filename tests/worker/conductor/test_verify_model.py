"""Verifying a published checkpoint again: what is needed, what is refused, and that the same seeds find the same."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from service import catalogue
from service.audit.leaves import sample_digest
from service.certificates import commitment, statement
from service.certificates.dsse import key_of, seal
from service.files import dataset_digest
from service.policies import service as policies
from tests.worker.engine import verification_job as vj
from worker.conductor import certified, facts
from worker.conductor import verify_model as command
from worker.conductor.certified import certified_policy
from worker.conductor.comparison import Answer, against_certificate, sentences
from worker.conductor.dossier import assemble, folder
from worker.conductor.verify_model import verify_model
from worker.conductor.wanted import Misused, Undecidable, Unsound, Wanted, parser
from worker.contract import Check, Finding, JobDirectory, JudgePolicy, Policy, Verdict, document_digest, document_json

ROOT = Path(__file__).resolve().parents[3]
KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
SEED = 7
POLICY = Policy(name="painted-v1", kind="generator", judge=JudgePolicy(epochs=6), checks=vj.CHECKS)


@pytest.fixture(autouse=True)
def painters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The packaged catalogue and a family more."""
    known = json.loads(catalogue.CATALOGUE_FILE.read_text())
    known["families"]["painter"] = {"title": "Painter", "kind": "generator"}
    known["families"]["poet"] = {"title": "Paints by prompts", "kind": "generator", "prompts": True}
    known["families"]["teller"] = {"title": "Classifier", "kind": "classifier"}
    known["methods"]["repaint"] = {
        "families": ["painter", "poet"],
        "params": {
            "properties": {
                "coats": {"type": "integer", "minimum": 1, "default": 2},
                "thick": {"type": "number", "default": 0.5},
            }
        },
    }
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


def certify(
    wanted: Wanted,
    answer: Answer | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    model: dict[str, Any] | None = None,
    **changes: Any,
) -> Wanted:
    """Lay a certificate beside the checkpoint, and leave out what it says.

    Without a key nobody signed it: what the model is held to is still the caller's word then.
    """
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
        model={"id": "mdl_1", "version": 2, "digest": dossier.candidate.digest, **(model or {})},
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
    unsigned = {
        "payload": payload,
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "", "keyid": ""}],
    }
    place.write_text(json.dumps(unsigned if key is None else seal(stated, key_of(key))["dsseEnvelope"]))
    given = dataclasses.replace(wanted, forget=(), class_names=(), family=None, proxy_classes=None)
    return dataclasses.replace(given, method="repaint") if key is None else dataclasses.replace(given, policy=None, seed=None)


def rewrite(wanted: Wanted, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what the certificate says, as whoever lays it there may."""
    place = next(wanted.directory.rglob("*.dsse.json"))
    envelope = json.loads(place.read_text())
    stated = json.loads(base64.b64decode(envelope["payload"]))
    change(stated["predicate"])
    place.write_text(json.dumps({**envelope, "payload": base64.b64encode(json.dumps(stated).encode()).decode()}))


def public_half(key: ec.EllipticCurvePrivateKey, folder: Path) -> Path:
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path = folder / "signing.pub"
    path.write_bytes(key.public_key().public_bytes(pem, spki))
    return path


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_a_checkpoint_that_forgot_passes_and_its_certificate_is_found_again_to_the_last_digit(
    wanted: Wanted, judges: Path, tmp_path: Path
) -> None:
    first = verify_model(wanted, judges=judges, out=tmp_path / "out", command=painting)
    assert (first.verdict, first.status) == ("PASS", 0), first.reason
    assert first.report is not None
    assert {"report.json", "engine.log", "evidence"} <= {p.name for p in (tmp_path / "out").iterdir()}
    given = dataclasses.replace(certify(wanted, first, KEY), key=public_half(KEY, tmp_path))
    again = verify_model(given, judges=judges, command=painting)
    said = again.as_json()
    assert (again.verdict, said["seed"]) == ("PASS", SEED)
    assert said["certificate"] == {
        "id": "ckpt_1",
        "same_policy": True,
        "same_seed": True,
        "findings": len(first.report.findings),
        "findings_here": len(first.report.findings),
        "findings_equal": len(first.report.findings),
    }
    assert not list(wanted.directory.glob("report*"))


def test_findings_about_the_same_are_each_found_again_and_one_that_the_certificate_hides_is_counted(
    wanted: Wanted, judges: Path
) -> None:
    """A sweep leaves one for each setting: to keep the best of them alone is not to have been found again."""
    first = verify_model(wanted, judges=judges, command=painting)
    assert first.report is not None
    dossier = first.dossier
    assert dossier is not None
    made = [first.report.findings[0].model_copy(update={"value": n / 10, "passed": None}) for n in range(3)]
    report = first.report.model_copy(update={"findings": tuple(made)})

    def compared(kept: list[Finding]) -> tuple[int, int, int]:
        given = certify(wanted, dataclasses.replace(first, report=report.model_copy(update={"findings": tuple(kept)})))
        stated = certified.read(given.directory, None)
        beside = against_certificate(dataclasses.replace(dossier, certificate=stated), report)
        assert beside is not None
        return beside["findings"], beside["findings_here"], beside["findings_equal"]

    assert compared(made) == (3, 3, 3)
    assert compared(made[:1]) == (1, 3, 1)
    assert compared([made[0]] * 3) == (3, 3, 1)
    assert compared([*made, made[0].model_copy(update={"value": 0.7})]) == (4, 3, 3)


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
    for given in (certify(wanted), dataclasses.replace(wanted, method="repaint")):
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


def samples_of(given: Wanted) -> set[str]:
    """Before anything is asked that only a policy for samples could say."""
    return facts._samples(given, certified.read(given.directory, given.key))


def test_samples_are_named_by_openings_of_the_commitment(wanted: Wanted, tmp_path: Path) -> None:
    """A certificate says how many there are, and commits to them; what a stranger's list names is not believed."""
    ids, key = ["1", "2", "3"], b"k" * 32
    leaves = commitment.leaves(key, ids)
    given = certify(wanted, forget_classes=[], forget_samples=ids)
    rewrite(given, lambda said: said["forgetSet"].update(commitment=commitment.commit(leaves).as_json()))
    openings = [commitment.opening([key], leaves, one) for one in ids]
    others = commitment.leaves(key, ["4", "5", "6"])

    def brought(name: str, told: list[Any]) -> Wanted:
        (tmp_path / name).write_text(json.dumps(told))
        return dataclasses.replace(given, samples=(tmp_path / name,))

    assert samples_of(brought("all.json", openings)) == {"1", "2", "3"}
    for few in (ids, openings[:2], [openings[0]] * 3):
        with pytest.raises(Undecidable, match="--samples"):
            samples_of(brought("few.json", few))
    forged = {**openings[0], "item": "4"}
    for wrong in ([forged, *openings[1:]], [commitment.opening([key], others, "4")], [{}], [{**openings[0], "path": [5]}]):
        with pytest.raises(Misused, match="--samples"):
            samples_of(brought("wrong.json", wrong))


def test_samples_of_older_certificates_are_named_by_their_ids_which_the_digest_proves(wanted: Wanted, tmp_path: Path) -> None:
    ids = ["1", "2", "3"]
    given = certify(wanted, forget_classes=[], forget_samples=ids)
    rewrite(given, lambda said: said["forgetSet"].update(samples=sample_digest("ureq_1", ids).model_dump()))
    with pytest.raises(Undecidable, match="--samples"):
        samples_of(given)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    assert samples_of(dataclasses.replace(given, samples=(tmp_path / "ids.json",))) == {"1", "2", "3"}
    (tmp_path / "others.json").write_text(json.dumps(["4"]))
    with pytest.raises(Misused, match="--samples"):
        samples_of(dataclasses.replace(given, samples=(tmp_path / "ids.json", tmp_path / "others.json")))


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
    rewrite(given, lambda predicate: predicate.update({key: value}))
    with pytest.raises(Unsound):
        assemble(given)


def test_more_may_be_asked_of_a_checkpoint_than_its_certificate_claims(wanted: Wanted) -> None:
    assert assemble(dataclasses.replace(certify(wanted), forget=("diagonal", "0"))).spec.forget_classes == (0, 1, 2)


def test_the_certificates_policy_is_read_back_exactly_or_not_at_all(wanted: Wanted) -> None:
    beside = assemble(certify(wanted)).certificate
    assert beside is not None
    certificate = beside.predicate
    assert certificate["plan"]["policy"]["checks"][1]["params"]["max_rate"] == "0.05"  # as certificates hold fractions
    assert document_digest(certified_policy(certificate)) == document_digest(POLICY)
    certificate["plan"]["policy"]["checks"][1]["params"]["max_rate"] = "0.5"
    with pytest.raises(Unsound, match="not the one that its policySha256 names"):
        certified_policy(certificate)


# ------------------------------------------------------------------------------------------- whose word a certificate is


def test_with_the_signers_key_the_signature_is_verified_and_the_answer_says_so(
    wanted: Wanted, judges: Path, tmp_path: Path
) -> None:
    first = verify_model(wanted, judges=judges, command=painting)
    given = certify(wanted, first, KEY)
    bare = dataclasses.replace(given, policy=wanted.policy, seed=SEED, method="repaint")
    unchecked = verify_model(bare, judges=judges, command=painting)
    checked = verify_model(dataclasses.replace(given, key=public_half(KEY, tmp_path)), judges=judges, command=painting)
    assert [(a.verdict, a.as_json()["signature"]) for a in (unchecked, checked)] == [
        ("PASS", "not checked"),
        ("PASS", "verified"),
    ]
    assert "signature was not checked" in sentences(unchecked)
    assert "signature was verified" in sentences(checked)


def test_what_the_key_did_not_sign_is_not_verified_against(wanted: Wanted, judges: Path, tmp_path: Path) -> None:
    first = verify_model(wanted, judges=judges, command=painting)
    key = public_half(KEY, tmp_path)
    unsigned = verify_model(dataclasses.replace(certify(wanted, first), key=key), command=never)
    other = verify_model(dataclasses.replace(certify(wanted, first, OTHER_KEY), key=key), command=never)
    given = dataclasses.replace(certify(wanted, first, KEY), key=key)
    rewrite(given, lambda predicate: predicate["verification"].update(seed=1))
    changed = verify_model(given, command=never)
    assert [(a.verdict, a.status) for a in (unsigned, other, changed)] == [("ERROR", 4)] * 3


def test_a_signed_certificate_whose_findings_do_not_pass_is_none(wanted: Wanted, tmp_path: Path) -> None:
    """As `expunge verify` says: whoever signed it."""
    answer = verify_model(dataclasses.replace(certify(wanted, None, KEY), key=public_half(KEY, tmp_path)), command=never)
    assert (answer.verdict, "do not pass the gate" in answer.reason) == ("ERROR", True)


def test_a_key_without_a_certificate_or_a_key_that_is_none_decides_nothing(wanted: Wanted, tmp_path: Path) -> None:
    bare = verify_model(dataclasses.replace(wanted, key=public_half(KEY, tmp_path)), command=never)
    no_key = verify_model(dataclasses.replace(certify(wanted), key=tmp_path / "nowhere"), command=never)
    assert [(a.verdict, a.status) for a in (bare, no_key)] == [("INCONCLUSIVE", 3)] * 2


def test_what_a_model_is_held_to_is_nobodys_word_but_the_signers_or_the_callers(
    wanted: Wanted, judges: Path, tmp_path: Path
) -> None:
    """A stranger's policy lets everything pass, his method leaves nothing frozen, and his seed is the luckiest of many."""
    first = verify_model(wanted, judges=judges, command=painting)
    given = certify(wanted, first, KEY)
    for brought in ({}, {"policy": wanted.policy}, {"method": "repaint"}):
        answer = verify_model(dataclasses.replace(given, **brought), command=never)  # type: ignore[arg-type]
        assert (answer.verdict, answer.status) == ("INCONCLUSIVE", 3)
        assert [f"--{name}" in answer.reason for name in ("policy", "method")] == [
            n not in brought for n in ("policy", "method")
        ]
    own = assemble(dataclasses.replace(given, policy="fast-v1", method="repaint")).spec
    assert (own.policy.name, own.method, own.params) == ("fast-v1", "repaint", {"coats": 2, "thick": 0.5})
    assert own.verification_seed != SEED
    signed = assemble(dataclasses.replace(given, key=public_half(KEY, tmp_path))).spec
    assert (signed.policy.name, signed.method, signed.verification_seed) == ("painted-v1", "verify-model", SEED)


def test_classes_are_set_aside_on_nobodys_word_but_the_signers_or_the_callers(
    wanted: Wanted, judges: Path, tmp_path: Path
) -> None:
    """What is set aside is not verified as retained: a stranger would set aside whatever his model lost."""
    first = verify_model(dataclasses.replace(wanted, proxy_classes=("diagonal",)), judges=judges, command=painting)
    given = certify(wanted, first, KEY)
    bare = dataclasses.replace(given, policy=wanted.policy, seed=SEED, method="repaint")
    with pytest.raises(Undecidable, match="--proxy-class"):
        assemble(bare)
    signed = assemble(dataclasses.replace(given, key=public_half(KEY, tmp_path))).spec
    named = assemble(dataclasses.replace(bare, proxy_classes=("diagonal",))).spec
    assert [spec.retain_classes for spec in (signed, named)] == [(0, 3), (0, 3)]
    assert assemble(dataclasses.replace(bare, proxy_classes=())).spec.retain_classes == (0, 2, 3)


def test_a_certificates_policy_must_be_the_one_that_its_digest_names_whichever_is_used(wanted: Wanted) -> None:
    given = certify(wanted)
    rewrite(given, lambda predicate: predicate["plan"].update(policySha256="0" * 64))
    for policy in (None, wanted.policy):
        with pytest.raises(Unsound, match="policySha256"):
            assemble(dataclasses.replace(given, policy=policy))


@pytest.mark.parametrize("kind", ["classifier", None])
def test_a_certificates_policy_must_be_for_the_kind_of_its_family(wanted: Wanted, kind: Any) -> None:
    """One of another kind, said or by its checks, asks for nothing that this model would have to show."""
    other = POLICY.model_copy(update={"kind": kind, "checks": (Check(verifier="forget_accuracy"),)})

    def change(predicate: dict[str, Any]) -> None:
        predicate["plan"] = {"policy": document_json(other), "policySha256": document_digest(other)}
        predicate["plan"]["policy"]["judge"]["min_accuracy"] = str(other.judge.min_accuracy)
        predicate["plan"]["policy"]["sampling"]["guidance_scale"] = str(other.sampling.guidance_scale)

    given = certify(wanted)
    rewrite(given, change)
    with pytest.raises(Unsound, match="not for a generator, which a painter model is"):
        assemble(given)


# ------------------------------------------------------------------------------------------- what no certificate says


def test_without_a_certificate_the_method_is_named_and_its_parameters_are_spelled_out(wanted: Wanted, tmp_path: Path) -> None:
    """What a method leaves frozen follows from them, so a check of that needs them."""
    spec = assemble(dataclasses.replace(wanted, method="repaint")).spec
    assert (spec.method, spec.params) == ("repaint", {"coats": 2, "thick": 0.5})
    (tmp_path / "params.json").write_text('{"coats": 5}')
    spec = assemble(dataclasses.replace(wanted, method="repaint", params=tmp_path / "params.json")).spec
    assert spec.params == {"coats": 5, "thick": 0.5}
    (tmp_path / "params.json").write_text('{"coats": 0}')
    with pytest.raises(Misused, match="--params: coats: expected minimum 1"):
        assemble(dataclasses.replace(wanted, method="repaint", params=tmp_path / "params.json"))
    assert assemble(wanted).spec.method == "verify-model"
    assert assemble(certify(wanted)).spec.method == "repaint"


PROMPTS = {name: f"a painting of {name}" for name in vj.NAMES}


def test_a_model_is_asked_by_the_prompts_of_its_certificate_or_not_at_all(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    (tmp_path / "others.json").write_text(json.dumps({**PROMPTS, "columns": "a painting of nothing"}))
    by_prompts = dataclasses.replace(wanted, family="poet", prompts=tmp_path / "prompts.json")
    given = certify(by_prompts, model={"promptsSha256": statement.prompts_digest(PROMPTS)})
    assert assemble(given).spec.prompts == tuple(PROMPTS[name] for name in vj.NAMES)
    for prompts, said in ((tmp_path / "others.json", "are not those of the certificate"), (None, "are needed")):
        with pytest.raises(Undecidable, match=said):
            assemble(dataclasses.replace(given, prompts=prompts))
    (tmp_path / "half.json").write_text(json.dumps({**PROMPTS, "columns": "\ud800"}))
    with pytest.raises(Misused, match="--prompts"):
        assemble(dataclasses.replace(given, prompts=tmp_path / "half.json"))


def test_a_model_that_was_asked_by_its_class_names_needs_no_prompts(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps({name: name for name in vj.NAMES}))
    by_names = dataclasses.replace(wanted, family="poet", prompts=tmp_path / "prompts.json")
    given = certify(by_names, model={"promptsSha256": statement.prompts_digest({name: name for name in vj.NAMES})})
    assert assemble(dataclasses.replace(given, prompts=None)).spec.labels == vj.NAMES


# ---------------------------------------------------------------------------------------------------------------- usage

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": ({"directory": Path("/nonexistent")}, "no such folder"),
    "no policy": ({"policy": None}, "--policy"),
    "an unknown policy": ({"policy": "easy-v1"}, "default-v1"),
    "a policy for another kind": ({"policy": "classifier-v1"}, "not for a generator"),
    "nothing to forget": ({"forget": ()}, "--forget"),
    "an unknown class": ({"forget": ("sevens",)}, "rows, columns"),
    "all classes": ({"forget": ("0", "1", "2", "9")}, "indices"),
    "an unknown family": ({"family": "sculptor"}, "--family"),
    "no class names": ({"class_names": ()}, "--class"),
    "data that are not there": ({"data": Path("/nonexistent")}, "no such folder"),
    "an original that is not there": ({"original": Path("/nonexistent")}, "no such folder"),
    "held-out ids that are no list": ({"held_out": Path("/dev/null")}, "JSON"),
    "a method that the family does not have": ({"method": "sfron"}, "--method: expected one of: repaint"),
    "parameters of no method": ({"params": Path("/dev/null")}, "expected --method"),
    "an unknown class set aside": ({"proxy_classes": ("sevens",)}, "rows, columns"),
    "what is to be forgotten set aside": ({"proxy_classes": ("columns",)}, "proxy classes that are not to be forgotten"),
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
    held_to = ["--policy", str(wanted.policy), "--method", "repaint"]
    assert command.main([str(wanted.directory), *held_to, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["verdict"] == "INCONCLUSIVE"
    assert command.main([str(wanted.directory), *held_to]) == 3
    assert capsys.readouterr().out.startswith("INCONCLUSIVE: nothing can be verified without")


def test_every_option_is_in_the_reference() -> None:
    table = (ROOT / "docs" / "reference" / "policies.md").read_text()
    options = {o for action in parser()._actions for o in action.option_strings if o.startswith("--")} - {"--help"}
    assert {o for o in options if f"`{o}" not in table} == set()


def test_expunge_hands_the_command_over_with_its_status(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify-model", str(tmp_path / "nothing"), "--policy", "fast-v1", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
