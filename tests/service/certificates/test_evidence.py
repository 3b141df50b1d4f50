"""What lies beside a published model, in the eyes of tools that are not ours."""

from __future__ import annotations

import base64
import copy
import json
import pathlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from model_signing import verifying
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from sigstore_models.bundle.v1 import Bundle

from service.certificates import commitment, dsse, mlbom, oms, provenance
from service.verifier.merkle import Frontier

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "unet/a b.json": b"[]"}


def private_pem(key: Any) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@pytest.fixture
def key(tmp_path: Path) -> dsse.Key:
    made = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(private_pem(made))
    (tmp_path / "key.pub").write_bytes(dsse.pem(made.public_key()))
    return dsse.open_key(f"file2:{tmp_path}/key.pem", dsse.pem(made.public_key()))


@pytest.fixture
def digests(tmp_path: Path) -> dict[str, str]:
    import hashlib

    for name, data in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


def signed(folder: Path, digests: dict[str, str], key: dsse.Key) -> None:
    public = (folder / "key.pub").read_bytes()
    payload = json.dumps(oms.statement("mdl_1", digests)).encode()
    (folder / "model" / oms.NAME).write_text(json.dumps(dsse.seal_bytes(payload, key, hint=oms.hint(public))))


def stock(folder: Path, key: str = "key.pub") -> None:
    config = verifying.Config().use_elliptic_key_verifier(public_key=folder / key)
    config.verify(pathlib.Path(folder / "model"), pathlib.Path(folder / "model" / oms.NAME))


def test_the_stock_tool_takes_our_model_signature(tmp_path: Path, digests: dict[str, str], key: dsse.Key) -> None:
    signed(tmp_path, digests, key)
    stock(tmp_path)
    (tmp_path / "model" / "UNLEARNING").mkdir()
    (tmp_path / "model" / "UNLEARNING" / "late.tlog-proof").write_text("evidence may grow")
    stock(tmp_path)


@pytest.mark.parametrize("change", ["byte", "extra", "missing", "renamed", "key", "payload"])
def test_the_stock_tool_refuses_what_was_changed(tmp_path: Path, digests: dict[str, str], key: dsse.Key, change: str) -> None:
    signed(tmp_path, digests, key)
    model = tmp_path / "model"
    match change:
        case "byte":
            (model / "model.safetensors").write_bytes(b"weighty")
        case "extra":
            (model / "run.py").write_text("")
        case "missing":
            (model / "config.json").unlink()
        case "renamed":
            (model / "config.json").rename(model / "konfig.json")
        case "key":
            other = ec.generate_private_key(ec.SECP256R1())
            (tmp_path / "key.pub").write_bytes(dsse.pem(other.public_key()))
        case "payload":
            bundle = json.loads((model / oms.NAME).read_text())
            text = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"mdl_1", b"mdl_2")
            bundle["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()
            (model / oms.NAME).write_text(json.dumps(bundle))
    with pytest.raises(Exception):  # noqa: B017 — the tool's own, of several kinds
        stock(tmp_path)


def test_a_bundle_is_one_to_sigstore_in_toto_and_openssl(tmp_path: Path, key: dsse.Key) -> None:
    subject = [{"name": "a", "digest": {"sha256": "0" * 64}}]
    said = {"_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": "urn:x", "predicate": {"n": 1}}
    bundle = dsse.seal(said, key)
    assert json.loads(dsse.payload_of(bundle)) == said
    Bundle.from_dict(copy.deepcopy(bundle))
    Statement.copy_from_pb(json_format.ParseDict(said, statement_pb2.Statement())).validate()
    public = serialization.load_pem_public_key((tmp_path / "key.pub").read_bytes())
    stranger = SSlibKey.from_crypto(public, keyid=bundle["verificationMaterial"]["publicKey"]["hint"])  # type: ignore[arg-type]
    Envelope.from_dict(copy.deepcopy(bundle["dsseEnvelope"])).verify([stranger], 1)
    payload = dsse.payload_of(bundle)
    (tmp_path / "pae").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "sig", "pae"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Verified OK" in done.stdout


def test_only_a_p256_key_that_is_its_public_half_signs(tmp_path: Path) -> None:
    one, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "one.pem").write_bytes(private_pem(one))
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    wrong = [(f"file2:{tmp_path}/one.pem", dsse.pem(k)) for k in (other.public_key(), edwards, curve)]  # type: ignore[arg-type]
    right = dsse.pem(one.public_key())
    for uri, public in [*wrong, ("file2:/nowhere", right), ("nokms:x", right), ("awskms:x", b"junk")]:
        with pytest.raises(dsse.WrongKey):
            dsse.seal({"a": 1}, dsse.open_key(uri, public))


PREDICATE: dict[str, Any] = {
    "certificate": {"id": "ckpt_1", "issuedAt": "2026-11-21T10:00:00.000000Z", "issuer": {"id": "acme"}},
    "request": {"id": "ureq_1", "fence": 2},
    "model": {"id": "mdl_1", "version": 2, "family": "ddpm", "digest": "1" * 64},
    "parent": {"version_id": "mver_1", "digest": "2" * 64},
    "dataset": {"id": "dset_1", "digest": "3" * 64},
    "forgetSet": {"unit": "class", "classes": [3]},
    "algorithm": {"name": "sfron", "parameters": {"alpha": "0.5"}, "seed": 1, "iterations": 50, "ranks": 1},
    "plan": {"specSha256": "4" * 64, "policySha256": "5" * 64},
    "environment": {"torch": "2.13.0"},
    "run": {"startedAt": "2026-11-21T09:00:00Z", "finishedAt": "2026-11-21T09:30:00Z"},
    "verification": {"reportSha256": "6" * 64},
    "limits": ["Copies of earlier versions are outside."],
}
NAMES = {"mdl_1": "a", "config.json": "b", "w.safetensors": "c"}
SUBJECTS = [{"name": name, "digest": {"sha256": digit * 64}} for name, digit in NAMES.items()]


