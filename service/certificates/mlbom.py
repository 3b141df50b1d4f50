"""CycloneDX 1.6 ML-BOM of a published checkpoint: what is in the model, and what it came from. Pure.

Written as JSON, and held against CycloneDX's own schema by a test: the Python library has no model cards and drops them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = "https://cyclonedx.org/bom"
"""As in-toto names it."""
TASKS = {"generator": "image generation", "classifier": "image classification", "i2i": "image completion"}


def document(subjects: Sequence[Mapping[str, Any]], predicate: Mapping[str, Any], *, kind: str) -> dict[str, Any]:
    """The bill of materials, from the certificate.

    Args:
        subjects: the certificate's: the model first, then its files.
        predicate: the certificate's.
        kind: of the model: generator, classifier or i2i.
    """
    model, parent, certificate = predicate["model"], predicate["parent"], predicate["certificate"]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, 'urn:expunge:checkpoint:' + certificate['id'])}",
        "version": 1,
        "metadata": {
            "timestamp": certificate["issuedAt"],
            "tools": {"components": [{"type": "application", "name": "expunge"}]},
            "component": _model(model, parent, predicate, subjects[0], kind),
        },
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{one['name']}",
                "name": one["name"],
                "hashes": [{"alg": "SHA-256", "content": one["digest"]["sha256"]}],
            }
            for one in subjects[1:]
        ],
    }


def _model(
    model: Mapping[str, Any], parent: Mapping[str, Any], predicate: Mapping[str, Any], root: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{model['id']}@{model['version']}",
        "name": model["id"],
        "version": str(model["version"]),
        "hashes": [{"alg": "SHA-256", "content": root["digest"]["sha256"]}],
        "pedigree": {
            "ancestors": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": f"version:{parent['version_id']}",
                    "name": model["id"],
                    "version": parent["version_id"],
                }
            ],
            "notes": "Derived from its ancestor by unlearning; see the certificate beside the files.",
        },
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised" if kind == "classifier" else "unsupervised"},
                "task": TASKS[kind],
                "architectureFamily": model["family"],
                "datasets": _datasets(predicate),
            },
            "considerations": {"technicalLimitations": list(predicate["limits"])},
        },
    }


def _datasets(predicate: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the model was trained on: what the original was, and a dataset that unlearning looked at in place of some of it."""
    used = [(predicate["dataset"], "training data of the original")]
    proxy = predicate.get("retainData", {}).get("proxyDataset")
    if proxy is not None:
        used.append((proxy, "proxy data of unlearning, in place of retained images"))
    return [{"type": "dataset", "name": one["id"], "classification": said} for one, said in used]
