"""What a published checkpoint is verified with, put together by whoever wants to know: its spec, and where its inputs are.

The certificate beside the checkpoint, where there is one, says what was to be forgotten, of which original, with which data and
under which seed; what the caller brings is held against it. Nothing here trusts its signature: `expunge verify` looks at that.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service import files
from service.audit.leaves import sample_digest
from service.catalogue import get_catalogue
from service.errors import BadLocation, PolicyUnfit
from service.policies import service as policies
from service.verifier.certificate import EVIDENCE_FOLDER, Tampered, Undecided, read_statement
from worker.contract import DatasetSpec, FileEntry, Policy, RetainData, Spec

REQUEST = "verify-model"
"""The id of a request that nobody made."""

SAMPLE_SETS = ("samples", "samplesForgottenEarlier")

Json = dict[str, Any]


class Misused(Exception):
    """What was asked for cannot be meant."""


class Undecidable(Exception):
    """Something is missing without which no verdict can be reached."""


class Unsound(Exception):
    """The checkpoint is not what the certificate beside it says."""


@dataclass(frozen=True)
class Wanted:
    """What the caller brings, as it came from the command line."""

    directory: Path
    policy: str | None = None
    data: Path | None = None
    original: Path | None = None
    parent: Path | None = None
    reference: Path | None = None
    held_out: Path | None = None
    prompts: Path | None = None
    samples: Sequence[Path] = ()
    forget: Sequence[str] = ()
    class_names: Sequence[str] = ()
    family: str | None = None
    seed: int | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Folder:
    """A model or a dataset as it lies there: its files, hashed, without the certificate. `whole`: are these all of them?"""

    path: Path
    entries: tuple[FileEntry, ...]
    whole: bool

    @property
    def digest(self) -> str:
        return files.tree_digest([files.FileEntry(e.path, e.size, e.sha256) for e in self.entries])


@dataclass(frozen=True)
class Dossier:
    """Everything that the gate needs."""

    spec: Spec
    candidate: Folder
    original: Folder
    parent: Folder
    data: Folder
    reference: Folder | None
    certificate: Json | None = field(default=None, repr=False)
    """The predicate of the certificate's statement."""


def assemble(wanted: Wanted) -> Dossier:
    """Read, hash and compare.

    Raises:
        Misused: a name, a file or a policy that is none, or none that fits.
        Undecidable: the data, the original or another input is missing, or is not the one that the certificate names.
        Unsound: the checkpoint's files are not those that the certificate names.
    """
    certificate = _certificate(wanted.directory)
    facts = _facts(wanted, certificate)
    lacking = [f"the {what} (--{what})" for what in ("data", "original") if getattr(wanted, what) is None]
    if lacking:
        raise Undecidable(f"nothing can be verified without {' and '.join(lacking)}")
    assert wanted.data is not None
    assert wanted.original is not None
    candidate, original, data = folder(wanted.directory), folder(wanted.original), folder(wanted.data, suffix=".npz")
    _require_original(certificate, original)
    described = _described(wanted, certificate, data, facts["class_names"])
    parent = _parent(wanted, certificate, original)
    reference = folder(wanted.reference) if wanted.reference else None
    try:
        spec = Spec(
            **facts,
            policy=_policy(wanted, certificate, facts),
            dataset=described,
            base_digest=parent.digest,
            original_digest=original.digest,
            reference_digest=reference.digest if reference else None,
            ranks=wanted.ranks,
        )
    except ValidationError as error:
        said = "; ".join(e["msg"] for e in error.errors(include_url=False, include_input=False))
        raise Misused(f"this makes no request that could be verified: {said}") from error
    return Dossier(spec, candidate, original, parent, data, reference, certificate)


def folder(path: Path, *, suffix: str | None = None) -> Folder:
    """A folder's files, hashed; of a published checkpoint without its certificate.

    Args:
        suffix: the path may also be one file of this type.

    Raises:
        Misused: there is none, it cannot be read, or it holds links or special files.
    """
    try:
        location = files.read_location(str(path.absolute()), single_suffix=suffix)
        kept = tuple(f for f in location.files if f.path.split("/")[0] != EVIDENCE_FOLDER)
        hashed = files.hash_files(files.Location(location.url, kept))
    except BadLocation as error:
        raise Misused(f"{path}: {error.detail}") from error
    if not kept:
        raise Misused(f"{path}: expected the files of a model, found none")
    entries = tuple(FileEntry(path=e.path, size=e.size, sha256=e.sha256) for e in hashed)
    return Folder(Path(location.url), entries, whole=path.is_dir() and len(kept) == len(location.files))


