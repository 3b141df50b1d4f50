"""What can be done to a published checkpoint, its proofs, a receipt and a dossier."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates import dsse
from service.certificates.signing import KeySigner, SigningRefused, differences
from service.verifier.__main__ import main
from service.verifier.certificate import verify_directory
from service.verifier.proofs import verify_dossier, verify_receipt
from service.verifier.reading import GOOD, TAMPERED, UNDECIDED, Report
from tests.attacks.conftest import Field, refused, unseen
from tests.service.certificates.doubles import FILES, LEDGER, MemoryStore, a_publication, a_statement
from tests.service.verifier.dossiers import dossier
from tests.service.verifier.ledgers import a_request
from tests.service.verifier.published import Published, bundle, model_signature, publish, publish_logged

pytestmark = pytest.mark.attack


@pytest.fixture
def published(field: Field) -> Published:
    return publish_logged(field.folder, field.ledger)


def verify(made: Published, *, logged: bool = True) -> Report:
    return verify_directory(made.folder, made.key_file, made.policy if logged else None)


def test_a_checkpoint_as_published_is_good(published: Published) -> None:
    report = verify(published)
    unseen(report)
    assert report.facts["as_of"] == "2026-11-18T11:06:40Z"  # of the witness's cosignature
    unseen(verify(published, logged=False))


# ---------------------------------------------------------------------------------------------------------------- files


def swap_weights(made: Published) -> None:
    (made.folder / "unet/weights.safetensors").write_bytes(b"other")


def rename(made: Published) -> None:
    (made.folder / "README.md").rename(made.folder / "README.rst")


def rename_and_sign_the_set_anew(made: Published) -> None:
    """The root binds the set and not the names: cosign alone and the root alone do not see this."""
    files = {("README.rst" if name == "README.md" else name): data for name, data in FILES.items()}
    rename(made)
    (made.folder / "model.sig").write_text(json.dumps(model_signature(files, made.key)))


def drop(name: str) -> Callable[[Published], None]:
    return lambda made: (made.folder / name).unlink()


def add(name: str) -> Callable[[Published], None]:
    return lambda made: (made.folder / name).write_text("import os")


def code_where_stock_tools_do_not_look(made: Published) -> None:
    (made.folder / ".git").mkdir()
    (made.folder / ".git/hook.py").write_text("import os")


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (swap_weights, "unet/weights.safetensors was changed"),
        (rename, "README.md is missing"),
        (rename_and_sign_the_set_anew, "model.sig: it is of other files"),
        (drop("README.md"), "README.md is missing"),
        (add("modeling.py"), "modeling.py is not named by the certificate"),
        (add("UNLEARNING/hook.py"), "UNLEARNING/hook.py is not named by the certificate"),
        (code_where_stock_tools_do_not_look, ".git/hook.py is not named by the certificate"),
    ],
)
def test_other_files_than_those_certified_are_named(
    published: Published, attack: Callable[[Published], None], named: str
) -> None:
    attack(published)
    refused(verify(published), named)
    refused(verify(published, logged=False), named)


# ---------------------------------------------------------------------------------------------------------- certificates


def test_another_models_certificate_is_refused(published: Published, tmp_path: Path) -> None:
    other = publish(tmp_path / "other", files={"w.safetensors": b"x"})
    other.key = published.key
    published.certificate.write_text(json.dumps(bundle(other.sign(other.statement), published.key)))
    refused(verify(published, logged=False), "")


def test_another_statement_of_the_same_key_is_no_certificate(published: Published) -> None:
    shutil.copy(published.folder / "UNLEARNING/provenance.sigstore.json", published.certificate)
    refused(verify(published), "the certificate: it is a statement of another kind")
    shutil.copy(published.folder / "model.sig", published.certificate)
    refused(verify(published), "the certificate: it is a statement of another kind")


def test_a_forged_or_edited_certificate_is_refused(published: Published) -> None:
    payload = json.dumps(published.statement).encode()
    published.certificate.write_text(json.dumps(bundle(payload, ec.generate_private_key(ec.SECP256R1()))))
    refused(verify(published), "the certificate: it is not signed by this key")
    made = bundle(payload, published.key)
    edited = payload.replace(b'"iterations": 50', b'"iterations": 51')
    made["dsseEnvelope"]["payload"] = base64.b64encode(edited).decode()
    published.certificate.write_text(json.dumps(made))
    refused(verify(published), "the certificate: it is not signed by this key")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda made: made.update(mediaType="application/json"), "expected a Sigstore bundle"),
        (lambda made: made.update(extra=1), "expected a Sigstore bundle"),
        (lambda made: made["verificationMaterial"]["tlogEntries"].append({}), "expected a Sigstore bundle"),
        (lambda made: made["verificationMaterial"].update(x509=1), "expected a Sigstore bundle"),
        (lambda made: made["verificationMaterial"]["publicKey"].update(hint="00"), "not signed by this key"),
        (lambda made: made["dsseEnvelope"].update(payloadType="text/plain"), "expected a payload"),
        (lambda made: made["dsseEnvelope"]["signatures"].append({}), "exactly one signature"),
        (lambda made: made["dsseEnvelope"]["signatures"][0].update(keyid="00"), "not signed by this key"),
        (lambda made: made.pop("dsseEnvelope"), "expected a Sigstore bundle"),
    ],
)
def test_a_bundle_of_another_shape_is_refused(published: Published, change: Callable[[Any], Any], named: str) -> None:
    made = json.loads(published.certificate.read_text())
    change(made)
    published.certificate.write_text(json.dumps(made))
    refused(verify(published), "the certificate")
    refused(verify(published), named)


def test_a_wrong_root_over_the_right_files_is_refused(published: Published) -> None:
    published.statement["subject"][0]["digest"]["sha256"] = "00" * 32
    published.sign(published.statement)
    refused(verify(published, logged=False), "its first subject is not the model")


@pytest.mark.parametrize("name", ["provenance.sigstore.json", "mlbom.cdx.json"])
def test_other_evidence_than_the_certificate_names_is_named(published: Published, name: str) -> None:
    path = published.folder / "UNLEARNING" / name
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1.6", b"1.7") if name.startswith("mlbom") else before.replace(b"=", b"", 1))
    refused(verify(published), f"UNLEARNING/{name}")
    path.unlink()
    assert verify(published).status == UNDECIDED
    published.statement["predicate"]["attestations"] = []
    published.sign(published.statement)
    path.write_bytes(before)
    refused(verify(published, logged=False), "")


# ------------------------------------------------------------------------------------------- what was owed and what was found


def weaken(said: Any) -> None:
    """The digest stands in the ledger; what is owed, in the document beside it."""
    said["plan"]["policy"]["checks"] = [one for one in said["plan"]["policy"]["checks"] if one["verifier"] == "forget_rate"]
    said["verification"]["findings"] = [one for one in said["verification"]["findings"] if one["check"] == "forget_rate"]


def loosen(said: Any) -> None:
    said["plan"]["policy"]["checks"][1]["params"]["max_rate"] = "0.5"


def another_name(said: Any) -> None:
    said["plan"]["policy"]["name"] = "strict-v1"


def another_digest(said: Any) -> None:
    said["plan"]["policySha256"] = "00" * 32


def taken_of(role: str, subject: str) -> Callable[[Any], None]:
    """The finding on forgetting that gates, or that is the control, is of another model."""

    def change(said: Any) -> None:
        for one in said["verification"]["findings"]:
            if one["check"] == "forget_rate" and one[role]:
                one["subject"] = subject

    return change


UNCOMMITTED = "its policy is not the one that its policySha256 names"


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (weaken, UNCOMMITTED),
        (loosen, UNCOMMITTED),
        (another_name, UNCOMMITTED),
        (another_digest, UNCOMMITTED),
        (taken_of("gating", "original"), "a gating finding is not of the candidate"),
        (taken_of("control", "candidate"), "a control is not of the original"),
        (taken_of("control", "reference"), "a control is not of the original"),
    ],
)
def test_another_policy_or_another_models_findings_are_refused_by_signer_and_verifier(
    published: Published, attack: Callable[[Any], None], named: str
) -> None:
    """Whoever holds the worker says what was measured, but not what was owed: that was committed to before the run."""
    attack(published.statement["predicate"])
    published.sign(published.statement)
    refused(verify(published), named)
    refused(verify(published, logged=False), named)
    signer = KeySigner(dsse.key_of(published.key), MemoryStore())
    asked = a_statement()
    attack(asked["predicate"])
    with pytest.raises(SigningRefused, match=named):
        signer.sign(a_publication(asked))


# -------------------------------------------------------------------------------------------------------- in the ledger


def test_a_certificate_that_was_never_logged_is_refused(published: Published) -> None:
    """The certificate's key in wrong hands: whatever it signs is not in the ledger."""
    published.statement["predicate"]["certificate"]["issuedAt"] = "2026-11-22T10:00:00Z"
    published.sign(published.statement)
    unseen(verify(published, logged=False))  # a signature alone cannot tell
    refused(
        verify(published), "certificate.tlog-proof: its entry is no certificate.issued that names what the certificate does"
    )