@pytest.mark.parametrize("version", [SchemaVersion.V1_6, SchemaVersion.V1_7])
@pytest.mark.parametrize("kind", list(mlbom.TASKS))
def test_the_bill_of_materials_is_valid(version: SchemaVersion, kind: str) -> None:
    made = mlbom.document(SUBJECTS, PREDICATE, kind=kind)
    made["specVersion"] = version.to_version()
    made.pop("$schema")
    assert JsonStrictValidator(version).validate_str(json.dumps(made)) is None
    assert JsonStrictValidator(version).validate_str(json.dumps({**made, "serialNumber": "x"})) is not None
    assert made["metadata"]["component"]["modelCard"]["considerations"]["technicalLimitations"] == PREDICATE["limits"]


def test_provenance_says_which_inputs_and_which_run() -> None:
    made = provenance.statement(SUBJECTS, PREDICATE)
    Statement.copy_from_pb(json_format.ParseDict(made, statement_pb2.Statement())).validate()
    assert made["subject"] == SUBJECTS
    definition, details = made["predicate"]["buildDefinition"], made["predicate"]["runDetails"]
    assert [d["digest"][provenance.TREE] for d in definition["resolvedDependencies"]] == ["2" * 64, "3" * 64]
    assert details["metadata"] == {
        "invocationId": "ureq_1/2",
        "startedOn": "2026-11-21T09:00:00Z",
        "finishedOn": "2026-11-21T09:30:00Z",
    }


def test_a_dataset_that_stood_in_for_retained_images_is_among_what_the_model_was_made_of() -> None:
    chosen = {"real": "0", "classes": [], "proxyClasses": [], "proxyDataset": {"id": "dset_2", "digest": "7" * 64}}
    predicate = {**PREDICATE, "retainData": chosen}
    definition = provenance.statement(SUBJECTS, predicate)["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"][2:] == [
        {"uri": "urn:expunge:dataset:dset_2", "digest": {provenance.TREE: "7" * 64}}
    ]
    assert definition["externalParameters"]["retainData"] == chosen
    assert "retainData" not in provenance.statement(SUBJECTS, PREDICATE)["predicate"]["buildDefinition"]["externalParameters"]
    bill = mlbom.document(SUBJECTS, predicate, kind="i2i")
    named = bill["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"]
    assert [one["name"] for one in named] == ["dset_1", "dset_2"]
    assert "proxy" in named[1]["classification"]
    bill.pop("$schema")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None


# ------------------------------------------------------------------------------------------------------- the forget set

ITEMS = [f"train/cat/{n}.png" for n in range(500)]


KEY, OTHER = b"k" * 32, b"j" * 32
LEAVES = commitment.leaves(KEY, ITEMS)


def test_a_person_proves_membership_and_reveals_nobody_else() -> None:
    made = commitment.commit(LEAVES)
    opened = commitment.opening([OTHER, KEY], LEAVES, ITEMS[123])
    assert opened["commitment"] == made.as_json() == {"alg": commitment.ALGORITHM, "root": made.root, "count": 500}
    assert len(opened["path"]) in (8, 9)
    assert commitment.holds(opened)
    assert not any(name in json.dumps(opened) for name in ITEMS if name != ITEMS[123])
    with pytest.raises(KeyError):
        commitment.opening([KEY], LEAVES, "train/cat/500.png")


@settings(max_examples=40)
@given(st.sampled_from(["item", "salt", "index", "path", "root", "count"]), st.integers(0, 498))
def test_no_changed_opening_holds(part: str, index: int) -> None:
    opened = commitment.opening([KEY], LEAVES, ITEMS[index])
    match part:
        case "item":
            opened["item"] = ITEMS[index + 1]
        case "salt":
            opened["salt"] = commitment.salt(OTHER, ITEMS[index]).hex()
        case "index":
            opened["index"] = (opened["index"] + 1) % 500
        case "path":
            opened["path"] = opened["path"][::-1]
        case _:
            opened["commitment"] = commitment.commit(commitment.leaves(OTHER, ITEMS[:499])).as_json()
    assert not commitment.holds(opened)


def test_the_same_set_under_another_key_is_another_commitment() -> None:
    assert commitment.leaves(KEY, ITEMS[::-1]) == LEAVES
    assert commitment.commit(LEAVES).root != commitment.commit(commitment.leaves(OTHER, ITEMS)).root
    assert commitment.commit([]).count == 0
    assert commitment.unpacked(commitment.packed(LEAVES)) == LEAVES


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 13])
def test_the_tree_is_that_of_rfc_6962_at_every_size(count: int) -> None:
    tree, leaves = Frontier(), commitment.leaves(KEY, ITEMS[:count])
    for one in leaves:
        tree.append(one)
    assert commitment.commit(leaves).root == tree.root().hex()
    assert all(commitment.holds(commitment.opening([KEY], leaves, item)) for item in ITEMS[:count])


def test_a_key_that_is_gone_closes_its_own_items_alone() -> None:
    """A later tree has the earlier leaves as they were: nobody needs the earlier key for it."""
    later = commitment.leaves(OTHER, ["new"], LEAVES)
    assert commitment.commit(later).count == 501
    assert commitment.holds(commitment.opening([OTHER], later, "new"))
    assert commitment.holds(commitment.opening([OTHER, KEY], later, ITEMS[7]))
    with pytest.raises(KeyError):
        commitment.opening([OTHER], later, ITEMS[7])