# ------------------------------------------------------------------------------------------------------ the certificate


def _certificate(directory: Path) -> Json | None:
    if not directory.is_dir():
        raise Misused(f"{directory}: there is no such folder")
    try:
        statement = read_statement(directory)
    except Tampered as error:
        raise Unsound(str(error)) from error
    except Undecided as error:
        raise Misused(str(error)) from error
    if statement is not None and not isinstance(statement.get("predicate"), dict):
        raise Unsound("the certificate states nothing")
    return None if statement is None else statement["predicate"]


def _require_original(certificate: Json | None, original: Folder) -> None:
    if certificate is not None and certificate["original"]["digest"] != original.digest:
        raise Undecidable("the original (--original) is not the one that the certificate names")


def _parent(wanted: Wanted, certificate: Json | None, original: Folder) -> Folder:
    """The version that the checkpoint was made from; the original, where nothing says otherwise."""
    parent = folder(wanted.parent) if wanted.parent else original
    if certificate is not None and certificate["parent"]["digest"] != parent.digest:
        what = "is not the one that the certificate names" if wanted.parent else "is not the original, and is needed"
        raise Undecidable(f"the version that it was made from (--parent) {what}")
    return parent


def _described(wanted: Wanted, certificate: Json | None, data: Folder, class_names: Sequence[str]) -> DatasetSpec:
    """How the data are read, and which of them are held out: proved by the certificate, where there is one."""
    held_out = tuple(map(str, _json(wanted.held_out, list))) if wanted.held_out else ()
    form = "npz" if any(e.path.lower().endswith(".npz") for e in data.entries) else "image_folder"
    if certificate is not None:
        entries = [files.FileEntry(e.path, e.size, e.sha256) for e in data.entries]
        came = files.dataset_digest(entries, format=form, class_names=class_names, held_out_ids=held_out)
        if came != certificate["dataset"]["digest"]:
            raise Undecidable("the data (--data), or which of them are held out (--held-out), are not those of the certificate")
    return DatasetSpec(format=form, digest=data.digest, held_out_ids=tuple(sorted(held_out)))


# ------------------------------------------------------------------------------------------------------------ the facts


def _facts(wanted: Wanted, certificate: Json | None) -> Json:
    """The fields of the spec that say which model it is, and what it was to forget."""
    try:
        said = _certified(certificate) if certificate is not None else {}
    except (LookupError, TypeError, ValueError) as error:
        raise Unsound("the certificate's claims are not readable") from error
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
    return {
        "request_id": said.get("request_id", REQUEST),
        "family": family,
        "method": said.get("method", REQUEST),
        "seed": 0,
        "verification_seed": _seed(wanted, said),
        "class_names": names,
        "prompts": _prompts(wanted, names),
        # of a request for samples, classes can only have been forgotten before
        "forget_classes": () if samples else tuple(sorted(forget)),
        "forget_samples": tuple(sorted(samples)),
        "forgotten_classes": tuple(sorted(earlier | forget if samples else earlier)),
        "retain": RetainData(proxy_classes=tuple(said["proxy_classes"])) if said.get("proxy_classes") else None,
    }


def _certified(certificate: Json) -> Json:
    """The claims that are used. Raises: LookupError, TypeError, ValueError where they are not as ours are."""
    forgotten = certificate["forgetSet"]
    texts = [certificate[key]["digest"] for key in ("original", "parent", "dataset")] + [certificate["certificate"]["id"]]
    texts += [forgotten[key]["sha256"] for key in SAMPLE_SETS if key in forgotten] + [certificate["plan"]["policySha256"]]
    dicts = [certificate["plan"]["policy"], *certificate["verification"]["findings"]]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, dict) for one in dicts):
        raise TypeError("expected texts and objects")
    return {
        "request_id": certificate["request"]["id"],
        "family": certificate["model"]["family"],
        "method": certificate["algorithm"]["name"],
        "class_names": tuple(certificate["model"]["classNames"]),
        "forget_classes": tuple(forgotten["classes"]),
        "forgotten_classes": tuple(forgotten["forgottenEarlier"]),
        "proxy_classes": tuple(certificate.get("retainData", {}).get("proxyClasses", ())),
        "verification_seed": int(certificate["verification"]["seed"]),
    }


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


