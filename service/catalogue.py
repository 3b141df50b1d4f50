"""What may be asked: families, methods with their parameters, verifiers; and the policy a result is held to.

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

from service.config import Settings
from service.errors import InvalidParams, PolicyUnfit, SamplesUnverifiable, UnknownFamily, UnknownMethod

HERE = Path(__file__).resolve().parent
CATALOGUE_FILE = HERE / "catalogue.json"
POLICIES = HERE / "policies"
PREFERRED_METHOD = "sfron"

Json = dict[str, Any]
Kind = Literal["generator", "classifier"]
Unit = Literal["class", "sample"]

DEFAULT_POLICIES: dict[tuple[Kind, Unit], str] = {
    ("generator", "class"): "basic-v1",
    ("classifier", "class"): "classifier-v1",
    ("classifier", "sample"): "classifier-samples-v1",
}
"""The packaged policy by kind of model and by what is forgotten. A pair that is missing cannot be verified at all."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class FamilyEntry(_Entry):
    """A way to build a model. `kind` says what it is for, and so what can be verified of it."""

    title: str = ""
    kind: Kind = "generator"
    prompts: bool = Field(default=False, description="a model of this family may say in words what each class is called")


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

    def presets_for(self, family: str) -> dict[str, Preset]:
        """The presets that a family may use, by name."""
        return {name: preset for name, preset in sorted(self.presets.items()) if family in preset.families}


class VerifierEntry(_Entry):
    """A check of the saved result."""

    title: str = ""
    kinds: tuple[Kind, ...] = Field(default=("generator", "classifier"), description="the kinds of model it can look at")


class Catalogue(_Entry):
    """Everything the engine can do, by API name."""

    families: dict[str, FamilyEntry]
    methods: dict[str, MethodEntry]
    verifiers: dict[str, VerifierEntry]

    def methods_for(self, family: str) -> tuple[str, ...]:
        """Names of the methods that can work on a family, in order."""
        return tuple(sorted(name for name, method in self.methods.items() if family in method.families))


class PolicyInvalid(RuntimeError):
    """The configured policy is no policy: the service must not promise to verify by it."""


@lru_cache(maxsize=1)
def get_catalogue() -> Catalogue:
    """The packaged catalogue. Raises: FileNotFoundError, pydantic.ValidationError."""
    return Catalogue.model_validate_json(CATALOGUE_FILE.read_bytes())


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
        return PREFERRED_METHOD if PREFERRED_METHOD in known else known[0]
    if wanted not in known:
        raise UnknownMethod(f"expected one of: {', '.join(known)}", pointer="/method")
    return wanted


def effective_params(method: str, family: str, params: Json, *, unit: Unit = "class") -> Json:
    """The parameters as given, before those the preset's values, before those the schema's defaults.

    The preset is the one that `params` names (null: none), else the method's default for family and unit. A method whose schema
    knows `preset` gets the name that was used back, null when there was none; what is given spells out every value, so it
    stays what it is when a later catalogue changes the preset.

    Raises:
        InvalidParams: one is unknown, missing, of the wrong type or out of range; all are reported at once. Or the preset is
            not one of this family's.
    """
    entry = get_catalogue().methods[method]
    schema = entry.params
    effective = {**_defaults(schema), **_preset(entry, family, unit, params), **params}
    problems = [*_unknown(schema, params), *(_sentence(e) for e in _validator(method).iter_errors(effective))]
    if problems:
        details = [{"pointer": pointer, "code": InvalidParams.code, "detail": text} for pointer, text in problems]
        raise InvalidParams("; ".join(dict.fromkeys(text for _, text in problems)), errors=details)
    return effective


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


def _unknown(schema: Json, params: Json) -> Iterable[tuple[str, str]]:
    """Unknown names are refused even where a schema forgot to close itself."""
    known = schema.get("properties", {})
    if set(params) - set(known):
        yield "/params", f"unknown parameter; this method has: {', '.join(sorted(known)) or 'none'}"


@lru_cache(maxsize=64)
def _validator(method: str) -> Any:
    from jsonschema import Draft202012Validator  # 0.1 s to import; only a POST needs it

    return Draft202012Validator(get_catalogue().methods[method].params)


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
        case _:
            return pointer, f"{name}: does not fit the method's schema"


# -------------------------------------------------------------------------------------------------------------- policy


def current_policy(settings: Settings, family: str, unit: Unit) -> Json:
    """The verification policy that a new request is held to, as JSON. Read-only: requests share it.

    The operator's file wins over the packaged policies; it cannot make verifiable what is not.

    Args:
        family: of the model; its kind decides which checks fit.
        unit: what is forgotten, whole classes or single training items.

    Raises:
        SamplesUnverifiable: nothing can verify that single items are forgotten by this kind of model.
        PolicyUnfit: it has checks that are not for this kind of model.
        PolicyInvalid: it is not there, or names no check or an unknown one.
    """
    kind = require_family(family).kind
    packaged = DEFAULT_POLICIES.get((kind, unit))
    if packaged is None:
        raise SamplesUnverifiable(f"forgetting single samples cannot be verified for a {kind} yet", pointer="/forget/samples")
    path = settings.policy_file or POLICIES / f"{packaged}.json"
    try:
        policy = _read_policy(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise PolicyInvalid("the policy file cannot be read") from error
    _require_fit(policy, kind)
    return policy


def _require_fit(policy: Json, kind: Kind) -> None:
    verifiers = get_catalogue().verifiers
    unfit = sorted({c["verifier"] for c in policy["checks"] if kind not in verifiers[c["verifier"]].kinds})
    if unfit:
        raise PolicyUnfit(f"the policy {policy['name']!r} has checks that are not for a {kind}: {', '.join(unfit)}")


@lru_cache(maxsize=8)
def _read_policy(path: Path, _mtime_ns: int) -> Json:
    try:
        policy = json.loads(path.read_bytes())
        wanted = {check["verifier"] for check in policy["checks"]}
        named = isinstance(policy["name"], str)
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyInvalid("the policy file is not a policy") from error
    unknown = wanted - set(get_catalogue().verifiers)
    if not wanted or unknown or not named:
        raise PolicyInvalid(f"the policy names no check, or unknown ones: {sorted(unknown)}")
    return dict(policy)


# ------------------------------------------------------------------------------------------------------------ endpoint

router = APIRouter(tags=["catalogue"])


@router.get("/catalogue", response_model=Catalogue, summary="Families, methods and verifiers that the engine has")
def read_catalogue() -> Catalogue:
    """What may be asked for. `params` of a method is a JSON schema."""
    return get_catalogue()
