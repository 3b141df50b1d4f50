"""What this engine can do, as JSON: the API validates requests against it without importing torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

from worker.contract import Policy
from worker.engine import registry
from worker.engine.intake import default_preset
from worker.engine.method import Unit
from worker.verdict import COMPLETES, MEASURES_FORGETTING, NEEDS_HELD_OUT


def catalogue() -> dict[str, Any]:
    """Families, methods and verifiers by name, with the JSON schema of their parameters; the same on every machine."""
    methods, families = registry.methods(), registry.families()

    def fitting(names: Iterable[str]) -> list[str]:
        return sorted(set(names) & families.keys())

    return {
        "families": {
            name: {
                "title": family.title,
                "kind": family.kind,
                "prompts": family.prompts,
                "ignores": sorted(family.ignores),
                "methods": sorted(m for m, method in methods.items() if name in method.families),
            }
            for name, family in sorted(families.items())
        },
        "methods": {
            name: {
                "title": method.title,
                "paper": method.paper,
                "guarantee": method.guarantee,
                "families": fitting(method.families),
                "params": method.Params.model_json_schema(),
                "conditions": {
                    key: {name: list(values) for name, values in needed.items()}
                    for key, needed in method.Params.conditions.items()
                },
                "defaults": method.Params().model_dump(mode="json"),
                "presets": {
                    preset: {"families": list(p.families), "params": dict(p.params), "source": p.source}
                    for preset, p in sorted(method.presets.items())
                },
                "default_presets": {
                    family: {unit: default_preset(method, family, unit) for unit in get_args(Unit)}
                    for family in fitting(method.families)
                },
            }
            for name, method in sorted(methods.items())
        },
        "verifiers": {
            name: {
                "title": verifier.title,
                "tier": verifier.tier,
                "kinds": list(verifier.kinds),
                "measures": MEASURES_FORGETTING.get(name),
                "held_out": NEEDS_HELD_OUT.get(name),
                "completes": name in COMPLETES,
                "params": verifier.Params.model_json_schema(),
                "defaults": verifier.Params().model_dump(mode="json"),
            }
            for name, verifier in sorted(registry.verifiers().items())
        },
        "policy": Policy.model_json_schema(),
    }


def as_text() -> str:
    """The catalogue as it is committed: indented, keys sorted, one newline at the end."""
    return json.dumps(catalogue(), indent=2, sort_keys=True) + "\n"
