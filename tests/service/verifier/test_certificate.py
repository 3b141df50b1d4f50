"""A downloaded checkpoint is good only as it was signed; everything else is refused, and the reason names the file."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.certificates import dsse, statement
from service.verifier import certificate, reading
from service.verifier.__main__ import sentence
from service.verifier.certificate import verify_directory
from service.verifier.reading import GOOD, TAMPERED, UNDECIDED
from tests.service.certificates.doubles import FILES, POLICY, PROXY, a_statement, held_to, retain_data

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Published:
    folder: Path
    key_file: Path
    key: ec.EllipticCurvePrivateKey
    envelope: dict[str, Any]
    """Bare, as older releases wrote it: the verifier still reads it. Bundles are looked at beside what lies with them."""

    @property
    def certificate(self) -> Path:
        return self.folder / "UNLEARNING" / "certificate.dsse.json"

    def resign(self, statement_: dict[str, Any]) -> None:
        self.certificate.write_text(json.dumps(dsse.seal(statement_, dsse.key_of(self.key))["dsseEnvelope"]))


@pytest.fixture
def published(tmp_path: Path) -> Published:
    key = ec.generate_private_key(ec.SECP256R1())
    envelope = dsse.seal(a_statement(), dsse.key_of(key))["dsseEnvelope"]
    for name, data in FILES.items():
        target = tmp_path / "checkpoint" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (tmp_path / "signing.pub").write_bytes(dsse.pem(key.public_key()))
    made = Published(tmp_path / "checkpoint", tmp_path / "signing.pub", key, envelope)
    made.certificate.parent.mkdir()
    made.certificate.write_text(json.dumps(envelope))
    return made


def test_the_verifier_and_the_issuer_speak_of_the_same_types() -> None:
    assert reading.STATEMENT_TYPE == statement.STATEMENT_TYPE
    assert certificate.PREDICATE_TYPE == statement.PREDICATE_TYPE
    assert reading.PAYLOAD_TYPE == statement.PAYLOAD_TYPE


def test_a_checkpoint_as_published_is_good(published: Published) -> None:
    outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, outcome.facts["files"]) == (GOOD, len(FILES))
    assert (outcome.facts["forgotten_class_names"], outcome.facts["forgotten_samples"]) == (["3"], 0)


def test_a_certificate_about_samples_says_how_many(published: Published) -> None:
    wish = {
        "forget_classes": [],
        "forget_samples": ["a.png", "b.png"],
        "forgotten_classes": [5],
        "forgotten_samples": ["c.png"],
    }
    published.resign(a_statement(**wish))
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.status == GOOD
    assert (outcome.facts["forgotten_class_names"], outcome.facts["forgotten_samples"]) == (["5"], 3)
    assert "forgotten samples     3" in sentence(outcome)


def test_a_certificate_about_chosen_retain_data_says_what_stood_in(published: Published) -> None:
    published.resign(a_statement(retain=retain_data(), proxy=PROXY))
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.status == GOOD, outcome.reason
    assert outcome.facts["retain_data"] == {
        "real": "0.0",
        "proxy_classes": [8, 9],
        "proxy_class_names": ["8", "9"],
        "proxy_dataset_id": PROXY["id"],
        "proxy_dataset_digest": PROXY["digest"],
    }
    assert f'"proxy_dataset_id": "{PROXY["id"]}"' in sentence(outcome)


def test_a_certificate_says_its_tier_its_guarantee_and_which_attempt_passed(published: Published) -> None:
    statement_ = a_statement(attempt=2, requested="auto", earlier=[{
        "rung": 1, "fence": 1, "method": "salun", "params": {}, "seed": 1, "spec_sha256": "44" * 32, "verdict": "FAIL",
        "verification_seed": 6,
    }])  # fmt: skip
    held_to(statement_, {**POLICY, "attempts": 2, "kind": "generator"})
    statement_["predicate"]["attempts"]["of"] = 2
    statement_["predicate"]["claim"]["tier"] = "L0"
    published.resign(statement_)
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.status == GOOD, outcome.reason
    assert (outcome.facts["tier"], outcome.facts["attempt"], outcome.facts["attempts"]) == ("L0", 2, 2)
    assert "tier                  L0" in sentence(outcome)
    assert "requested method      auto" in sentence(outcome)
    statement_["predicate"]["claim"]["tier"] = "L3"
    published.resign(statement_)
    outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, "higher tier" in outcome.reason) == (TAMPERED, True)


def test_a_certificate_of_an_older_release_claims_no_tier_and_is_good(published: Published) -> None:
    statement_ = a_statement()
    del statement_["predicate"]["attempts"]
    published.resign(statement_)
    outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, outcome.facts["tier"], outcome.facts["attempts"]) == (GOOD, None, None)
    assert "tier" not in sentence(outcome)
    assert "attempt" not in sentence(outcome)


def test_a_certificate_that_chose_no_retain_data_says_nothing_of_them(published: Published) -> None:
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.facts["retain_data"] is None
    assert "retain data" not in sentence(outcome)


def test_a_certificate_whose_proxy_data_held_what_is_forgotten_is_refused(published: Published) -> None:
    published.resign(a_statement(retain=retain_data(proxy_classes=[3]), proxy=PROXY))
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.status == TAMPERED
    assert "retained or proxy data held a class that it says is forgotten" in outcome.reason


def test_a_changed_file_is_named(published: Published) -> None:
    (published.folder / "unet/config.json").write_text("{ }")
    outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, outcome.reason) == (TAMPERED, "unet/config.json was changed")


def test_a_missing_file_is_named(published: Published) -> None:
    (published.folder / "README.md").unlink()
    assert verify_directory(published.folder, published.key_file).reason == "README.md is missing"


@pytest.mark.parametrize("where", ["extra.py", "unet/extra.bin", "UNLEARNING/extra.json", ".hidden/x"])
def test_an_added_file_is_named_wherever_it_lies(published: Published, where: str) -> None:
    path = published.folder / where
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, outcome.reason) == (TAMPERED, f"{where} is not named by the certificate")


def test_a_renamed_file_is_refused(published: Published) -> None:
    (published.folder / "README.md").rename(published.folder / "README.txt")
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_a_link_is_refused_even_to_the_right_bytes(published: Published, tmp_path: Path) -> None:
    target = published.folder / "README.md"
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    assert "neither a file nor a folder" in verify_directory(published.folder, published.key_file).reason


def test_a_linked_folder_is_refused(published: Published, tmp_path: Path) -> None:
    (published.folder / "unet").rename(tmp_path / "unet")
    (published.folder / "unet").symlink_to(tmp_path / "unet")
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_a_pipe_is_refused_and_not_read(published: Published) -> None:
    os.mkfifo(published.folder / "pipe")
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_another_key_is_refused(published: Published) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    published.key_file.write_bytes(pem)
    assert "not signed by this key" in verify_directory(published.folder, published.key_file).reason


def test_a_changed_certificate_is_refused(published: Published) -> None:
    body = json.loads(base64.b64decode(published.envelope["payload"]))
    body["predicate"]["forgetSet"]["classes"] = [4]
    changed = {**published.envelope, "payload": base64.b64encode(json.dumps(body).encode()).decode()}
    published.certificate.write_text(json.dumps(changed))
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_another_predicate_signed_by_the_same_key_is_refused(published: Published) -> None:
    published.resign({**a_statement(), "predicateType": "https://slsa.dev/provenance/v1"})
    assert "a statement of another kind" in verify_directory(published.folder, published.key_file).reason


def spoiled(how: str) -> dict[str, Any]:
    """A statement that no honest signer signs."""
    bad = a_statement(forgotten_classes=[5])
    verification = bad["predicate"]["verification"]
    findings = verification["findings"]
    match how:
        case "no control":
            verification["findings"] = [f for f in findings if not f["control"]]
        case "one class without a control":
            verification["findings"] = [f for f in findings if not (f["control"] and f["class_index"] == 5)]
        case "an earlier class is not measured":
            verification["findings"] = [f for f in findings if f["class_index"] != 5]
        case "a finding that failed":
            findings[0]["passed"] = False
        case "a bound that misses its threshold":
            findings[1]["lower95"] = "0.9"
        case "a number that is none":
            findings[1]["lower95"] = "much"
        case "no policy":
            del bad["predicate"]["plan"]["policy"]
    return bad


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no control", "a check that measures forgetting has no control"),
        ("one class without a control", "a check that measures forgetting has no control"),
        ("an earlier class is not measured", "a check of its policy has no gating finding"),
        ("a finding that failed", "a gating finding did not pass"),
        ("a bound that misses its threshold", "a finding's own numbers say otherwise than it does"),
        ("a number that is none", "not readable"),
        ("no policy", "not readable"),
    ],
)
def test_a_signed_certificate_whose_findings_do_not_pass_the_gate_is_refused(
    published: Published, how: str, reason: str
) -> None:
    published.resign(spoiled(how))
    outcome = verify_directory(published.folder, published.key_file)
    assert outcome.status == TAMPERED
    assert reason in outcome.reason


@pytest.mark.parametrize("name", ["../README.md", "/etc/passwd", "a//b", "UNLEARNING/x", ""])
def test_a_certificate_that_names_an_impossible_path_is_refused(published: Published, name: str) -> None:
    bad = a_statement()
    bad["subject"][0]["name"] = name
    published.resign(bad)
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_two_signatures_are_refused(published: Published) -> None:
    twice = {**published.envelope, "signatures": published.envelope["signatures"] * 2}
    published.certificate.write_text(json.dumps(twice))
    assert "exactly one signature" in verify_directory(published.folder, published.key_file).reason


def test_a_duplicate_key_in_the_certificate_is_refused(published: Published) -> None:
    text = json.dumps(published.envelope)
    published.certificate.write_text(text[:-1] + ', "payload": ' + json.dumps(published.envelope["payload"]) + "}")
    assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_a_certificate_that_names_no_ledger_is_not_believed_to_be_in_one(published: Published, tmp_path: Path) -> None:
    old = a_statement()
    del old["predicate"]["certificate"]["ledger"]
    published.resign({**old, "subject": old["subject"][1:]})
    (tmp_path / "policy").write_text("quorum none\n")
    assert verify_directory(published.folder, published.key_file, tmp_path / "policy").status == UNDECIDED
    (tmp_path / "policy").write_text("quorum\n")
    report = verify_directory(published.folder, published.key_file, tmp_path / "policy")
    assert (report.status, "is no policy" in report.reason) == (UNDECIDED, True)


@pytest.mark.parametrize("what", ["certificate", "key", "folder"])
def test_without_the_material_there_is_no_decision_and_no_pass(published: Published, what: str) -> None:
    paths = {"certificate": published.certificate, "key": published.key_file}
    if what == "folder":
        outcome = verify_directory(published.folder / "nowhere", published.key_file)
    else:
        paths[what].unlink()
        if what == "certificate":
            paths[what].parent.rmdir()
        outcome = verify_directory(published.folder, published.key_file)
    assert (outcome.status, outcome.valid) == (UNDECIDED, False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_a_published_folder_may_change(published: Published, data: st.DataObject) -> None:
    names = [*FILES, "UNLEARNING/certificate.dsse.json"]
    path = published.folder / data.draw(st.sampled_from(names))
    before = path.read_bytes()
    where = data.draw(st.integers(0, len(before) - 1))
    flipped = bytearray(before)
    flipped[where] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(flipped))
    try:
        outcome = verify_directory(published.folder, published.key_file)
        harmless = path == published.certificate and _same_envelope(bytes(flipped), published.envelope)
        assert outcome.valid == harmless
    finally:
        path.write_bytes(before)


def _same_envelope(data: bytes, envelope: dict[str, Any]) -> bool:
    """A flip that changed white space and nothing else."""
    try:
        return bool(json.loads(data) == envelope)
    except ValueError:
        return False


def test_a_changed_key_hint_or_an_added_field_is_refused(published: Published) -> None:
    (signature,) = published.envelope["signatures"]
    for changed in ({**signature, "keyid": "00"}, {**signature, "note": "x"}, {"sig": signature["sig"]}):
        published.certificate.write_text(json.dumps({**published.envelope, "signatures": [changed]}))
        assert verify_directory(published.folder, published.key_file).status == TAMPERED


def test_an_empty_folder_is_refused(published: Published) -> None:
    (published.folder / "a" / "b").mkdir(parents=True)
    assert verify_directory(published.folder, published.key_file).reason == "a/b is an empty folder"


@pytest.mark.parametrize(("arguments", "status"), [([], 3), (["--key"], 3), (["x", "--key", "y", "--nonsense"], 3)])
def test_wrong_usage_is_status_3(arguments: list[str], status: int) -> None:
    command = [sys.executable, "-m", "service.verifier", *arguments]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == status
