"""Ed25519 keys in files: those of the log, and those of a witness."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service import durable


def load(path: Path) -> Ed25519PrivateKey:
    """Raises: OSError; ValueError: the file holds something else than an unencrypted Ed25519 key."""
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"expected an Ed25519 private key in {path.name}, got {type(key).__name__}")
    return key


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """The key at `path`, made on first use with mode 0600. Raises: OSError, ValueError."""
    if not path.exists():
        durable.create(path, pem(Ed25519PrivateKey.generate()))  # where another was first, its key counts
    return load(path)


def pem(key: Ed25519PrivateKey) -> bytes:
    """PKCS #8, unencrypted."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
