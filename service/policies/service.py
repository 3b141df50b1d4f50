"""The verification policies: what a result must show before it may be published. Versioned data, in files beside this one.

A file is one policy, as the worker takes it; or one of several kinds of model, each with a policy of its own under `kinds`. The
latter is resolved by the kind of the request's model into the former, and it is that document whose digest a certificate
carries. A published file never changes: another threshold is another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn

from service.catalogue import KINDS, Kind, Same, Unit, get_catalogue, of_schema, require_family, sentence, unknown_names
from service.config import Settings
from service.errors import PolicyUnfit, SamplesUnverifiable, UnknownPolicy
from service.values import sorted_json

FOLDER = Path(__file__).resolve().parent
POINTER = "/policy"

Json = dict[str, Any]

DEFAULTS: dict[tuple[Kind, frozenset[Unit]], str] = {
    ("generator", frozenset({"class"})): "basic-v1",
    ("classifier", frozenset({"class"})): "classifier-v1",
    ("classifier", frozenset({"sample"})): "classifier-samples-v1",
    ("classifier", frozenset({"class", "sample"})): "classifier-classes-and-samples-v1",
    ("i2i", frozenset({"class"})): "i2i-v1",
}
"""The packaged policy by kind of model and by what was ever forgotten, where none is named. What is missing cannot be verified
at all."""

UNITS: dict[Unit, Literal["classes", "samples"]] = {"class": "classes", "sample": "samples"}
LEFT_OUT: Json = {"kind": None, "looks": 1, "attempts": 1, "judges": 1, "slack": None, "corruptions": []}
"""Fields that came after others, with their defaults: the worker's document has them only where they say something else, so
that older policies keep their digests."""


class PolicyInvalid(RuntimeError):
    """A policy file is no policy: the service must not promise to verify by it."""


def current_policy(settings: Settings, family: str, units: Collection[Unit], name: str | None = None) -> Json:
    """The verification policy that a new request is held to, as JSON. Read-only: requests share it.

    The operator's file wins over the packaged policies: no request may choose an easier one. It cannot make verifiable what is
    not.

    Args:
        family: of the model; its kind decides which checks fit.
        units: what will have been forgotten on the lineage when this request is done, whole classes, single training items or
            both. All of it is measured every time: a later request may bring back what an earlier one took away.
        name: of the policy that the request names; None: the operator's, or the packaged one that fits.

    Raises:
        SamplesUnverifiable: nothing can verify that single items are forgotten by this kind of model.
        UnknownPolicy: there is none of this name.
        PolicyUnfit: it has no part for this kind of model, checks that are not for it, thresholds that its checks do not have,
            or none that measures what is forgotten.
        PolicyInvalid: it is not there, or names no check or an unknown one.
    """
    kind = require_family(family).kind
    fitting = DEFAULTS.get((kind, frozenset(units)))
    if fitting is None:
        said = f"forgetting single samples cannot be verified for {KINDS[kind]} yet"
        raise SamplesUnverifiable(said, pointer="/forget/samples")
    if settings.policy_file is not None and name is None:
        path = settings.policy_file
    else:
        path = place(settings, fitting if name is None else name)
    return _fit(path, _written(path), kind, frozenset(units), Same(get_catalogue()))


@lru_cache(maxsize=256)
def _fit(path: Path, written: int, kind: Kind, units: frozenset[Unit], _catalogue: Same) -> Json:
    """Worked out once for each file as it is: whether thresholds fit is a tenth of what a request costs."""
    policy = resolved(_read(path, written), kind)
    require_fit(policy, kind, units)
    return policy


# ------------------------------------------------------------------------------------------------------------ the files


def known(settings: Settings) -> dict[str, Path]:
    """The policies that a request may name, and their files: the operator's alone where there is one, else all packaged ones.

    Raises: PolicyInvalid.
    """
    if settings.policy_file is not None:
        return {read(settings.policy_file)["name"]: settings.policy_file}
    return dict(_packaged())


@lru_cache(maxsize=1)
def _packaged() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.json"))}


def named(settings: Settings, name: str) -> Json:
    """A policy by its name. Raises: UnknownPolicy, listing the known ones; PolicyInvalid."""
    return read(place(settings, name))


def place(settings: Settings, name: str) -> Path:
    """Where the policy of this name is. Raises: UnknownPolicy, listing the known ones; PolicyInvalid."""
    paths = known(settings)
    if name not in paths:
        raise UnknownPolicy(f"expected one of: {', '.join(paths)}", pointer=POINTER)
    return paths[name]


def read(path: Path) -> Json:
    """A policy file. Raises: PolicyInvalid."""
    return _read(path, _written(path))


def _written(path: Path) -> int:
    """When it was, in nanoseconds. Raises: PolicyInvalid: it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise PolicyInvalid("the policy file cannot be read") from error


def kinds_of(document: Json) -> tuple[Kind, ...]:
    """The kinds of model that a policy is for, in the catalogue's order."""
    if "kinds" in document:
        return tuple(kind for kind in KINDS if kind in document["kinds"])
    if document.get("kind"):
        return (document["kind"],)
    checks = [get_catalogue().verifiers[c["verifier"]].kinds for c in document["checks"]]
    return tuple(kind for kind in KINDS if all(kind in kinds for kinds in checks))


