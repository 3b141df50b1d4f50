"""`model.sig`: the OpenSSF Model Signing manifest of a published checkpoint, as the stock `model_signing` tool checks it. Pure.

Written from digests that the signer has just computed itself, in one pass over files that may lie in an object store; the
stock library would want them in a folder and read them once more. Source: OpenSSF Model Signing specification v1.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
NAME = "model.sig"
UNSIGNED = ("UNLEARNING", NAME)
"""Evidence may be added later: an inclusion proof exists only after what it proves has been written."""


def root(digests: Mapping[str, str]) -> str:
    """SHA-256 over the files' digests in name order, hex; it binds the set, and not the names."""
    return hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests))).hexdigest()


def statement(model: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The manifest.

    Args:
        digests: SHA-256 of every published file by its path.
    """
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": model, "digest": {"sha256": root(digests)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(UNSIGNED),
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in sorted(digests)],
        },
    }


def hint(public_key_pem: bytes) -> str:
    """What the stock tool calls the key: SHA-256 of its PEM text, hex."""
    return hashlib.sha256(public_key_pem).hexdigest()
