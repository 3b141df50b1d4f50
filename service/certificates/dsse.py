"""DSSE envelopes with one ECDSA P-256 signature, in Sigstore bundles of version 0.3.

The key is whatever `securesystemslib` can sign with: a file, Vault, a cloud's key service, a PKCS#11 token, named by a URI.
Sources: DSSE v1.0.2 (secure-systems-lab/dsse); sigstore/protobuf-specs, bundle v0.3.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signer import Signer

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

Bundle = dict[str, Any]
Statement = Mapping[str, Any]
Key = Signer
"""Whatever securesystemslib can sign with."""


class WrongKey(ValueError):
    """The key named for signing cannot be used, or is not the one that the public key says."""


def key_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key's DER SubjectPublicKeyInfo, in hex."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def pem(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """PEM SubjectPublicKeyInfo."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def open_key(uri: str, public_key: bytes) -> Key:
    """A key that stays where it is, by securesystemslib's URIs: file2:PATH, hv:NAME, awskms:ID, gcpkms:ID, azurekms:ID, hsm:….

    Args:
        public_key: its public half, PEM, which is published and which every signature is checked with before it leaves.

    Raises:
        WrongKey: no P-256 key, no such scheme, or the private half is another key's.
    """
    try:
        loaded = serialization.load_pem_public_key(public_key)
        if not isinstance(loaded, ec.EllipticCurvePublicKey) or not isinstance(loaded.curve, ec.SECP256R1):
            raise WrongKey(f"expected a P-256 public key, got {type(loaded).__name__}")
        return Key.from_priv_key_uri(uri, SSlibKey.from_crypto(loaded, keyid=key_id(loaded)))
    except WrongKey:
        raise
    except Exception as error:  # every scheme raises its own; whatever it is, nothing can be signed
        raise WrongKey(f"the signing key {uri.partition(':')[0]}:… cannot be used ({type(error).__name__}: {error})") from error


def key_of(key: ec.EllipticCurvePrivateKey) -> Key:
    """A key in memory."""
    public = key.public_key()
    return CryptoSigner(key, SSlibKey.from_crypto(public, keyid=key_id(public)))


def public_pem(key: Key) -> bytes:
    """Its public half."""
    text: str = key.public_key.keyval["public"]
    return text.encode()


def seal(statement: Statement, key: Key) -> Bundle:
    """The statement's RFC 8785 bytes, signed."""
    return seal_bytes(rfc8785.dumps(dict(statement)), key, hint=key.public_key.keyid)


def seal_bytes(payload: bytes, key: Key, *, hint: str) -> Bundle:
    """Any payload of in-toto's type, signed. A signature that the public key does not confirm never leaves.

    Args:
        hint: which public key to look for; stock tools have their own idea of what it is.

    Raises:
        securesystemslib.exceptions.VerificationError: the key service signed with another key.
    """
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(key)
    envelope.verify([key.public_key], 1)
    return {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": envelope.to_dict(),
    }


def payload_of(bundle: Bundle) -> bytes:
    """The bytes that were signed. Certificates of older releases are bare envelopes: their rows never change."""
    return base64.b64decode(bundle.get("dsseEnvelope", bundle)["payload"], validate=True)