def test_without_its_proofs_a_certificate_is_not_believed_to_be_logged(published: Published) -> None:
    for name in ("certificate", "plan"):
        path = published.folder / f"UNLEARNING/{name}.tlog-proof"
        path.rename(path.with_suffix(".away"))
        report = verify(published)
        assert (report.status, report.reason) == (UNDECIDED, f"there is no UNLEARNING/{name}.tlog-proof")
        path.with_suffix(".away").rename(path)


def test_a_plan_that_came_after_the_run_is_refused(published: Published, field: Field) -> None:
    """Time travel: the thresholds were fixed when the result was known."""
    published.statement["predicate"]["run"]["startedAt"] = "2020-01-01T00:00:00Z"
    relog(published, field)
    refused(verify(published), "plan.tlog-proof: the plan is not the entry that the certificate names, or came after the run")


def relog(made: Published, field: Field) -> None:
    """Sign what the statement says now, and log that."""
    payload = made.sign(made.statement)
    begin = len(field.ledger.rows())
    field.ledger.append(*a_request("ureq_2", "ckpt_1", hashlib.sha256(payload).hexdigest()))
    field.ledger.sign()
    (made.folder / "UNLEARNING/certificate.tlog-proof").write_text(field.ledger.proof(begin + 4))


def test_a_proof_of_another_request_plan_or_ledger_is_refused(published: Published, field: Field) -> None:
    published.statement["predicate"]["certificate"]["supersedes"] = "ckpt_0"
    relog(published, field)
    refused(verify(published), "certificate.tlog-proof: its entry is of another ledger or of another request")
    plan = published.folder / "UNLEARNING/plan.tlog-proof"
    plan.write_text(field.ledger.proof(field.ledger.seq("plan.committed")))
    refused(verify(published), "plan.tlog-proof: its entry is of another ledger or of another request")
    plan.write_text(field.ledger.proof(field.ledger.seq("run.finished")))
    refused(verify(published), "plan.tlog-proof: its entry is no plan.committed")