def resolved(document: Json, kind: Kind) -> Json:
    """What a policy asks of one kind of model: the document that the worker takes, with every default spelled out.

    It is what the worker makes of it, number by number, so that its digest is the one in reports and certificates.

    Args:
        document: as `read` gives it.

    Raises:
        PolicyUnfit: it has no part for this kind.
    """
    schema: Json = dict(get_catalogue().policy)
    filled: Json = _filled(_part(document, kind), schema, schema.get("$defs", {}))
    return filled


def _part(document: Json, kind: Kind) -> Json:
    if "kinds" not in document:
        return document
    part = document["kinds"].get(kind)
    if part is None:
        raise PolicyUnfit(f"the policy {document['name']!r} is not for {KINDS[kind]}", pointer=POINTER)
    return {"name": document["name"], "kind": kind, **part}


def _filled(value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """A value that fits a JSON schema, with what the schema says where the value says nothing."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    match schema.get("type"):
        case "number" if isinstance(value, int):
            return float(value)
        case "integer" if isinstance(value, float):
            return int(value)  # 20.0 is an integer to JSON Schema
        case "array":
            return [_filled(one, schema.get("items", {}), definitions) for one in value]
        case "object" if "properties" in schema:
            known = schema["properties"]
            given = {**{name: about["default"] for name, about in known.items() if "default" in about}, **value}
            empty: Json = {name: {} for name, about in known.items() if about.get("type") == "object"}
            filled = {name: _filled(one, known.get(name, {}), definitions) for name, one in {**empty, **given}.items()}
            return {name: one for name, one in filled.items() if name not in LEFT_OUT or one != LEFT_OUT[name]}
        case _:
            return value


def digest(policy: Json) -> str:
    """SHA-256 of a resolved policy, as certificates carry it."""
    return hashlib.sha256(sorted_json(policy)).hexdigest()


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


@lru_cache(maxsize=64)
def _read(path: Path, _mtime_ns: int) -> Json:
    try:
        document = json.loads(path.read_bytes(), parse_constant=_no_number)
        named_ = isinstance(document["name"], str)
        parts = _parts(document)
    except OSError as error:
        raise PolicyInvalid("the policy file cannot be read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PolicyInvalid("the policy file is not a policy") from error
    if not named_ or not parts:
        raise PolicyInvalid("the policy file is not a policy")
    for part in parts:
        _require_policy(part)
    return dict(document)


def _parts(document: Json) -> list[Json]:
    """The policies in a file, each as the worker takes it."""
    if "kinds" not in document:
        return [document]
    unknown = set(document) - {"name", "title", "kinds"} or set(document["kinds"]) - set(KINDS)
    if unknown or not isinstance(document.get("title", ""), str):
        raise ValueError(f"unknown keys: {unknown}")
    return [_part(document, kind) for kind in document["kinds"]]


def _require_policy(policy: Json) -> None:
    try:
        names = [check["verifier"] for check in policy["checks"]]
        thresholds = all(isinstance(check.get("params", {}), dict) for check in policy["checks"])
        unknown = set(names) - set(get_catalogue().verifiers)
    except (KeyError, TypeError, AttributeError) as error:
        raise PolicyInvalid("the policy file is not a policy") from error
    if not names or unknown or not thresholds:
        raise PolicyInvalid(f"the policy names no check, or unknown ones: {sorted(map(str, unknown))}")
    if wrong := sorted(e.json_path for e in of_schema(get_catalogue().policy).iter_errors(policy)):
        raise PolicyInvalid(f"the policy does not fit its schema at: {', '.join(wrong)}")
    if len(set(names)) != len(names):
        raise PolicyInvalid("the policy names a check twice: the findings of one would stand for the other's")


# ---------------------------------------------------------------------------------------------------------- does it fit?


def require_fit(policy: Json, kind: Kind, units: Collection[Unit]) -> None:
    """Refuse now what would only be noticed when the work is done. Raises: PolicyUnfit."""
    verifiers = {c["verifier"]: get_catalogue().verifiers[c["verifier"]] for c in policy["checks"]}
    unfit = sorted(name for name, entry in verifiers.items() if kind not in entry.kinds)
    if unfit:
        raise PolicyUnfit(f"the policy {policy['name']!r} has checks that are not for {KINDS[kind]}: {', '.join(unfit)}")
    if policy.get("kind", kind) != kind:
        raise PolicyUnfit(f"the policy {policy['name']!r} is for {KINDS[policy['kind']]}, and this is {KINDS[kind]}")
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
        yield from (text for _, text in unknown_names(schema, params, "check"))
        wrong = (e for e in of_schema(schema).iter_errors(params) if e.validator != "additionalProperties")
        yield from (text for _, text in map(sentence, wrong))


def classes_held_out(
    policy: Mapping[str, Any],
    forgotten: Collection[int],
    of_samples: Collection[int],
    class_count: int,
    *,
    set_aside: Collection[int] = (),
) -> set[int]:
    """The classes of which a policy's checks look at held-out images. A check of what nobody forgot is not run.

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


def least_held_out(policy: Mapping[str, Any]) -> int:
    """How many held-out images of a class a policy's checks need: of one completed image nobody knows how others differ."""
    return 2 if any(get_catalogue().verifiers[c["verifier"]].completes for c in policy["checks"]) else 1
