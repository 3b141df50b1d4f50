"""What every check shares: its report, strict JSON and base64, files held against named digests, DSSE signatures."""

import base64
import functools
import hashlib
import io
import json
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

GOOD, TAMPERED, UNDECIDED, USAGE = 0, 1, 2, 3
PAYLOAD_TYPE, BUNDLE = "application/vnd.in-toto+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_DOCUMENT_BYTES, MAX_LINE_BYTES = 32 << 20, 8 << 10
Args = ParamSpec("Args")


class Tampered(ValueError):
    """Something is not what was signed or logged; the message names it."""


class Undecided(Exception):
    """Something that a decision needs is missing."""


class Report(NamedTuple):
    """What a check found, and facts that are under signatures where it is good."""

    status: int
    reason: str
    facts: Mapping[str, Any] = {}
    statement: Mapping[str, Any] = {}
    """What was signed, where that is one statement."""

    @property
    def valid(self) -> bool:
        return self.status == GOOD


def reported(check: Callable[Args, tuple[Any, ...]]) -> Callable[Args, Report]:
    """A check that returns (reason, facts) or more, or raises, as one that returns a report."""

    @functools.wraps(check)
    def run(*args: Args.args, **options: Args.kwargs) -> Report:
        try:
            return Report(GOOD, *check(*args, **options))
        except Tampered as error:
            return Report(TAMPERED, str(error))
        except Undecided as error:
            return Report(UNDECIDED, str(error))
        except OSError as error:
            return Report(UNDECIDED, f"{error.filename or 'a file'} cannot be read: {error.strerror}")

    return run


@contextmanager
def about(what: str) -> Iterator[None]:
    """Whatever goes wrong while a document is taken apart is the document's fault, and its name comes first."""
    try:
        yield
    except Tampered as error:
        raise Tampered(f"{what}: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, RecursionError) as error:
        raise Tampered(f"{what} is not readable as one of ours") from error


def walk(directory: Path) -> dict[str, Path]:
    """Every file of a folder by its path. Links, pipes and empty folders are refused: nothing is published as one."""
    found: dict[str, Path] = {}
    folders = [directory]
    while folders:
        inside = list((here := folders.pop()).iterdir())
        if not inside and here != directory:
            raise Tampered(f"{here.relative_to(directory).as_posix()} is an empty folder")
        for path in inside:
            name, mode = path.relative_to(directory).as_posix(), path.lstat().st_mode
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                found[name] = path
            else:
                raise Tampered(f"{name} is neither a file nor a folder")
    return found


def read(path: Path | None, what: str) -> bytes:
    """A whole document."""
    if path is None:
        raise Undecided(f"there is no {what}")
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise Tampered(f"{what} is too long to be one of ours")
    return path.read_bytes()


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_same(named: Mapping[str, str], present: Mapping[str, str], by: str) -> None:
    """Files by path and digest: exactly those that are named."""
    for name in sorted(named.keys() | present.keys()):
        if named.get(name) != present.get(name):
            wrong = f"is not named by {by}" if name not in named else "was changed" if name in present else "is missing"
            raise Tampered(f"{name} {wrong}")


def require_sums(sums: bytes | Path | None, present: Mapping[str, str]) -> None:
    """Files against SHA256SUMS, in the form of coreutils. With every checkpoint it grows: only the files limit it."""
    if sums is None:
        raise Undecided("there is no SHA256SUMS")
    named: dict[str, str] = {}
    with about("SHA256SUMS"), io.BytesIO(sums) if isinstance(sums, bytes) else sums.open("rb") as lines:
        while len(named) <= len(present) and (line := lines.readline(MAX_LINE_BYTES)):
            digest, name = line.decode().removesuffix("\n").split("  ", 1)
            named[name] = digest
    require_same(named, present, "SHA256SUMS")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) != len(pairs):
        raise Tampered("a key appears twice")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_each_once)


def unjson(data: bytes) -> dict[str, Any]:
    """A JSON object, no key twice. Raises: ValueError."""
    if not isinstance(value := _STRICT.decode(data.decode()), dict):
        raise Tampered("expected a JSON object")
    return value


def unbase64(text: str) -> bytes:
    """Only what encodes to this very text: no bit of it may go unread. Raises: ValueError."""
    if base64.b64encode(data := base64.b64decode(text, validate=True)).decode() != text:
        raise ValueError("expected canonical base64")
    return data


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The signer's, from PEM."""
    try:
        key = serialization.load_pem_public_key(read(path, "key file"))
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise Undecided("the key file holds no ECDSA P-256 public key in PEM form")


def envelope(data: bytes) -> tuple[bytes, bytes, set[str]]:
    """Payload, signature and names of its key, of a Sigstore bundle around a DSSE envelope; older releases wrote no bundle."""
    outer, names = unjson(data), set()
    if "payload" not in outer:
        material = outer["verificationMaterial"]
        shape = (len(outer), material.keys() | {"timestampVerificationData"}, material["publicKey"].keys())
        expected = (3, {"publicKey", "tlogEntries", "timestampVerificationData"}, {"hint"})
        if shape != expected or outer["mediaType"] != BUNDLE or material["tlogEntries"] != []:
            raise Tampered("expected a Sigstore bundle of version 0.3 around the signature of a key")
        names, outer = {material["publicKey"]["hint"]}, outer["dsseEnvelope"]
    (one,) = outer["signatures"] if len(outer["signatures"]) == 1 else [{}]
    if outer.keys() != {"payload", "payloadType", "signatures"} or outer["payloadType"] != PAYLOAD_TYPE or len(one) != 2:
        raise Tampered(f"expected a payload of {PAYLOAD_TYPE} and exactly one signature")
    return unbase64(outer["payload"]), unbase64(one["sig"]), names | {one["keyid"]}


def signed(data: bytes, key: ec.EllipticCurvePublicKey, kind: str) -> tuple[bytes, dict[str, Any]]:
    """The payload that this key signed (DSSE v1), and the in-toto statement of one kind that it is."""
    payload, signature, names = envelope(data)
    forms = (serialization.Encoding.DER, serialization.Encoding.PEM)  # tools name keys by the one or the other
    known = [key.public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo) for form in forms]
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        if not names <= {"", *(hashlib.sha256(one).hexdigest() for one in known)}:
            raise InvalidSignature
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Tampered("it is not signed by this key, or was changed after signing") from None
    return payload, statement_of(payload, kind)


def statement_of(payload: bytes, kind: str) -> dict[str, Any]:
    """An in-toto Statement v1 of one kind."""
    if (said := unjson(payload)).get("_type") != STATEMENT_TYPE or said.get("predicateType") != kind:
        raise Tampered(f"it is a statement of another kind than {kind}")
    return said