def test_too_few_witnesses_of_a_proof_are_named(published: Published, field: Field) -> None:
    tree = field.ledger.tree()
    note = field.ledger.signers.note(tree.size, tree.root(), witnesses=1)
    seq = field.ledger.seq("plan.committed", -1)
    (published.folder / "UNLEARNING/plan.tlog-proof").write_text(field.ledger.proof(seq, note))
    refused(verify(published), "plan.tlog-proof: too few witnesses have seen this checkpoint: W0")


@pytest.mark.parametrize("ledger", [None, {}, [], "x", "origin", 7, {"origin": None}, {"origin": "log.example/ledger"}])
def test_a_ledger_that_is_none_is_an_answer_and_no_crash(published: Published, ledger: Any) -> None:
    published.statement["predicate"]["certificate"]["ledger"] = ledger
    published.sign(published.statement)
    report = verify(published)
    assert report.status in (TAMPERED, UNDECIDED)
    assert "ledger" in report.reason or "certificate" in report.reason
    words = ["certificate", str(published.folder), "--key", str(published.key_file), "--policy", str(published.policy)]
    assert main(words) == report.status


def paths(value: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Ways to what is in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inside if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in paths(one, depth - 1))


def test_no_value_of_a_signed_statement_crashes_the_verifier(published: Published) -> None:
    """Whoever signs may write anything; it is refused or cannot be decided, never a traceback."""
    tried = 0
    for way in list(paths(published.statement)):
        for value in (None, [], {}, "x", 7, [None]):
            statement = copy.deepcopy(published.statement)
            place = statement
            for key in way[:-1]:
                place = place[key]
            if place[way[-1]] == value:
                continue
            place[way[-1]] = value
            published.sign(statement)
            report = verify(published)
            assert report.status in (TAMPERED, UNDECIDED), (way, value, report)
            assert report.reason
            assert verify(published, logged=False).status in (GOOD, TAMPERED, UNDECIDED)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize("name", ["plan", "certificate"])
