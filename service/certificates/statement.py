"""The certificate's words: an in-toto Statement v1 about one published checkpoint. Pure: values in, values out.

Numbers that are not integers are written as decimal strings, so that every JSON tool reads the same value. An absent field
makes no claim. Source: in-toto Attestation Framework v1 (Statement layer); the predicate is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from service.certificates.limits import GUARANTEES, known_limits
from service.certificates.publication import subjects_of
from service.values import decimal_string
from service.verifier import claim

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:expunge:attestation:unlearning:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def decimals(value: Any) -> Any:
    """JSON values with every float as a decimal string: 0.05 -> "0.05".

    Raises:
        ValueError: NaN or infinity.
    """
    match value:
        case bool() | None | str() | int():
            return value
        case float():
            return decimal_string(value)
        case Mapping():
            return {str(k): decimals(v) for k, v in value.items()}
        case list() | tuple():
            return [decimals(v) for v in value]
        case _:
            raise TypeError(f"expected a JSON value, got {type(value).__name__}")


def build(
    *,
    checkpoint_id: str,
    issued_at: str,
    issuer: str,
    request: Mapping[str, Any],
    model: Mapping[str, Any],
    parent: Mapping[str, Any],
    original: Mapping[str, Any],
    dataset: Mapping[str, Any],
    spec: Mapping[str, Any],
    spec_sha256: str,
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    report_sha256: str,
    guarantee: str = "empirical",
    proof: Mapping[str, Any] | None = None,
    proxy: Mapping[str, Any] | None = None,
    requested: str | None = None,
    earlier: Sequence[Mapping[str, Any]] = (),
    rejected_before: int = 0,
    kind: str | None = None,
    ledger: Mapping[str, Any] | None = None,
    commitment: Mapping[str, Any] | None = None,
    times: Mapping[str, str] | None = None,
    approval: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The statement to be signed, but for the digests of what lies beside it: see `publication.assemble`.

    Args:
        issued_at: RFC 3339 UTC.
        request: {"id", "fence"}; nothing that identifies a person.
        model: {"id", "version", "digest"} of the new version; digest is the tree digest of the published files. Of a family
            that is asked by prompts, "promptsSha256" too: see `prompts_digest`.
        parent: {"version_id", "digest", "checkpoint", "certificate", "disposition", "revokedAncestors"}: the version that this
            one replaces; its checkpoint and its certificate, null of a registered one; what became of it, as far as told; and
            checkpoints further up the lineage whose certificates were revoked. All as it was at `issued_at` or later.
        original: {"version_id", "digest"}: the lineage's root, the control of the gate.
        dataset: {"id", "digest"}.
        spec: the run's Spec as JSON; `spec_sha256` its digest as the ledger's plan.committed entry has it.
        manifest: the engine's Manifest as JSON.
        report: the engine's Report as JSON.
        guarantee: one of GUARANTEES, of the method that gave this result, whatever was asked for.
        proof: the values and assumptions of an epsilon-delta guarantee: {"epsilon", "delta", "theorem", "assumptions"}.
        proxy: {"id", "digest"} of the dataset that stood in for retained images.
        requested: the method that was asked for, where it is not the one that ran: `auto`.
        earlier: results that were verified before this one, or that their recipes did not give, as `leases.earlier` has them.
        rejected_before: other requests to forget the same of the same parent that were rejected before this result passed.
        kind: of the model's family, for a policy that names none.
        ledger: {"origin", "planSeq"}: which log has the entries, and where the plan stands in it.
        commitment: to the items that were forgotten: `commitment.Commitment.as_json`.
        times: {"startedAt", "finishedAt"} of the run, RFC 3339 UTC.
        approval: who looked at the request before it ran, as `approvals.certified` has it; None: nobody but who made it.

    Returns:
        A JSON object without floats, ready for RFC 8785.

    Raises:
        ValueError: the guarantee is not ours.
    """
    if guarantee not in GUARANTEES:
        raise ValueError(f"expected one of {', '.join(GUARANTEES)} as guarantee, got {guarantee!r}")
    approval = approval or {"policy": "solo"}
    predicate = {
        "certificate": {
            "id": checkpoint_id,
            "issuedAt": issued_at,
            "issuer": {"id": issuer},
            "supersedes": parent.get("checkpoint"),
            "ledger": {"requestIds": [request["id"]], **(ledger or {})},
        },
        "claim": _claim(guarantee, proof, report.get("tier")),
        "request": dict(request),
        "approval": dict(approval),
        "model": {**model, "family": spec["family"], "classNames": list(spec["class_names"])},
        "parent": dict(parent),
        "original": dict(original),
        "forgetSet": _forget_set(spec) | ({"commitment": dict(commitment)} if commitment else {}),
        "dataset": dict(dataset),
        **_retain_data(spec, proxy),
        "algorithm": _algorithm(spec, manifest),
        "attempts": _attempts(spec, requested, earlier, rejected_before),
        "run": {**_run(manifest), **(times or {})},
        "plan": {"specSha256": spec_sha256, "policy": spec["policy"], "policySha256": report["policy_digest"]},
        "environment": manifest["environment"],
        "verification": _verification(spec, report, report_sha256),
        "limits": _limits(spec, report, guarantee, kind, rejected_before, parent, approval),
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects_of(model["id"], [(f["path"], f["sha256"]) for f in manifest["files"]]),
        "predicateType": PREDICATE_TYPE,
        "predicate": decimals(predicate),
    }


