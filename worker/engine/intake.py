"""Reading a job's spec: every name in it found, every class in range, every parameter in its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from worker.contract import JobDirectory, Spec
from worker.engine import registry
from worker.engine.errors import BadInput, in_words
from worker.engine.family import Family
from worker.engine.method import Method, Params, Unit


def read_spec(job: JobDirectory) -> tuple[Spec, type[Family]]:
    """The spec, and the family it names. Raises: BadInput."""
    try:
        spec = job.read_spec()
    except FileNotFoundError as error:
        raise BadInput("expected spec.json in the job directory, found none") from error
    except ValidationError as error:
        raise BadInput(f"spec.json is not a spec: {in_words(error)}") from error
    family = registry.families().get(spec.family)
    if family is None:
        raise BadInput(f"unknown family {spec.family!r}; known: {', '.join(registry.families())}")
    unknown = [k for k in spec.all_forgotten if not 0 <= k < len(spec.class_names)]
    if unknown or not spec.retain_classes:
        raise BadInput(f"expected some but not all of the classes 0 to {len(spec.class_names) - 1} in the forget set")
    return spec, family


def method_of(spec: Spec) -> type[Method]:
    """The method that the spec names. Raises: BadInput when there is none, or not for this family."""
    method = registry.methods().get(spec.method)
    if method is None or spec.family not in method.families:
        fitting = [name for name, m in registry.methods().items() if spec.family in m.families]
        raise BadInput(f"unknown method {spec.method!r} for family {spec.family!r}; known: {', '.join(fitting)}")
    return method


def effective(method: type[Method], family: str, given: Mapping[str, JsonValue], *, unit: Unit = "class") -> Params:
    """The parameters of a run: the method's defaults, under those of a preset, under those that were given.

    The preset is the one that `given` names; without the key, the default of the family for what is forgotten. A given
    `preset` of null asks for none. Applied to what `recorded` says of its answer, it changes nothing.

    Raises:
        BadInput: an unknown parameter or preset, a value out of range, or a parameter that was given and has no effect.
    """
    named: Any = given.get("preset", default_preset(method, family, unit))
    preset = method.presets.get(named) if isinstance(named, str) else None
    if named is not None and (preset is None or family not in preset.families):
        known = [name for name, p in method.presets.items() if family in p.families]
        raise BadInput(f"unknown preset {named!r} of {method.name} for {family}; known: {', '.join(known) or 'none'}")
    values = {**(preset.params if preset else {}), **given, "preset": named}
    try:
        params = method.Params.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"parameters of {method.name}: {in_words(error)}") from error
    idle = without_effect(method, family, params)
    if idle.keys() & given.keys():
        raise BadInput(f"parameters of {method.name}: " + "; ".join(f"{k}: {idle[k]}" for k in sorted(idle) if k in given))
    return params


def without_effect(method: type[Method], family: str, params: Params) -> dict[str, str]:
    """Parameters that decide nothing, for this family or beside these values of the others, each with the reason.

    The API refuses them by the same rule, in `service.catalogue`.
    """
    chosen = registry.families()[family]
    idle = dict.fromkeys(sorted(chosen.ignores & method.Params.model_fields.keys()), f"has no effect on family {family}")
    facts = {**params.model_dump(mode="json"), "kind": chosen.kind}
    for key, needed in method.Params.conditions.items():
        for name, values in needed.items():
            if facts[name] not in values:
                idle.setdefault(key, f"has an effect only where {name} is {' or '.join(map(str, values))}")
    return idle


def recorded(method: type[Method], family: str, params: Params) -> dict[str, JsonValue]:
    """The parameters as manifest and certificate hold them: all that have an effect, and no other."""
    return params.model_dump(mode="json", exclude=set(without_effect(method, family, params)))


def default_preset(method: type[Method], family: str, unit: Unit) -> str | None:
    """The first preset that names the family and what is forgotten."""
    return next((name for name, p in method.presets.items() if family in p.families and unit in p.units), None)
