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
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, JsonValue

from service.config import Settings
from service.errors import InvalidParams, UnknownFamily, UnknownMethod

HERE = Path(__file__).resolve().parent
CATALOGUE_FILE = HERE / "catalogue.json"
DEFAULT_POLICY_FILE = HERE / "policies" / "basic-v1.json"
PREFERRED_METHOD = "sfron"

Json = dict[str, Any]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class FamilyEntry(_Entry):
    """A kind of model."""

    title: str = ""


class MethodEntry(_Entry):
    """An unlearning method: the families it is for, and the JSON schema of its parameters."""

    families: tuple[str, ...]
    params: dict[str, JsonValue]
    title: str = ""


class VerifierEntry(_Entry):
    """A check of the saved result."""

    title: str = ""


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


def require_family(family: str) -> None:
    """Raises: UnknownFamily, naming the known ones."""
    known = sorted(get_catalogue().families)
    if family not in known:
        raise UnknownFamily(f"expected one of: {', '.join(known)}", pointer="/family")


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


def effective_params(method: str, params: Json) -> Json:
    """The parameters as given, with the defaults of the others filled in.

    Raises:
        InvalidParams: one is unknown, missing, of the wrong type or out of range; all are reported at once.
    """
    schema = get_catalogue().methods[method].params
    effective = {**_defaults(schema), **params}
    problems = [*_unknown(schema, params), *(_sentence(e) for e in _validator(method).iter_errors(effective))]
    if problems:
        details = [{"pointer": pointer, "code": InvalidParams.code, "detail": text} for pointer, text in problems]
        raise InvalidParams("; ".join(dict.fromkeys(text for _, text in problems)), errors=details)
    return effective


def _defaults(schema: Json) -> Json:
    properties: dict[str, Json] = schema.get("properties", {})
    return {name: copy.deepcopy(spec["default"]) for name, spec in properties.items() if "default" in spec}


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


def current_policy(settings: Settings) -> Json:
    """The verification policy that new requests are held to, as JSON. Read-only: all requests share it.

    Raises:
        PolicyInvalid: it is not there, or names no check or an unknown one.
    """
    path = settings.policy_file or DEFAULT_POLICY_FILE
    try:
        return _read_policy(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise PolicyInvalid("the policy file cannot be read") from error


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
