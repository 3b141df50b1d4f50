"""What may be asked: families, methods with their parameters, verifiers.

`catalogue.json` is printed by the engine and checked in, so the API validates parameters without torch. Messages say what a
parameter must be, never what came.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.auth import allowed
from service.errors import InvalidParams, RetainUnsupported, UnknownFamily, UnknownMethod

HERE = Path(__file__).resolve().parent
CATALOGUE_FILE = HERE / "catalogue.json"
LADDERS_FILE = HERE / "ladders.json"
PREFERRED_METHODS = ("sfron", "encoder_l2")
"""Of those that a family has, the first one is its default."""

Json = dict[str, Any]
Kind = Literal["generator", "classifier", "i2i"]
Unit = Literal["class", "sample"]

KINDS: dict[Kind, str] = {"generator": "a generator", "classifier": "a classifier", "i2i": "an image-to-image model"}
"""As sentences call them."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class FamilyEntry(_Entry):
    """A way to build a model. `kind` says what it is for, and so what can be verified of it."""

    title: str = ""
    kind: Kind = "generator"
    prompts: bool = Field(default=False, description="a model of this family may say in words what each class is called")
    ignores: tuple[str, ...] = Field(default=(), description="parameters of methods that have no effect on this family")


class Preset(_Entry):
    """Parameters that belong together, and where they come from."""

    families: tuple[str, ...]
    params: dict[str, JsonValue]
    source: str = ""


class MethodEntry(_Entry):
    """An unlearning method: the families it is for, the JSON schema of its parameters, and its presets."""

    families: tuple[str, ...]
    params: dict[str, JsonValue]
    title: str = ""
    guarantee: str = "empirical"
    presets: dict[str, Preset] = Field(default_factory=dict)
    default_presets: dict[str, dict[Unit, str | None]] = Field(
        default_factory=dict, description="by family and what is forgotten; used when `preset` is not given"
    )
    conditions: dict[str, dict[str, list[JsonValue]]] = Field(
        default_factory=dict,
        description="parameters that have an effect only where another one, or the family's `kind`, has one of some values",
    )

    def presets_for(self, family: str) -> dict[str, Preset]:
        """The presets that a family may use, by name."""
        return {name: preset for name, preset in sorted(self.presets.items()) if family in preset.families}


class VerifierEntry(_Entry):
    """A check of the saved result."""

    title: str = ""
    kinds: tuple[Kind, ...] = Field(default=("generator", "classifier"), description="the kinds of model it can look at")
    params: dict[str, JsonValue] = Field(default_factory=dict, description="JSON schema of its thresholds")
    measures: Literal["classes", "samples"] | None = Field(default=None, description="what it shows to be forgotten")
    held_out: Literal["all", "forgotten", "retained"] | None = Field(
        default=None, description="the classes of which it needs held-out images"
    )
    completes: bool = Field(default=False, description="it looks at completed images, hidden as the policy's sampling says")


class RecipeEntry(_Entry):
    """A method with a preset: one of those that `auto` tries."""

    method: str
    preset: str | None = None


class Catalogue(_Entry):
    """Everything the engine can do, by API name."""

    families: dict[str, FamilyEntry]
    methods: dict[str, MethodEntry]
    verifiers: dict[str, VerifierEntry]
    policy: dict[str, JsonValue] = Field(default_factory=dict, description="JSON schema of a verification policy")
    ladders: dict[str, dict[Unit, tuple[RecipeEntry, ...]]] = Field(
        default_factory=dict,
        description="what the method `auto` tries, in order, until a result passes: by family and what is forgotten",
    )

    def methods_for(self, family: str) -> tuple[str, ...]:
        """Names of the methods that can work on a family, in order."""
        return tuple(sorted(name for name, method in self.methods.items() if family in method.families))


@lru_cache(maxsize=1)
def get_catalogue() -> Catalogue:
    """The packaged catalogue, and the ladders beside it. Raises: FileNotFoundError, pydantic.ValidationError."""
    ladders = json.loads(LADDERS_FILE.read_bytes())
    return Catalogue.model_validate({"ladders": ladders, **json.loads(CATALOGUE_FILE.read_bytes())})


class Same:
    """A catalogue as the key of what was worked out with it: the very same object."""

    def __init__(self, of: Catalogue) -> None:
        self.of = of

    def __hash__(self) -> int:
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.of is self.of


def require_family(family: str) -> FamilyEntry:
    """The family's entry. Raises: UnknownFamily, naming the known ones."""
    families = get_catalogue().families
    if family not in families:
        raise UnknownFamily(f"expected one of: {', '.join(sorted(families))}", pointer="/family")
    return families[family]


def choose_method(family: str, wanted: str | None) -> str:
    """The method to use: as asked, else the default of the family.

    Raises:
        UnknownMethod: the family has no such method, or none at all.
    """
    known = get_catalogue().methods_for(family)
    if wanted is None:
        if not known:
            raise UnknownMethod("no method works on this family", pointer="/method")
        return next((name for name in PREFERRED_METHODS if name in known), known[0])
    if wanted not in known:
        raise UnknownMethod(f"expected one of: {', '.join(known)}", pointer="/method")
    return wanted


def require_choice_of_retain_data(family: str) -> None:
    """Refuse retain data that are chosen for a model whose methods may look at others: the engine's own rule.

    Raises:
        RetainUnsupported, UnknownFamily.
    """
    kind = require_family(family).kind
    if kind != "i2i":
        said = f"retain data can be chosen for {KINDS['i2i']} alone, and this is {KINDS[kind]}"
        raise RetainUnsupported(said, pointer="/retain")