def test_a_proof_whose_entry_was_redacted_cannot_be_decided_and_says_so(published: Published, name: str) -> None:
    path = published.folder / f"UNLEARNING/{name}.tlog-proof"
    first, _extra, rest = path.read_text().split("\n", 2)
    path.write_text(f"{first}\n{rest}")
    report = verify(published)
    assert report.status == UNDECIDED
    assert report.reason.startswith(f"UNLEARNING/{name}.tlog-proof brings no ")
    assert "it was redacted" in report.reason


# ----------------------------------------------------------------------------------------------------- signer and worker


@pytest.mark.parametrize(
    "ledger",
    [
        None,
        {},
        {"requestIds": ["ureq_1"], "planSeq": 2},
        {"requestIds": ["ureq_1"], "origin": LEDGER["origin"]},
        {"requestIds": ["ureq_1"], "planSeq": 2, "origin": "log.example/of-another"},
        {"requestIds": ["ureq_9"], "planSeq": 2, "origin": LEDGER["origin"]},
    ],
)
def test_a_worker_gets_no_signature_for_what_can_never_be_found_in_the_ledger(ledger: Any) -> None:
    statement = a_statement()
    statement["predicate"]["certificate"]["ledger"] = ledger
    key = dsse.key_of(ec.generate_private_key(ec.SECP256R1()))
    signer = KeySigner(key, MemoryStore(), lambda: str(LEDGER["origin"]))
    assert signer.sign(a_publication())
    with pytest.raises(SigningRefused):
        signer.sign(a_publication(statement))


