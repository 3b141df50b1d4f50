"""Is this folder exactly what the certificate names, did this key sign it, and was it logged as it says?

The folder holds the published files, `model.sig`, and in `UNLEARNING/` the certificate and what else is listed here. Anything
more is a stranger, and a stranger is a refusal: a loader might run it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from service.verifier import claim
from service.verifier.note import Policy, carried
from service.verifier.proofs import instant, proved, trusted
from service.verifier.reading import (
    Tampered,
    Undecided,
    about,
    envelope,
    public_key,
    read,
    reported,
    require_same,
    sha256,
    signed,
    statement_of,
    walk,
)

EVIDENCE_FOLDER, MODEL_SIGNATURE = "UNLEARNING", "model.sig"
CERTIFICATE, OLD_CERTIFICATE = f"{EVIDENCE_FOLDER}/certificate.sigstore.json", f"{EVIDENCE_FOLDER}/certificate.dsse.json"
PROVENANCE, BILL = f"{EVIDENCE_FOLDER}/provenance.sigstore.json", f"{EVIDENCE_FOLDER}/mlbom.cdx.json"
ISSUED, PLANNED = f"{EVIDENCE_FOLDER}/certificate.tlog-proof", f"{EVIDENCE_FOLDER}/plan.tlog-proof"
UNCHECKED = (f"{EVIDENCE_FOLDER}/policy.txt", f"{EVIDENCE_FOLDER}/certificate.tsr")
"""For convenience: whose word counts is not for the folder to say, and time stamps are for `openssl ts -verify`."""
PREDICATE_TYPE = "urn:expunge:attestation:unlearning:v1"
OMS_TYPE, SLSA_TYPE, BOM_TYPE = (
    "https://model_signing/signature/v1.0",
    "https://slsa.dev/provenance/v1",
    "https://cyclonedx.org/bom",
)


@reported
def verify_directory(directory: Path, key_file: Path, policy_file: Path | None = None) -> tuple[Any, ...]:
    """Check a downloaded checkpoint.

    Args:
        key_file: the signer's public key, PEM; got from the operator by another way than the download.
        policy_file: whose ledger is believed, got likewise; without it what the ledger says is left alone.
    """
    key, policy, present = public_key(key_file), policy_file and trusted(policy_file), walk(directory)
    data = read(present.pop(CERTIFICATE, None) or present.pop(OLD_CERTIFICATE, None), CERTIFICATE)
    with about("the certificate"):
        payload, said = signed(data, key, PREDICATE_TYPE)
        if short := claim.shortcomings(said["predicate"]):
            raise Tampered(f"its own findings do not pass the gate: {'; '.join(short)}")
        facts = _facts(said["predicate"]) | {"files": len(_files(said)), "as_of": None}
    if policy:
        facts["as_of"] = _logged(said["predicate"], hashlib.sha256(payload).hexdigest(), present, policy)
    _check_evidence(said, key, present)
    require_files(said, present)
    return "every file is the one that was certified", facts, said


def read_statement(directory: Path) -> dict[str, Any] | None:
    """What the certificate beside a checkpoint says, whoever wrote it: no signature is looked at. None: there is none.

    Raises: Tampered: it is no unlearning certificate, or not of these files. OSError.
    """
    present = walk(directory)
    if (path := present.pop(CERTIFICATE, None) or present.pop(OLD_CERTIFICATE, None)) is None:
        return None
    with about("the certificate"):
        said = statement_of(envelope(read(path, CERTIFICATE))[0], PREDICATE_TYPE)
    for name in (MODEL_SIGNATURE, PROVENANCE, BILL, ISSUED, PLANNED, *UNCHECKED):
        present.pop(name, None)
    require_files(said, present)
    return said


def _files(said: Mapping[str, Any]) -> dict[str, str]:
    """The published files by path. Where it names a ledger, its first subject is the model, by the root over all of them."""
    subjects = [(one["name"], one["digest"]["sha256"]) for one in said["subject"]]
    files = dict(named := subjects[1:] if "ledger" in said["predicate"]["certificate"] else subjects)
    if len(files) != len(named) or not files or any(_unfit(name) for name in files):
        raise Tampered("it names no file, one of them twice, or one that cannot be published")
    root = hashlib.sha256(b"".join(bytes.fromhex(files[name]) for name in sorted(files))).hexdigest()
    if named != subjects and subjects[0] != (said["predicate"]["model"]["id"], root):
        raise Tampered("its first subject is not the model with the root over all its files")
    return files


def _unfit(name: str) -> bool:
    parts = name.split("/")
    return "\\" in name or bool({"", ".", ".."} & set(parts)) or parts[0] in (EVIDENCE_FOLDER, MODEL_SIGNATURE)


def require_files(said: Mapping[str, Any], present: Mapping[str, Path]) -> None:
    """A folder's files are those that a certificate names; what lies beside them has been looked at. Raises: Tampered."""
    with about("the certificate"):
        named = _files(said)
    require_same(named, {name: sha256(path) for name, path in present.items()}, "the certificate")