def _claim(guarantee: str, proof: Mapping[str, Any] | None, tier: str | None) -> dict[str, Any]:
    """What is claimed. A policy that names no kind of model reaches no tier, and the claim then names none."""
    said: dict[str, Any] = {"guarantee": guarantee, "statement": GUARANTEES[guarantee], "reversible": False}
    if tier is not None:
        said["tier"] = tier
    if proof is not None:
        said["proof"] = dict(proof)
    return said


def _algorithm(spec: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": spec["method"],
        "parameters": manifest["effective_params"],
        "seed": spec["seed"],
        "iterations": manifest["iterations_completed"],
        "ranks": spec["ranks"],
    }


def _run(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What it took; and, where a first look ended the run before its last iteration, after how many."""
    said: dict[str, Any] = {
        "secondsPrepare": manifest["seconds_prepare"],
        "secondsUnlearn": manifest["seconds_unlearn"],
        "peakMemoryMb": manifest["peak_memory_mb"],
    }
    early = manifest.get("stopped_early_at")
    return said if early is None else said | {"stoppedEarlyAt": early, "iterationsPlanned": manifest["iterations_total"]}


def _verification(spec: Mapping[str, Any], report: Mapping[str, Any], report_sha256: str) -> dict[str, Any]:
    return {
        "verdict": report["verdict"],
        "reportSha256": report_sha256,
        "seed": spec["verification_seed"],
        "judges": report["judges"],
        "findings": report["findings"],
        "environment": report["environment"],
    }


def _attempts(
    spec: Mapping[str, Any], requested: str | None, earlier: Sequence[Mapping[str, Any]], rejected_before: int
) -> dict[str, Any]:
    return {
        "requested": requested or spec["method"],
        "number": spec.get("attempt", 1),
        "of": spec["policy"].get("attempts", 1),
        "earlier": [_attempt(one) for one in earlier],
        "rejectedRequests": rejected_before,
    }


def _attempt(detail: Mapping[str, Any]) -> dict[str, Any]:
    """One that came before: which recipe and seeds, and the verdict on its result or why it gave none."""
    said: dict[str, Any] = {
        "number": detail["rung"],
        "fence": detail["fence"],
        "method": detail["method"],
        "parameters": detail["params"],
        "seed": detail["seed"],
        "specSha256": detail["spec_sha256"],
        "outcome": detail["verdict"] or detail["code"],
    }
    seen = {"verificationSeed": "verification_seed", "reportSha256": "report_sha256", "findingsSha256": "findings_sha256"}
    return said | {field: detail[key] for field, key in seen.items() if key in detail}


def _forget_set(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What was forgotten: classes by index; samples by their number, for their ids may be personal data.

    Which ones they are only the salted commitment says: a digest beside it that anybody can compute would confirm any guess.
    """
    forget_set: dict[str, Any] = {
        "unit": "sample" if spec["forget_samples"] else "class",
        "classes": list(spec["forget_classes"]),
        "forgottenEarlier": list(spec["forgotten_classes"]),
    }
    for field, key in (("samples", "forget_samples"), ("samplesForgottenEarlier", "forgotten_samples")):
        if spec[key]:
            forget_set[field] = {"count": len(spec[key])}
    return forget_set


def _retain_data(spec: Mapping[str, Any], proxy: Mapping[str, Any] | None) -> dict[str, Any]:
    """What training could look at to keep the rest, where the request chose it. `classes` are those with real images in it."""
    chosen = spec.get("retain")
    if chosen is None:
        return {}
    apart = {*spec["forget_classes"], *spec["forgotten_classes"], *chosen["proxy_classes"]}
    others = [k for k in range(len(spec["class_names"])) if k not in apart]
    data: dict[str, Any] = {
        "real": chosen["real"],
        "classes": (sorted(chosen["classes"]) or others) if chosen["real"] > 0 else [],
        "proxyClasses": sorted(chosen["proxy_classes"]),
    }
    if proxy is not None:
        data["proxyDataset"] = {**proxy, "classNames": list(chosen["proxy_class_names"])}
    return {"retainData": data}


def _limits(
    spec: Mapping[str, Any],
    report: Mapping[str, Any],
    guarantee: str,
    kind: str | None,
    rejected_before: int,
    parent: Mapping[str, Any],
    approval: Mapping[str, Any],
) -> list[str]:
    gone = {
        "classes": [*spec["forget_classes"], *spec["forgotten_classes"]],
        "samples": [*spec["forget_samples"], *spec["forgotten_samples"]],
    }
    return known_limits(
        kind=kind or spec["policy"].get("kind"),
        findings=report["findings"],
        judged=bool(report["judges"]),
        units=[unit for unit, some in gone.items() if some],
        chosen=spec.get("retain"),
        guarantee=guarantee,
        rejected_before=rejected_before,
        parent=parent,
        approval=approval,
    )


def prompts_digest(prompts: Mapping[str, str]) -> str:
    """SHA-256 of the RFC 8785 form of what the model was asked with, by class name: the prompts, or the names themselves."""
    return hashlib.sha256(rfc8785.dumps(dict(prompts))).hexdigest()


def objections(statement: Mapping[str, Any], origin: str | None = None) -> list[str]:
    """Why a signer must not sign this statement; empty when it may.

    The signer does not take the worker's word for the verdict: see `claim.shortcomings`, by which a download is judged too.
    Where the entries of plan and certificate are is asked here alone: older releases signed certificates that do not say it.

    Args:
        origin: of the ledger whose checkpoints the same signer signs; None: it is not known here.
    """
    if statement.get("_type") != STATEMENT_TYPE or statement.get("predicateType") != PREDICATE_TYPE:
        return ["it is not an unlearning statement of this version"]
    subjects = statement.get("subject")
    if not isinstance(subjects, Sequence) or not subjects:
        return ["it names no file"]
    names = [s.get("name") for s in subjects]
    found = ["it names a file twice"] if len(set(names)) != len(names) else []
    try:
        said = statement["predicate"]["claim"]
        if GUARANTEES.get(said["guarantee"]) != said["statement"]:
            found.append("its words are not those of its guarantee")
        return found + _unlogged(statement["predicate"], origin) + claim.shortcomings(statement["predicate"])
    except (KeyError, TypeError, claim.Unreadable):
        return [*found, "its claim or its findings are not readable"]


def _unlogged(predicate: Mapping[str, Any], origin: str | None) -> list[str]:
    """A certificate that names no ledger can never be held against one. Raises: KeyError, TypeError."""
    ledger = predicate["certificate"]["ledger"]
    named, seq = (ledger.get("origin"), ledger.get("planSeq")) if isinstance(ledger, Mapping) else (None, None)
    if not isinstance(named, str) or not named:
        return ["it does not name the ledger that it is logged in"]
    found = [] if origin in (None, named) else ["it names another ledger than the one that is signed here"]
    if type(seq) is not int or seq < 0:
        found.append("it does not say where its plan stands in the ledger")
    if ledger["requestIds"] != [predicate["request"]["id"]]:
        found.append("its ledger's request is not its own")
    return found
