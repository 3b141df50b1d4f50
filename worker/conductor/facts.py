"""Which model a checkpoint is, what it was to forget, what it is held to: as the caller says, else as its certificate does."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service import catalogue
from service.audit.leaves import sample_digest
from service.catalogue import get_catalogue
from service.certificates import commitment
from service.certificates.statement import prompts_digest
from service.errors import InvalidParams, PolicyUnfit, UnknownMethod
from service.policies import service as policies
from service.values import plain_text
from worker.conductor import certified
from worker.conductor.certified import SAMPLE_SETS, Certificate
from worker.conductor.wanted import REQUEST, Json, Misused, Undecidable, Wanted, read_json
from worker.contract import Policy, RetainData


def gather(wanted: Wanted, certificate: Certificate | None) -> Json:
    """The fields of the spec that do not follow from files.

    Raises:
        Misused: a name, a file or a policy that is none, or none that fits.
        Undecidable: ids, prompts or classes are missing, or are not those that the certificate names; or its signature was not
            checked, and the caller does not say what the model is held to.
        Unsound: the certificate contradicts itself.
    """
    said = certified.claims(certificate) if certificate is not None else {}
    if certificate is not None and not certificate.verified:
        said = _of_a_stranger(wanted, said)
    family, names = wanted.family or said.get("family"), tuple(wanted.class_names) or said.get("class_names", ())
    if family not in get_catalogue().families:
        raise Misused(f"expected --family, one of: {', '.join(sorted(get_catalogue().families))}")
    if len(names) < 2:
        raise Misused("expected the model's class names, in index order: --class NAME for each")
    forget = {*said.get("forget_classes", ()), *(_class_index(one, names) for one in wanted.forget)}
    samples = _samples(wanted, certificate)
    earlier = set(said.get("forgotten_classes", ()))
    if not forget and not samples:
        raise Misused("expected the classes that were to be forgotten: --forget CLASS …")
    method, params = _recipe(wanted, said, family, "sample" if samples else "class")
    proxies = _proxies(wanted, certificate, said, names)
    facts = {
        "request_id": said.get("request_id", REQUEST),
        "family": family,
        "method": method,
        "params": params,  # what a method leaves frozen follows from them
        "seed": 0,
        "verification_seed": _seed(wanted, said),
        "class_names": names,
        "prompts": _prompts(wanted, said.get("prompts_sha256"), family, names),
        # of a request for samples, classes can only have been forgotten before
        "forget_classes": () if samples else tuple(sorted(forget)),
        "forget_samples": tuple(sorted(samples)),
        "forgotten_classes": tuple(sorted(earlier | forget if samples else earlier)),
    }
    retain = RetainData(proxy_classes=proxies) if proxies else None
    return facts | {"retain": retain, "policy": _policy(wanted, said, facts)}


def _of_a_stranger(wanted: Wanted, said: Json) -> Json:
    """What an unverified certificate is believed: what to look for, never how hard.

    Its policy may let everything pass, its method leave nothing frozen, and its seed be the luckiest of a thousand.
    """
    lacking = [name for name, given in (("--policy", wanted.policy), ("--method", wanted.method)) if given is None]
    if lacking:
        raise Undecidable(
            "the certificate says what the model is held to, and its signature was not checked: "
            f"expected the signer's key (--key), or {' and '.join(lacking)}"
        )
    return {name: one for name, one in said.items() if name not in ("policy", "method", "params", "verification_seed")}


def _recipe(wanted: Wanted, said: Mapping[str, Any], family: str, unit: catalogue.Unit) -> tuple[str, Json]:
    """The method that the model was made with, and its parameters."""
    if wanted.method is None:
        if wanted.params is not None:
            raise Misused("--params: expected --method beside it")
        return said.get("method", REQUEST), said.get("params", {})
    given = read_json(wanted.params, dict) if wanted.params else {}
    try:
        method = catalogue.choose_method(family, wanted.method)
        return method, catalogue.effective_params(method, family, given, unit=unit)
    except UnknownMethod as error:
        raise Misused(f"--method: {error.detail}") from error
    except InvalidParams as error:
        raise Misused(f"--params: {error.detail}") from error


def _proxies(wanted: Wanted, certificate: Certificate | None, said: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...]:
    """Classes of which nobody asks whether the model still knows them: never on the word of an unverified certificate."""
    if wanted.proxy_classes is not None:
        return tuple(sorted({_class_index(one, names) for one in wanted.proxy_classes}))
    stated: tuple[int, ...] = said.get("proxy_classes", ())
    if stated and certificate is not None and not certificate.verified:
        raise Undecidable(
            "the certificate sets classes aside, which would not be verified as retained, and its signature was not checked: "
            "expected the signer's key (--key), or the classes (--proxy-class, without a name for none)"
        )
    return stated


def _seed(wanted: Wanted, said: Mapping[str, Any]) -> int:
    if wanted.seed is not None:
        return wanted.seed
    seed: int = said.get("verification_seed", secrets.randbelow(2**53))
    return seed


def _class_index(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(names):
        return int(name)
    raise Misused(f"expected classes of the model to forget: {', '.join(names)}, or their indices")


def _samples(wanted: Wanted, certificate: Certificate | None) -> set[str]:
    """The ids of all single items that were ever to be forgotten. A certificate has only their number and a commitment to them,
    those of older releases a digest of each set."""
    given = [tuple(map(str, read_json(path, list))) for path in wanted.samples]
    if certificate is None:
        return {name for ids in given for name in ids}
    forgotten, request_id = certificate.predicate["forgetSet"], certificate.predicate["request"]["id"]
    sets = [forgotten[key] for key in SAMPLE_SETS if key in forgotten]
    if any("sha256" not in one for one in sets):
        return _opened(wanted, forgotten.get("commitment"), sum(one["count"] for one in sets))
    digests = {sample_digest(request_id, ids).sha256: ids for ids in given}
    found = [digests[one["sha256"]] for one in sets if one["sha256"] in digests]
    if len(found) < len(sets):
        raise Undecidable("the ids of the forgotten samples (--samples, a JSON list for each set of them) are needed")
    if len(given) > len(found):
        raise Misused("--samples: expected the ids that the certificate speaks of, found others")
    return {name for ids in found for name in ids}


def _opened(wanted: Wanted, committed: Any, count: int) -> set[str]:
    """The same, from openings of the certificate's commitment, as `GET /checkpoints/{id}/membership` answers with them.

    Raises: Undecidable: not one for each; Misused: one does not lead to this commitment.
    """
    openings = [one for path in wanted.samples for one in read_json(path, list)]
    if not all(isinstance(one, dict) for one in openings):
        raise Undecidable("--samples: the certificate commits to the ids: an opening of each is needed, not the id alone")
    try:
        good = all(one["commitment"] == committed and commitment.holds(one) for one in openings)
        found = {str(one["item"]) for one in openings}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Misused("--samples: expected openings as the service answers with them") from error
    if not good:
        raise Misused("--samples: an opening does not lead to the commitment of the certificate")
    if len(found) != count:
        raise Undecidable(f"openings of the {count} forgotten samples (--samples) are needed, {len(found)} are here")
    return found


def _prompts(wanted: Wanted, certified_sha256: str | None, family: str, names: Sequence[str]) -> tuple[str, ...]:
    """Needed of a model that is asked by prompts: a certificate has their digest at most, and names may show less.

    Other prompts than those of the certificate ask another question of the model.
    """
    if wanted.prompts is None:
        asked_by_names = certified_sha256 is not None and certified_sha256 == prompts_digest({name: name for name in names})
        if get_catalogue().families[family].prompts and not asked_by_names:
            raise Undecidable(f"the prompts of a {family} model (--prompts) are needed, be they its class names")
        return ()
    prompts = read_json(wanted.prompts, dict)
    if set(prompts) != set(names) or not all(map(_is_text, prompts.values())):
        raise Misused("--prompts: expected a JSON object with a prompt for every class name")
    if certified_sha256 is not None and prompts_digest(prompts) != certified_sha256:
        raise Undecidable("the prompts (--prompts) are not those of the certificate")
    return tuple(prompts[name] for name in names)


def _is_text(value: Any) -> bool:
    """A string that has an RFC 8785 form."""
    try:
        return isinstance(value, str) and bool(plain_text(value))
    except ValueError:
        return False


def _policy(wanted: Wanted, said: Mapping[str, Any], facts: Json) -> Policy:
    """The policy that the caller names, else the certificate's own."""
    if wanted.policy is None:
        if "policy" not in said:
            raise Misused("expected --policy, a name or a file")
        policy: Policy = said["policy"]
        certified.require_kind(policy, facts["family"])
        return policy
    kind = get_catalogue().families[facts["family"]].kind
    path = policies.FOLDER / f"{wanted.policy}.json"
    known = sorted(p.stem for p in policies.FOLDER.glob("*.json"))
    units: set[Any] = {"class"} if facts["forget_classes"] or facts["forgotten_classes"] else set()
    try:
        document = policies.read(path if wanted.policy in known else Path(wanted.policy))
        named = policies.resolved(document, kind)
        policies.require_fit(named, kind, units | ({"sample"} if facts["forget_samples"] else set()))
        return Policy.model_validate(named)
    except PolicyUnfit as error:
        raise Misused(error.detail) from error
    except (policies.PolicyInvalid, ValidationError) as error:
        raise Misused(f"--policy: {error}; expected a file, or one of: {', '.join(known)}") from error