def _check_evidence(said: Mapping[str, Any], key: ec.EllipticCurvePublicKey, present: dict[str, Path]) -> None:
    """Takes what lies beside the files out of `present`, each held against the certificate."""
    if path := present.pop(MODEL_SIGNATURE, None):
        data = read(path, MODEL_SIGNATURE)
        with about(MODEL_SIGNATURE):
            _, manifest = signed(data, key, OMS_TYPE)
            listed = [(one["name"], one["digest"]) for one in manifest["predicate"]["resources"]]
            if manifest["subject"][0]["digest"] != said["subject"][0]["digest"] or listed != sorted(_files(said).items()):
                raise Tampered("it is of other files, or of another root, than the certificate")
    with about("the certificate"):
        named = {one["type"]: one["digest"]["sha256"] for one in said["predicate"].get("attestations", ())}
    for kind, name in ((SLSA_TYPE, PROVENANCE), (BOM_TYPE, BILL)):
        if kind in named or name in present:
            data = read(present.pop(name, None), name)
            with about(name):
                if kind == SLSA_TYPE:
                    data, provenance = signed(data, key, kind)
                    if provenance["subject"] != said["subject"]:
                        raise Tampered("it is of other files than the certificate")
                if named.get(kind) != hashlib.sha256(data).hexdigest():
                    raise Tampered("the certificate names another one, or none")
    for name in (ISSUED, PLANNED, *UNCHECKED):
        present.pop(name, None)


def _logged(predicate: Mapping[str, Any], payload_sha256: str, present: Mapping[str, Path], policy: Policy) -> str:
    """Plan before run, certificate after, both in the ledger that the certificate names. Returns up to when that is known."""
    with about("the certificate"):
        ledger = predicate["certificate"].get("ledger")
        if not ledger or ledger.get("origin") is None:
            raise Undecided("the certificate names no ledger: it is of a release that signed none")
        plan, run = predicate["plan"], predicate["run"]
        started = datetime.fromisoformat(run.get("startedAt") or run["startedOn"])
        issued = {"payloadSha256": payload_sha256, "checkpointId": predicate["certificate"]["id"]}
        origin, requests, plan_seq = ledger["origin"], list(ledger["requestIds"]), ledger["planSeq"]
        planned = {"specSha256": plan["specSha256"], "policySha256": plan["policySha256"]}
    seqs, as_of = list[int](), ""
    for name, action, facts in ((PLANNED, "plan.committed", planned), (ISSUED, "certificate.issued", issued)):
        proof = read(present.get(name), name)
        with about(name):
            if carried(proof.decode()) is None:
                why = "it was redacted, or taken out of the proof, and without its text nobody can tell what it said"
                raise Undecided(f"{name} brings no {action} along: {why}")
            seq, body, tree = proved(proof, policy)
            if body["type"] != action or any(body["public"].get(field) != fact for field, fact in facts.items()):
                raise Tampered(f"its entry is no {action} that names what the certificate does")
            if tree.origin != origin or body["request"]["id"] not in requests:
                raise Tampered("its entry is of another ledger or of another request than the certificate")
            if action == "plan.committed" and (seq != plan_seq or datetime.fromisoformat(body["at"]) > started):
                raise Tampered("the plan is not the entry that the certificate names, or came after the run had begun")
            seqs, as_of = [*seqs, seq], instant(tree.seen_at) or body["at"]
    if seqs[0] >= seqs[1]:
        raise Tampered(f"{PLANNED}: the plan came after the certificate")
    return as_of


def _facts(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate's main claims, for people."""
    model, forgotten, said = predicate["model"], predicate["forgetSet"], predicate["claim"]
    gone = sorted([*forgotten["classes"], *forgotten["forgottenEarlier"]])
    attempts = predicate.get("attempts", {})
    return {
        "checkpoint_id": predicate["certificate"]["id"],
        "issued_at": predicate["certificate"]["issuedAt"],
        "model_id": model["id"],
        "checkpoint_digest": model["digest"],
        "forgotten_classes": gone,
        "forgotten_class_names": [model["classNames"][k] for k in gone],
        "forgotten_samples": sum(forgotten[k]["count"] for k in ("samples", "samplesForgottenEarlier") if k in forgotten),
        "retain_data": _retain_data(predicate.get("retainData"), model["classNames"]),
        "method": predicate["algorithm"]["name"],
        "requested_method": attempts.get("requested"),
        "attempt": attempts.get("number"),
        "attempts": attempts.get("of"),
        "tier": said.get("tier"),
        "guarantee": said["guarantee"],
        "statement": said["statement"],
        "limits": predicate["limits"],
    }


def _retain_data(data: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, Any] | None:
    """What training could look at to keep the rest; None: the certificate does not say."""
    if data is None:
        return None
    dataset = data.get("proxyDataset") or {"id": None, "digest": None}
    return {
        "real": data["real"],
        "proxy_classes": data["proxyClasses"],
        "proxy_class_names": [names[k] for k in data["proxyClasses"]],
        "proxy_dataset_id": dataset["id"],
        "proxy_dataset_digest": dataset["digest"],
    }