@pytest.mark.parametrize("part", ["certificate", "provenance", "model_signature"])
@pytest.mark.parametrize("attack", ["another key", "other files", "another payload", "another part's signature"])
def test_a_false_signer_is_not_believed(part: str, attack: str) -> None:
    """Whoever answers at the socket: nothing is published but what the operator's key confirms and the worker asked for."""
    key, wanted = ec.generate_private_key(ec.SECP256R1()), a_publication()
    honest = KeySigner(dsse.key_of(key), MemoryStore()).sign(wanted)
    assert differences(honest, wanted, key.public_key()) == []
    false = copy.deepcopy(getattr(honest, part))
    match attack:
        case "another key":
            stranger = KeySigner(dsse.key_of(ec.generate_private_key(ec.SECP256R1())), MemoryStore())
            false = getattr(stranger.sign(wanted), part)
        case "other files":
            files = {"w.safetensors": b"x"}
            false = getattr(KeySigner(dsse.key_of(key), MemoryStore(files)).sign(a_publication(a_statement(files))), part)
        case "another payload":
            payload = dsse.payload_of(false).replace(b"mdl_1", b"mdl_2")
            false["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        case _:
            others = {"certificate": "provenance", "provenance": "model_signature", "model_signature": "certificate"}
            false["dsseEnvelope"]["signatures"] = getattr(honest, others[part])["dsseEnvelope"]["signatures"]
    assert len(differences(dataclasses.replace(honest, **{part: false}), wanted, key.public_key())) == 1


# -------------------------------------------------------------------------------------------------- receipts and dossiers


def test_a_receipt_holds_for_its_entry_place_and_log_alone(field: Field) -> None:
    seq, file, text = 20, field.folder / "a.tlog-proof", field.folder / "leaf"
    proof = field.ledger.proof(seq)
    rows = field.ledger.rows()
    file.write_text(proof)
    unseen(verify_receipt(file, field.policy))
    text.write_bytes(rows[seq]["leaf"])
    unseen(verify_receipt(file, field.policy, text))
    text.write_bytes(rows[seq + 1]["leaf"])
    refused(verify_receipt(file, field.policy, text), "a.tlog-proof: the proof does not lead from this entry")
    lines = proof.split("\n")
    for wrong in (
        proof.replace("index 20", "index 21"),
        "\n".join(lines[:4] + lines[5:]),
        proof.replace("log.example", "dog.example"),
        proof.replace("w1.example", "w9.example"),
        proof.replace(lines[1], "extra " + base64.b64encode(rows[seq + 1]["leaf"]).decode()),
    ):
        file.write_text(wrong)
        refused(verify_receipt(file, field.policy), "a.tlog-proof: ")
    file.write_text(field.ledger.proof(seq, extra=False))
    assert verify_receipt(file, field.policy).status == UNDECIDED


def test_a_dossier_is_good_and_says_whether_the_request_has_ended(field: Field) -> None:
    report = verify_dossier(dossier(field.ledger, "ureq_09", field.folder / "d.zip"), field.policy)
    unseen(report)
    assert (report.facts["events"], report.facts["closed"], report.facts["redacted"]) == (6, True, [])
    report = verify_dossier(dossier(field.ledger, "ureq_07", field.folder / "d.zip"), field.policy)
    assert (report.valid, report.facts["redacted"]) == (True, [44])


def test_an_event_left_out_of_the_middle_of_a_dossier_is_named(field: Field) -> None:
    path = dossier(field.ledger, "ureq_09", field.folder / "d.zip", lambda rows: rows[:2] + rows[3:])
    refused(verify_dossier(path, field.policy), "entry 58: it does not follow the entry before it of ureq_09, as number 2")


def test_limit_events_left_out_of_the_end_of_a_dossier_leave_it_open(field: Field) -> None:
    path = dossier(field.ledger, "ureq_09", field.folder / "d.zip", lambda rows: rows[:-1])
    report = verify_dossier(path, field.policy)
    assert (report.valid, report.facts["closed"]) == (True, False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[::-1], "entry 60: it does not follow"),
        (lambda rows: [], "events.ndjson holds no entry"),
    ],
)
def test_events_out_of_order_and_none_at_all_are_refused(field: Field, change: Callable[[Any], Any], named: str) -> None:
    refused(verify_dossier(dossier(field.ledger, "ureq_09", field.folder / "d.zip", change), field.policy), named)


def rezip(path: Path, name: str, data: bytes | None, *, honest_sums: bool = True) -> None:
    with zipfile.ZipFile(path) as old:
        files = {one: old.read(one) for one in old.namelist()} | ({name: data} if data is not None else {})
    if data is None:
        files.pop(name)
    if honest_sums:
        listed = {one: hashlib.sha256(files[one]).hexdigest() for one in sorted(files) if one != "SHA256SUMS"}
        files["SHA256SUMS"] = "".join(f"{digest}  {one}\n" for one, digest in listed.items()).encode()
    with zipfile.ZipFile(path, "w") as new:
        for one, content in files.items():
            new.writestr(one, content)


def said_to_be_redacted(field: Field, action: str, by: int) -> Path:
    """By whoever hands a dossier on: an event of `ureq_09` is gone, and what only it names."""

    def change(rows: list[Any]) -> list[Any]:
        return [row | {"leaf": None, "redacted_by": by} if row["action"] == action else row for row in rows]

    return dossier(field.ledger, "ureq_09", field.folder / "d.zip", change)