def effective_params(method: str, family: str, params: Json, *, unit: Unit = "class") -> Json:
    """The parameters as given, before those the preset's values, before those the schema's defaults.

    The preset is the one that `params` names (null: none), else the method's default for family and unit. A method whose schema
    knows `preset` gets the name that was used back, null when there was none; what is given spells out every value that has
    an effect, so it stays what it is when a later catalogue changes the preset.

    Raises:
        InvalidParams: one is unknown, missing, of the wrong type or out of range, or was given and has no effect; all are
            reported at once. Or the preset is not one of this family's.
    """
    entry = get_catalogue().methods[method]
    schema = entry.params
    effective = {**_defaults(schema), **_preset(entry, family, unit, params), **params}
    idle = _without_effect(entry, family, effective)
    problems = [
        *unknown_names(schema, params),
        *(sentence(e) for e in _validator(method).iter_errors(effective)),
        *((f"/params/{key}", f"{key}: {idle[key]}") for key in sorted(idle) if key in params),
    ]
    if problems:
        details = [{"pointer": pointer, "code": InvalidParams.code, "detail": text} for pointer, text in problems]
        raise InvalidParams("; ".join(dict.fromkeys(text for _, text in problems)), errors=details)
    return {key: value for key, value in effective.items() if key not in idle}


def _defaults(schema: Json) -> Json:
    properties: dict[str, Json] = schema.get("properties", {})
    return {name: copy.deepcopy(spec["default"]) for name, spec in properties.items() if "default" in spec}


def _preset(entry: MethodEntry, family: str, unit: Unit, params: Json) -> Json:
    """The values of the preset that is meant, its name among them."""
    schema: Json = entry.params
    if "preset" not in schema.get("properties", {}):
        return {}
    name = params["preset"] if "preset" in params else entry.default_presets.get(family, {}).get(unit)
    if not isinstance(name, str):
        return {"preset": None}  # what is neither null nor a name is the schema's to refuse
    known = entry.presets_for(family)
    if name not in known:
        text = f"preset: expected one of: {', '.join(known) or 'none, the family has no presets'}"
        raise InvalidParams(text, pointer="/params/preset")
    return {**copy.deepcopy(known[name].params), "preset": name}


def _without_effect(entry: MethodEntry, family: str, effective: Json) -> dict[str, str]:
    """The parameters that decide nothing, with the reason: the engine's own rule, `intake.without_effect`."""
    about = get_catalogue().families[family]
    idle = dict.fromkeys((key for key in about.ignores if key in effective), f"has no effect on family {family}")
    facts = {**effective, "kind": about.kind}
    for key, needed in entry.conditions.items():
        for name, values in needed.items():
            if facts[name] not in values:
                idle.setdefault(key, f"has an effect only where {name} is {' or '.join(map(str, values))}")
    return idle


def unknown_names(schema: Json, params: Json, whose: str = "method") -> Iterable[tuple[str, str]]:
    """Unknown names are refused even where a schema forgot to close itself."""
    known = schema.get("properties", {})
    if set(params) - set(known):
        yield "/params", f"unknown parameter; this {whose} has: {', '.join(sorted(known)) or 'none'}"


@lru_cache(maxsize=64)
def _validator(method: str) -> Any:
    return of_schema(get_catalogue().methods[method].params)


def of_schema(schema: Json) -> Any:
    """What holds values against a JSON schema."""
    from jsonschema import Draft202012Validator  # 0.1 s to import; only a POST needs it, and the API has it done at its start

    return Draft202012Validator(schema)


def sentence(error: Any) -> tuple[str, str]:
    """Of a schema's error: where and what was expected, in the schema's words; jsonschema's own message quotes the input."""
    place = "/".join(str(part) for part in error.absolute_path)
    pointer = "/params" + (f"/{place}" if place else "")
    name = place.replace("/", ".") or "params"
    match error.validator:
        case "additionalProperties" | "unevaluatedProperties":
            return "/params", f"unknown parameter; this method has: {', '.join(sorted(error.schema.get('properties', {})))}"
        case "type":
            return pointer, f"{name}: expected {error.validator_value}"
        case "enum":
            return pointer, f"{name}: expected one of {', '.join(map(str, error.validator_value))}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" | "const" | "pattern":
            return pointer, f"{name}: expected {error.validator} {error.validator_value}"
        case "required":
            return pointer, f"{name}: expected {', '.join(error.validator_value)}"
        case "anyOf":
            return pointer, f"{name}: expected {' or '.join(map(_accepted, error.validator_value))}"
        case _:
            return pointer, f"{name}: does not fit the method's schema"


LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "maxLength")


def _accepted(schema: Json) -> str:
    """One alternative of a schema in its own words: `null`, or `number (exclusiveMinimum 0, maximum 1.0)`."""
    limits = [f"{name} {schema[name]}" for name in LIMITS if name in schema]
    kind = str(schema.get("type", "another value"))
    return f"{kind} ({', '.join(limits)})" if limits else kind


# ------------------------------------------------------------------------------------------------------------ endpoint

router = APIRouter(tags=["catalogue"])


@router.get(
    "/catalogue",
    dependencies=[allowed("catalogue:read")],
    response_model=Catalogue,
    summary="Families, methods and verifiers that the engine has",
)
def read_catalogue() -> Catalogue:
    """What may be asked for. `params` of a method is a JSON schema."""
    return get_catalogue()
