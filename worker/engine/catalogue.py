"""What this engine can do, as JSON: the API validates requests against it without importing torch."""

from __future__ import annotations

import json
from typing import Any

from worker.engine import registry


def catalogue() -> dict[str, Any]:
    """Families, methods and verifiers by name, with the JSON schema of their parameters; the same on every machine."""
    methods = registry.methods()
    return {
        "families": {
            name: {
                "title": family.title,
                "methods": sorted(m for m, method in methods.items() if name in method.families),
            }
            for name, family in sorted(registry.families().items())
        },
        "methods": {
            name: {
                "title": method.title,
                "paper": method.paper,
                "guarantee": method.guarantee,
                "families": sorted(method.families),
                "params": method.Params.model_json_schema(),
                "defaults": method.Params().model_dump(mode="json"),
            }
            for name, method in sorted(methods.items())
        },
        "verifiers": {
            name: {
                "title": verifier.title,
                "tier": verifier.tier,
                "params": verifier.Params.model_json_schema(),
                "defaults": verifier.Params().model_dump(mode="json"),
            }
            for name, verifier in sorted(registry.verifiers().items())
        },
    }


def as_text() -> str:
    """The catalogue as it is committed: indented, keys sorted, one newline at the end."""
    return json.dumps(catalogue(), indent=2, sort_keys=True) + "\n"