def _samples(wanted: Wanted, certificate: Json | None) -> set[str]:
    """The ids of all single items that were ever to be forgotten. A certificate has only their number and digest."""
    given = [tuple(map(str, _json(path, list))) for path in wanted.samples]
    if certificate is None:
        return {name for ids in given for name in ids}
    forgotten, request_id = certificate["forgetSet"], certificate["request"]["id"]
    sets = [forgotten[key] for key in SAMPLE_SETS if key in forgotten]
    digests = {sample_digest(request_id, ids).sha256: ids for ids in given}
    found = [digests[one["sha256"]] for one in sets if one["sha256"] in digests]
    if len(found) < len(sets):
        raise Undecidable("the ids of the forgotten samples (--samples, a JSON list for each set of them) are needed")
    if len(given) > len(found):
        raise Misused("--samples: expected the ids that the certificate speaks of, found others")
    return {name for ids in found for name in ids}


def _prompts(wanted: Wanted, names: Sequence[str]) -> tuple[str, ...]:
    if wanted.prompts is None:
        return ()
    prompts = _json(wanted.prompts, dict)
    if set(prompts) != set(names) or not all(isinstance(text, str) for text in prompts.values()):
        raise Misused("--prompts: expected a JSON object with a prompt for every class name")
    return tuple(prompts[name] for name in names)


def _json(path: Path, kind: type[Any]) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Misused(f"{path}: expected a file that holds JSON") from error
    if not isinstance(value, kind):
        raise Misused(f"{path}: expected a JSON {'list' if kind is list else 'object'}")
    return value


# ----------------------------------------------------------------------------------------------------------- the policy


def _policy(wanted: Wanted, certificate: Json | None, facts: Json) -> Policy:
    """The policy that the caller names, else the certificate's own."""
    kind = get_catalogue().families[facts["family"]].kind
    if wanted.policy is None:
        if certificate is None:
            raise Misused("expected --policy, a name or a file")
        return certified_policy(certificate)
    path = policies.FOLDER / f"{wanted.policy}.json"
    known = sorted(p.stem for p in policies.FOLDER.glob("*.json"))
    units: set[Any] = {"class"} if facts["forget_classes"] or facts["forgotten_classes"] else set()
    try:
        document = policies.read(path if wanted.policy in known else Path(wanted.policy))
        policy = policies.resolved(document, kind)
        policies.require_fit(policy, kind, units | ({"sample"} if facts["forget_samples"] else set()))
        return Policy.model_validate(policy)
    except PolicyUnfit as error:
        raise Misused(error.detail) from error
    except (policies.PolicyInvalid, ValidationError) as error:
        raise Misused(f"--policy: {error}; expected a file, or one of: {', '.join(known)}") from error


def certified_policy(certificate: Mapping[str, Any]) -> Policy:
    """The policy of a certificate, whose fractions are decimal strings there.

    Raises:
        Misused: it cannot be told which string was a number.
    """
    stated, expected = certificate["plan"]["policy"], certificate["plan"]["policySha256"]
    try:
        checks = [{**check, "params": _numbers(check.get("params", {}))} for check in stated["checks"]]
        policy = Policy.model_validate({**stated, "checks": checks})
    except (ValidationError, LookupError, TypeError) as error:
        raise Unsound("the certificate's policy is not readable") from error
    if policies.digest(policy.model_dump(mode="json")) != expected:
        raise Misused("the certificate's policy cannot be read back without doubt: name it with --policy")
    return policy


def _numbers(value: Any) -> Any:
    """JSON values with every decimal string as the number that it was; thresholds are no texts that look like numbers."""
    match value:
        case str():
            try:
                return float(value) if "." in value else value
            except ValueError:
                return value
        case list():
            return [_numbers(one) for one in value]
        case dict():
            return {key: _numbers(one) for key, one in value.items()}
        case _:
            return value