@pytest.mark.parametrize("action", ["certificate.issued", "unlearning.request.received", "unlearning.request.closed"])
def test_an_event_that_is_only_said_to_be_redacted_is_not_good(field: Field, action: str) -> None:
    seq = next(row["seq"] for row in field.ledger.rows() if (row["request_id"], row["action"]) == ("ureq_09", action))
    for by in (1, 296):  # an entry of another kind, and one that did redact another entry
        report = verify_dossier(said_to_be_redacted(field, action, by), field.policy)
        refused(report, f"proofs/{by}.tlog-proof: entry {seq} has no text, and entry {by} does not say that it was redacted")
        rezip(field.folder / "d.zip", f"proofs/{by}.tlog-proof", None)
        report = verify_dossier(field.folder / "d.zip", field.policy)
        assert (report.status, report.reason) == (
            UNDECIDED,
            f"entry {seq} has no text, and proofs/{by}.tlog-proof with the entry that took it away is missing",
        )


def test_the_entry_that_took_a_text_away_is_proved_in_the_dossiers_tree(field: Field) -> None:
    path, name = dossier(field.ledger, "ureq_07", field.folder / "d.zip"), "proofs/296.tlog-proof"
    honest, alone = field.ledger.proof(296), field.ledger.proof(296, extra=False)
    said = field.ledger.rows()[297]["leaf"]
    forged = honest.replace(honest.split("\n")[1], "extra " + base64.b64encode(said).decode())
    field.ledger.append(*a_request("ureq_99"))
    later = field.ledger.proof(296, field.ledger.sign())
    for proof, named in (
        (forged, f"{name}: the proof does not lead from this entry"),
        (later, f"{name}: it is of another place, or of another tree"),
        (field.ledger.proof(297, field.ledger.stored[2].note), f"{name}: it is of another place"),
        ("x", f"{name}: expected a c2sp.org/tlog-proof@v1"),
    ):
        rezip(path, name, proof.encode())
        refused(verify_dossier(path, field.policy), named)
    rezip(path, name, alone.encode())
    report = verify_dossier(path, field.policy)
    assert (report.status, report.reason[:24]) == (UNDECIDED, "entry 44 has no text, an")
    rezip(path, name, honest.encode())
    unseen(verify_dossier(path, field.policy))


def test_a_changed_dossier_is_named(field: Field) -> None:
    def fresh() -> Path:
        return dossier(field.ledger, "ureq_09", field.folder / "d.zip")

    certificate = "certificates/ckpt_ureq_09.sigstore.json"
    other = json.dumps(bundle(b"{}", ec.generate_private_key(ec.SECP256R1()))).encode()
    rezip(fresh(), "proofs/57.tlog-proof", b"x", honest_sums=False)
    refused(verify_dossier(field.folder / "d.zip", field.policy), "proofs/57.tlog-proof was changed")
    for name, data, named in (
        ("proofs/57.tlog-proof", field.ledger.proof(58).encode(), "entry 57: the proof does not lead"),
        ("proofs/57.tlog-proof", None, "entry 57 is not readable"),
        ("proofs/99.tlog-proof", b"x", "proofs/99.tlog-proof"),
        ("manifest.json", b'{"request_id":"ureq_10","size":306,"origin":"log.example/2026"}', "entry 55: its request_id"),
        ("manifest.json", b'{"request_id":"ureq_09","size":305,"origin":"log.example/2026"}', "entry 55: its proof is of"),
        (certificate, None, f"{certificate} is missing"),
        (certificate, other, f"{certificate} was changed"),
        ("certificates/ckpt_9.sigstore.json", other, "certificates/ckpt_9.sigstore.json is not named by the entries"),
    ):  # fmt: skip
        rezip(fresh(), name, data)
        refused(verify_dossier(field.folder / "d.zip", field.policy), named)
    (field.folder / "d.zip").write_bytes(b"no zip")
    refused(verify_dossier(field.folder / "d.zip", field.policy), "d.zip is no zip file")
