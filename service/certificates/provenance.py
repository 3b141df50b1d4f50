"""SLSA provenance v1 of a published checkpoint: which builder ran which code on which inputs. Pure.

It says where the files come from; what was forgotten, and on what evidence, is the certificate's matter. The signing key is
out of the worker's reach, and what the worker says of its own run is taken on trust: build level 2, not 3.
Source: slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:expunge:buildtype:unlearning:v1"
TREE = "expungeTree"
"""A digest of many files: SHA-256 of the JSON list of (path, size, sha256) in path order. No one file has it."""


def statement(subjects: Sequence[Mapping[str, Any]], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of what a certificate is about, from that certificate: the two cannot disagree.

    Args:
        subjects: the certificate's.
        predicate: the certificate's.
    """
    run, algorithm, plan, environment = (predicate[key] for key in ("run", "algorithm", "plan", "environment"))
    inputs = [
        _input("model-version", predicate["parent"]["version_id"], predicate["parent"]["digest"]),
        _input("dataset", predicate["dataset"]["id"], predicate["dataset"]["digest"]),
    ]
    chosen = predicate.get("retainData")
    if chosen is not None and (proxy := chosen.get("proxyDataset")) is not None:
        inputs.append(_input("dataset", proxy["id"], proxy["digest"]))  # the result was trained on its images, too
    times = {"startedOn": run["startedAt"], "finishedOn": run["finishedAt"]} if "startedAt" in run else {}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [dict(one) for one in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "request": predicate["request"]["id"],
                    "forgetSet": predicate["forgetSet"],
                    "method": algorithm["name"],
                    "parameters": algorithm["parameters"],
                    "policySha256": plan["policySha256"],
                    **({} if chosen is None else {"retainData": chosen}),
                },
                "internalParameters": {
                    "specSha256": plan["specSha256"],
                    "seed": algorithm["seed"],
                    "ranks": algorithm["ranks"],
                    "environment": environment,
                },
                "resolvedDependencies": inputs,
            },
            "runDetails": {
                "builder": {"id": f"urn:expunge:worker:{predicate['certificate']['issuer']['id']}"},
                "metadata": {"invocationId": f"{predicate['request']['id']}/{predicate['request']['fence']}", **times},
                "byproducts": [{"name": "report.json", "digest": {"sha256": predicate["verification"]["reportSha256"]}}],
            },
        },
    }


def _input(kind: str, name: str, digest: str) -> dict[str, Any]:
    return {"uri": f"urn:expunge:{kind}:{name}", "digest": {TREE: digest}}
