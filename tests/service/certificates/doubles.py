"""A statement, a store in memory and a published folder, for tests that sign."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from service.certificates import dsse, publication, signing, statement
from service.certificates.publication import Publication

FILES = {"unet/weights.safetensors": b"weights" * 1000, "unet/config.json": b"{}", "README.md": b"a model"}


LEDGER = {"origin": "log.example/l", "planSeq": 2}


class MemoryStore:
    """Bytes by digest."""

    def __init__(self, files: dict[str, bytes] = FILES) -> None:
        self.blobs = {hashlib.sha256(data).hexdigest(): data for data in files.values()}

    def open(self, digest: str) -> io.BytesIO:
        return io.BytesIO(self.blobs[digest])


CHECKS = [{"verifier": name, "params": {}} for name in ("integrity", "forget_rate", "sample_membership")]
POLICY: dict[str, Any] = {"name": "test", "checks": CHECKS}
"""It serves classes and samples."""


def policy_sha256(policy: Mapping[str, Any]) -> str:
    """A policy's digest as the worker commits to it; see `worker.contract.document_digest`."""
    return hashlib.sha256(json.dumps(policy, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def finding(**changes: Any) -> dict[str, Any]:
    base = {"check": "forget_rate", "metric": "unlearning_accuracy", "subject": "candidate", "gating": True, "control": False}
    numbers = {"value": 1.0, "lower95": 0.985, "upper95": None, "comparator": "ge", "threshold": 0.95}
    return {**base, "passed": True, **numbers, "class_index": 3, **changes}


def control(**changes: Any) -> dict[str, Any]:
    original = {"subject": "original", "gating": False, "control": True, "passed": False, "value": 0.01, "lower95": 0.001}
    return finding(**original | changes)


def on_samples(**changes: Any) -> dict[str, Any]:
    numbers = {"value": 0.5, "lower95": 0.47, "upper95": 0.53, "comparator": "le", "threshold": 0.55, "class_index": None}
    return finding(**{"check": "sample_membership", "metric": "membership_auc", **numbers} | changes)


def controls_on_samples() -> list[dict[str, Any]]:
    """Both of them: the one held to the threshold, and the one that must be beyond chance by its lower bound."""
    common = {"subject": "original", "gating": False, "control": True, "passed": False, "value": 0.9, "lower95": 0.85}
    return [on_samples(**common, upper95=0.95), on_samples(**common, upper95=None, threshold=0.5)]


def sound_findings(classes: Iterable[int], samples: bool) -> list[dict[str, Any]]:
    """What a run leaves behind that measured everything and passed."""
    integrity = finding(check="integrity", value=0.0, lower95=None, comparator="eq", threshold=0.0, class_index=None)
    of_classes = [f(class_index=k) for k in classes for f in (finding, control)]
    return [integrity, *of_classes, *([on_samples(), *controls_on_samples()] if samples else [])]


def a_statement(
    files: dict[str, bytes] = FILES,
    findings: list[dict[str, Any]] | None = None,
    proxy: dict[str, Any] | None = None,
    guarantee: str = "empirical",
    earlier: Sequence[dict[str, Any]] = (),
    requested: str | None = None,
    ran: Mapping[str, Any] | None = None,
    rejected_before: int = 0,
    kind: str | None = None,
    **wish: Any,
) -> dict[str, Any]:
    """A sound statement; `wish` replaces fields of its spec, which forgets class 3, and `ran` of its manifest."""
    wish = {"forget_classes": [3], "forget_samples": [], "forgotten_classes": [], "forgotten_samples": [], **wish}
    if findings is None:
        findings = sound_findings(
            [*wish["forget_classes"], *wish["forgotten_classes"]], any([wish["forget_samples"], wish["forgotten_samples"]])
        )
    policy = wish.pop("policy", POLICY)
    return statement.build(
        checkpoint_id="ckpt_1",
        issued_at="2026-11-21T10:00:00Z",
        issuer="expunge",
        request={"id": "ureq_1", "fence": 1},
        model={"id": "mdl_1", "version": 2, "digest": "ab" * 32},
        parent={"version_id": "mver_1", "digest": "cd" * 32},
        original={"version_id": "mver_1", "digest": "cd" * 32},
        dataset={"id": "ds_1", "digest": "ef" * 32},
        spec={
            "family": "ddpm",
            "class_names": [str(k) for k in range(10)],
            "method": "sfron",
            "seed": 0,
            "ranks": 1,
            "policy": policy,
            "verification_seed": 7,
            **wish,
        },
        spec_sha256="11" * 32,
        manifest={
            "effective_params": {"learning_rate": 0.0005},
            "iterations_completed": 50,
            "environment": {"torch": "2.13.0"},
            "seconds_prepare": 1.5,
            "seconds_unlearn": 7.25,
            "peak_memory_mb": 300.0,
            "files": [{"path": p, "size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for p, d in sorted(files.items())],
            **(ran or {}),
        },
        report={
            "verdict": "PASS",
            "policy_digest": policy_sha256(policy),
            "judges": [],
            "findings": findings,
            "environment": {"torch": "2.13.0"},
        },
        report_sha256="33" * 32,
        proxy=proxy,
        guarantee=guarantee,
        earlier=earlier,
        requested=requested,
        rejected_before=rejected_before,
        kind=kind,
        ledger=LEDGER,
    )


def held_to(said: dict[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """The same statement under this policy, digest and all, as if it had been committed to."""
    said["predicate"]["plan"].update(policy=statement.decimals(policy), policySha256=policy_sha256(policy))
    return said


PROXY = {"id": "dset_2", "digest": "77" * 32}


def retain_data(**changes: Any) -> dict[str, Any]:
    """A spec's retain data: none of it real, classes 8 and 9 and another dataset in its place."""
    proxy = {"proxy_classes": [9, 8], "proxy_dataset": {"format": "npz"}, "proxy_class_names": ["a", "b"]}
    return {"real": 0.0, "classes": [], **proxy, **changes}


def a_publication(statement: dict[str, Any] | None = None, kind: str = "generator") -> Publication:
    """What a signer is asked to sign."""
    return publication.assemble(statement or a_statement(), kind=kind)


def a_signer(key: ec.EllipticCurvePrivateKey, store: signing.Opens | None = None) -> signing.KeySigner:
    """A signer in this process."""
    return signing.KeySigner(dsse.key_of(key), store or MemoryStore())


def is_signed_by(bundle: dict[str, Any], public_key: ec.EllipticCurvePublicKey) -> bool:
    """True when the bundle's one signature is this key's."""
    (signature,) = bundle["dsseEnvelope"]["signatures"]
    payload = dsse.payload_of(bundle)
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    try:
        public_key.verify(base64.b64decode(signature["sig"]), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
