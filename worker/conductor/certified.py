"""What the certificate beside a checkpoint says, as far as it may be used to verify the checkpoint again.

Whoever brings the signer's key has the signature verified first, as `expunge verify` does. Without it the certificate is a
stranger's word: it may say what is to be looked for, but not how hard, nor that something need not be looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from service.catalogue import KINDS, get_catalogue
from service.policies import service as policies
from service.verifier.certificate import read_statement, verify_directory
from service.verifier.reading import TAMPERED, Tampered, Undecided
from worker.conductor.wanted import Json, Misused, Undecidable, Unsound
from worker.contract import Policy

SAMPLE_SETS = ("samples", "samplesForgottenEarlier")
Signature = Literal["verified", "not checked"]


@dataclass(frozen=True)
class Certificate:
    """The predicate of the certificate's statement, and whether its signature was verified."""

    predicate: Json = field(repr=False)
    signature: Signature

    @property
    def verified(self) -> bool:
        return self.signature == "verified"


def read(directory: Path, key: Path | None) -> Certificate | None:
    """The certificate beside a checkpoint; None: there is none, and no key that asks for one.

    Raises:
        Misused: there is no such folder, or something cannot be read.
        Undecidable: a key was given, and without a certificate or a readable key nothing can be verified.
        Unsound: the folder is not what the certificate names, or the certificate not what the key signed.
    """
    if not directory.is_dir():
        raise Misused(f"{directory}: there is no such folder")
    if key is not None:
        outcome = verify_directory(directory, key)
        if not outcome.valid:
            raise (Unsound if outcome.status == TAMPERED else Undecidable)(outcome.reason)
        return Certificate(dict(outcome.statement["predicate"]), "verified")
    try:
        statement = read_statement(directory)
    except Tampered as error:
        raise Unsound(str(error)) from error
    except (Undecided, OSError) as error:
        raise Misused(str(error)) from error
    if statement is not None and not isinstance(statement.get("predicate"), dict):
        raise Unsound("the certificate states nothing")
    return None if statement is None else Certificate(statement["predicate"], "not checked")


def claims(certificate: Certificate) -> Json:
    """The claims that are used.

    Raises:
        Unsound: they are not written as ours are, or its policy is not the one that its digest names, or not for its family.
    """
    try:
        said = _read(certificate.predicate)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unsound("the certificate's claims are not readable") from error
    said["policy"] = certified_policy(certificate.predicate)
    require_kind(said["policy"], said["family"])
    return said


def _read(certificate: Json) -> Json:
    """The claims that are used. Raises: LookupError, TypeError, ValueError where they are not as ours are."""
    forgotten = certificate["forgetSet"]
    texts = [certificate[key]["digest"] for key in ("original", "parent", "dataset")] + [certificate["certificate"]["id"]]
    texts += [certificate["request"]["id"], certificate["model"]["family"], certificate["algorithm"]["name"]]
    texts += [certificate["model"].get("promptsSha256", "")]
    samples = [forgotten[key] for key in SAMPLE_SETS if key in forgotten]
    texts += [one.get("sha256", "") for one in samples] + [certificate["plan"]["policySha256"]]
    if any(type(one["count"]) is not int for one in samples):
        raise TypeError("expected numbers of samples")
    dicts = [certificate["plan"]["policy"], *certificate["verification"]["findings"]]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, dict) for one in dicts):
        raise TypeError("expected texts and objects")
    return {
        "request_id": certificate["request"]["id"],
        "family": certificate["model"]["family"],
        "method": certificate["algorithm"]["name"],
        "params": _parameters(certificate["algorithm"].get("parameters", {})),
        "prompts_sha256": certificate["model"].get("promptsSha256"),
        "class_names": tuple(certificate["model"]["classNames"]),
        "forget_classes": tuple(forgotten["classes"]),
        "forgotten_classes": tuple(forgotten["forgottenEarlier"]),
        "proxy_classes": tuple(certificate.get("retainData", {}).get("proxyClasses", ())),
        "verification_seed": int(certificate["verification"]["seed"]),
    }


def _parameters(stated: Any) -> Json:
    """A method's parameters, as numbers. Raises: TypeError: they are no object."""
    if not isinstance(stated, dict):
        raise TypeError("expected an object of parameters")
    read: Json = numbers(stated)
    return read


# ----------------------------------------------------------------------------------------------------------- the policy


def certified_policy(certificate: Mapping[str, Any]) -> Policy:
    """The policy of a certificate, whose fractions are decimal strings there.

    Raises:
        Unsound: it is none, not the one that `policySha256` names, or another than the packaged one of its name.
    """
    stated, expected = certificate["plan"]["policy"], certificate["plan"]["policySha256"]
    try:
        checks = [{**check, "params": numbers(check.get("params", {}))} for check in stated["checks"]]
        policy = Policy.model_validate({**stated, "checks": checks})
    except (ValidationError, LookupError, TypeError) as error:
        raise Unsound("the certificate's policy is not readable") from error
    if policies.digest(policy.model_dump(mode="json")) != expected:
        raise Unsound("the certificate's policy is not the one that its policySha256 names")
    _require_packaged(policy)
    return policy


def require_kind(policy: Policy, family: str) -> None:
    """Is a certificate's policy for this kind of model? Another kind's asks for other checks, or for none that see anything.

    Raises: Unsound.
    """
    catalogue = get_catalogue()
    if family not in catalogue.families:
        return  # the caller will have to say which family it is
    kind = catalogue.families[family].kind
    checks = (catalogue.verifiers[c.verifier] for c in policy.checks if c.verifier in catalogue.verifiers)
    if policy.kind not in (None, kind) or any(kind not in check.kinds for check in checks):
        raise Unsound(f"the certificate's policy {policy.name!r} is not for {KINDS[kind]}, which a {family} model is")


def _require_packaged(policy: Policy) -> None:
    """More attempts only make a policy stricter. Raises: Unsound: it has the name of a packaged one, and other thresholds."""
    path = policies.FOLDER / f"{policy.name}.json"
    if not path.is_file():
        return
    packaged = policies.read(path)
    known = [policies.resolved(packaged, kind) for kind in policies.kinds_of(packaged)]
    same = [
        Policy.model_validate({**one, "attempts": policy.attempts})
        for one in known
        if one.get("attempts", 1) <= policy.attempts
    ]
    if policy not in same:
        raise Unsound(f"the certificate's policy is called {policy.name!r}, and is not the policy of that name")


def numbers(value: Any) -> Any:
    """JSON values with every decimal string as the number that it was; thresholds are no texts that look like numbers."""
    match value:
        case str():
            try:
                return float(value) if "." in value else value
            except ValueError:
                return value
        case list():
            return [numbers(one) for one in value]
        case dict():
            return {key: numbers(one) for key, one in value.items()}
        case _:
            return value
