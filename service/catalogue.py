"""What may be asked: families, methods with their parameters, verifiers; and the policy a result is held to.

`catalogue.json` is printed by the engine and checked in, so the API validates parameters without torch. Messages say what a
parameter must be, never what came.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.config import Settings
from service.errors import InvalidParams, PolicyUnfit, RetainUnsupported, SamplesUnverifiable, UnknownFamily, UnknownMethod

HERE = Path(__file__).resolve().parent
CATALOGUE_FILE = HERE / "catalogue.json"
LADDERS_FILE = HERE / "ladders.json"
POLICIES = HERE / "policies"
PREFERRED_METHODS = ("sfron", "encoder_l2")
"""Of those that a family has, the first one is its default."""

Json = dict[str, Any]
Kind = Literal["generator", "classifier", "i2i"]
Unit = Literal["class", "sample"]

DEFAULT_POLICIES: dict[tuple[Kind, frozenset[Unit]], str] = {
    ("generator", frozenset({"class"})): "basic-v1",
    ("classifier", frozenset({"class"})): "classifier-v1",
    ("classifier", frozenset({"sample"})): "classifier-samples-v1",
    ("classifier", frozenset({"class", "sample"})): "classifier-classes-and-samples-v1",
    ("i2i", frozenset({"class"})): "i2i-v1",
}
"""The packaged policy by kind of model and by what was ever forgotten. What is missing cannot be verified at all."""

KINDS: dict[Kind, str] = {"generator": "a generator", "classifier": "a classifier", "i2i": "an image-to-image model"}
"""As sentences call them."""

UNITS: dict[Unit, Literal["classes", "samples"]] = {"class": "classes", "sample": "samples"}


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


class PolicyInvalid(RuntimeError):
    """The configured policy is no policy: the service must not promise to verify by it."""


@lru_cache(maxsize=1)
def get_catalogue() -> Catalogue:
    """The packaged catalogue, and the ladders beside it. Raises: FileNotFoundError, pydantic.ValidationError."""
    ladders = json.loads(LADDERS_FILE.read_bytes())
    return Catalogue.model_validate({"ladders": ladders, **json.loads(CATALOGUE_FILE.read_bytes())})


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
        *_unknown(schema, params),
        *(_sentence(e) for e in _validator(method).iter_errors(effective)),
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


def _unknown(schema: Json, params: Json, whose: str = "method") -> Iterable[tuple[str, str]]:
    """Unknown names are refused even where a schema forgot to close itself."""
    known = schema.get("properties", {})
    if set(params) - set(known):
        yield "/params", f"unknown parameter; this {whose} has: {', '.join(sorted(known)) or 'none'}"


@lru_cache(maxsize=64)
def _validator(method: str) -> Any:
    return _of_schema(get_catalogue().methods[method].params)


def _of_schema(schema: Json) -> Any:
    from jsonschema import Draft202012Validator  # 0.1 s to import; only a POST needs it

    return Draft202012Validator(schema)


def _sentence(error: Any) -> tuple[str, str]:
    """Where and what was expected, in the schema's words; jsonschema's own message quotes the input."""
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


# -------------------------------------------------------------------------------------------------------------- policy


def current_policy(settings: Settings, family: str, units: Collection[Unit]) -> Json:
    """The verification policy that a new request is held to, as JSON. Read-only: requests share it.

    The operator's file wins over the packaged policies; it cannot make verifiable what is not.

    Args:
        family: of the model; its kind decides which checks fit.
        units: what will have been forgotten on the lineage when this request is done, whole classes, single training items or
            both. All of it is measured every time: a later request may bring back what an earlier one took away.

    Raises:
        SamplesUnverifiable: nothing can verify that single items are forgotten by this kind of model.
        PolicyUnfit: it has checks that are not for this kind of model, thresholds that its checks do not have, or none that
            measures what is forgotten.
        PolicyInvalid: it is not there, or names no check or an unknown one.
    """
    kind = require_family(family).kind
    packaged = DEFAULT_POLICIES.get((kind, frozenset(units)))
    if packaged is None:
        said = f"forgetting single samples cannot be verified for {KINDS[kind]} yet"
        raise SamplesUnverifiable(said, pointer="/forget/samples")
    path = settings.policy_file or POLICIES / f"{packaged}.json"
    try:
        policy = _read_policy(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise PolicyInvalid("the policy file cannot be read") from error
    _require_fit(policy, kind, units)
    return policy


def _require_fit(policy: Json, kind: Kind, units: Collection[Unit]) -> None:
    """Refuse now what would only be noticed when the work is done."""
    verifiers = {c["verifier"]: get_catalogue().verifiers[c["verifier"]] for c in policy["checks"]}
    unfit = sorted(name for name, entry in verifiers.items() if kind not in entry.kinds)
    if unfit:
        raise PolicyUnfit(f"the policy {policy['name']!r} has checks that are not for {KINDS[kind]}: {', '.join(unfit)}")
    problems = [f"{c['verifier']}: {text}" for c in policy["checks"] for text in _threshold_problems(c)]
    if problems:
        raise PolicyUnfit(f"the policy {policy['name']!r} has thresholds that do not fit: {'; '.join(problems)}")
    if not policy.get("sampling", {}).get("corruptions") and any(entry.completes for entry in verifiers.values()):
        raise PolicyUnfit(f"the policy {policy['name']!r} names no corruption in its sampling: nothing would be completed")
    unmeasured = sorted({UNITS[unit] for unit in units} - {entry.measures for entry in verifiers.values()})
    if unmeasured:
        what = " and ".join(unmeasured)
        raise PolicyUnfit(f"the policy {policy['name']!r} has no check that measures whether {what} are forgotten")


def _threshold_problems(check: Json) -> Iterable[str]:
    schema, params = get_catalogue().verifiers[check["verifier"]].params, check.get("params", {})
    if schema:
        yield from (text for _, text in _unknown(schema, params, "check"))
        wrong = (e for e in _of_schema(schema).iter_errors(params) if e.validator != "additionalProperties")
        yield from (text for _, text in map(_sentence, wrong))


def classes_held_out(
    policy: Json,
    forgotten: Collection[int],
    of_samples: Collection[int],
    class_count: int,
    *,
    set_aside: Collection[int] = (),
) -> set[int]:
    """The classes of which a policy's checks look at held-out images.

    Args:
        forgotten: classes that were ever forgotten on the lineage.
        of_samples: classes of the single items that were.
        class_count: of the model.
        set_aside: classes that stand in for others, and so are not verified as retained.
    """
    needed: set[int] = set()
    for entry in (get_catalogue().verifiers[c["verifier"]] for c in policy["checks"]):
        match entry.held_out:
            case "all":
                needed.update(range(class_count))
            case "retained":
                needed.update(set(range(class_count)).difference(forgotten, set_aside))
            case "forgotten":
                needed.update(of_samples if entry.measures == "samples" else forgotten)
    return needed


def least_held_out(policy: Json) -> int:
    """How many held-out images of a class a policy's checks need: of one completed image nobody knows how others differ."""
    return 2 if any(get_catalogue().verifiers[c["verifier"]].completes for c in policy["checks"]) else 1


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@lru_cache(maxsize=8)
def _read_policy(path: Path, _mtime_ns: int) -> Json:
    try:
        policy = json.loads(path.read_bytes(), parse_constant=_no_number)
        names = [check["verifier"] for check in policy["checks"]]
        thresholds = all(isinstance(check.get("params", {}), dict) for check in policy["checks"])
        unknown = set(names) - set(get_catalogue().verifiers)
        named = isinstance(policy["name"], str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PolicyInvalid("the policy file is not a policy") from error
    if not names or unknown or not named or not thresholds:
        raise PolicyInvalid(f"the policy names no check, or unknown ones: {sorted(map(str, unknown))}")
    if wrong := sorted(e.json_path for e in _of_schema(get_catalogue().policy).iter_errors(policy)):
        raise PolicyInvalid(f"the policy does not fit its schema at: {', '.join(wrong)}")
    if len(set(names)) != len(names):
        raise PolicyInvalid("the policy names a check twice: the findings of one would stand for the other's")
    return dict(policy)


# ------------------------------------------------------------------------------------------------------------ endpoint

router = APIRouter(tags=["catalogue"])


@router.get("/catalogue", response_model=Catalogue, summary="Families, methods and verifiers that the engine has")
def read_catalogue() -> Catalogue:
    """What may be asked for. `params` of a method is a JSON schema."""
    return get_catalogue()
