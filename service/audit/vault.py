"""Personal data of the ledger, sealed so that destroying a key erases it from every copy of the database.

    payload --AES-256-GCM(DEK, of one entry)--> ciphertext      DEK --AES key wrap(KEK, of a tenant's month)--> dek_wrapped

Ciphertext and wrapped key lie in the database, and so in its write-ahead log and backups; the key that wraps lies elsewhere.
Deleting a row leaves old bytes behind (PostgreSQL's heap until VACUUM, its WAL longer, backups longest): once the month's key
is destroyed, none of them opens any more.

Source: AES key wrap is RFC 3394; AES-GCM is NIST SP 800-38D with a random 96-bit nonce, and one message a key.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.audit.leaves import canonical, without_floats
from service.config import Settings, get_settings

KEY_BYTES = 32
NONCE_BYTES = 12
KEK_ID = re.compile(r"[a-z0-9-]{1,64}\.[0-9]{4}-[0-9]{2}")


class KekGone(Exception):
    """The key that wraps was destroyed, or is not in this store: what it wrapped cannot be opened."""


class Unopenable(Exception):
    """The ciphertext is not the one that was sealed under this key for this entry."""


class KeyStore(Protocol):
    """Whoever keeps the keys that wrap. None of them leaves it, so a key service fits, too."""

    def wrap(self, kek_id: str, dek: bytes) -> bytes:
        """A key, wrapped; the key that wraps is made on first use. Raises: KekGone: it was destroyed; OSError."""
        ...

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Raises: KekGone; Unopenable: it was not wrapped by this key; OSError."""
        ...

    def destroy(self, kek_id: str) -> bool:
        """For ever; the name is not used again. False: it was gone already. Raises: OSError."""
        ...

    def is_destroyed(self, kek_id: str) -> bool:
        """True once it was destroyed here. Raises: OSError."""
        ...

    def holds(self, kek_id: str) -> bool:
        """Is it here? Raises: OSError."""
        ...


def kek_id(tenant: str, at: datetime) -> str:
    """Name of the key that wraps what a tenant writes in a month (UTC): `acme.2026-11`."""
    return f"{tenant}.{at.astimezone(UTC):%Y-%m}"


def month_of(name: str) -> tuple[int, int]:
    """Year and month of a key's name. Raises: ValueError."""
    if not KEK_ID.fullmatch(name):
        raise ValueError("expected the name of a key: tenant.YYYY-MM")
    year, month = name.rpartition(".")[2].split("-")
    return int(year), int(month)


@dataclass(frozen=True)
class Sealed:
    """A payload that only the store's key opens."""

    kek_id: str
    dek_wrapped: bytes
    ciphertext: bytes
    """Nonce (12 bytes), ciphertext, tag (16 bytes)."""


@dataclass(frozen=True)
class Key:
    """A fresh key of one entry, and the same wrapped. Made before the ledger's head is locked: it may take a disk's time."""

    kek_id: str
    dek: bytes
    wrapped: bytes

    def seal(self, private: dict[str, Any], *, log_id: int, seq: int) -> Sealed:
        """RFC 8785 bytes of the values, encrypted for one place in one log. Call it once: one message a key."""
        nonce = os.urandom(NONCE_BYTES)
        body = AESGCM(self.dek).encrypt(nonce, canonical(without_floats(private)), _place(log_id, seq))
        return Sealed(self.kek_id, self.wrapped, nonce + body)


def fresh_key(keys: KeyStore, tenant: str) -> Key:
    """A random key under the tenant's key of this month, by this host's clock. Raises: KekGone, OSError."""
    dek, name = os.urandom(KEY_BYTES), kek_id(tenant, datetime.now(UTC))
    return Key(name, dek, keys.wrap(name, dek))


def unseal(keys: KeyStore, sealed: Sealed, *, log_id: int, seq: int) -> dict[str, Any]:
    """The values; numbers with a fraction come back as the text they were sealed as. Raises: KekGone, Unopenable, OSError."""
    dek = keys.unwrap(sealed.kek_id, sealed.dek_wrapped)
    nonce, body = sealed.ciphertext[:NONCE_BYTES], sealed.ciphertext[NONCE_BYTES:]
    try:
        text = AESGCM(dek).decrypt(nonce, body, _place(log_id, seq))
    except (InvalidTag, ValueError) as error:
        raise Unopenable(f"the private payload of entry {seq} is not what was sealed") from error
    values: dict[str, Any] = json.loads(text)
    return values


def _place(log_id: int, seq: int) -> bytes:
    return rfc8785.dumps({"log": log_id, "seq": seq})


class FileKeyStore:
    """One file a key, readable by the service's user alone. The folder must not be part of the database's backups.

    Destroying overwrites and unlinks. A file system that writes elsewhere (copy-on-write, snapshots, flash) may keep the old
    block; where that matters, put a key service behind `KeyStore`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wrap(self, kek_id: str, dek: bytes) -> bytes:
        """Raises: KekGone, OSError."""
        return keywrap.aes_key_wrap(self._key(kek_id, make=True), dek)

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Raises: KekGone, Unopenable, OSError."""
        try:
            return keywrap.aes_key_unwrap(self._key(kek_id, make=False), wrapped)
        except keywrap.InvalidUnwrap as error:
            raise Unopenable("the wrapped key is not one of this key's") from error

    def destroy(self, kek_id: str) -> bool:
        """Raises: ValueError: no such name can be; OSError."""
        path, tombstone = self._paths(kek_id)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(tombstone, b"destroyed\n")  # first: from now on nobody makes a key of this name
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return False
        try:
            os.write(descriptor, os.urandom(KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink()
        _sync(self.folder)
        return True

    def is_destroyed(self, kek_id: str) -> bool:
        """Raises: ValueError: no such name can be."""
        path, tombstone = self._paths(kek_id)
        return tombstone.exists() and not path.exists()

    def holds(self, kek_id: str) -> bool:
        """Raises: ValueError: no such name can be."""
        return self._paths(kek_id)[0].exists()

    def _paths(self, kek_id: str) -> tuple[Path, Path]:
        month_of(kek_id)
        return self.folder / f"{kek_id}.kek", self.folder / f"{kek_id}.destroyed"

    def _key(self, kek_id: str, *, make: bool) -> bytes:
        """Read every time: a key that was destroyed by another process must not live on in this one."""
        path, tombstone = self._paths(kek_id)
        if tombstone.exists():
            raise KekGone(f"the key {kek_id} was destroyed")
        if make and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create(path, os.urandom(KEY_BYTES))
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            raise KekGone(f"the key {kek_id} is not in this store") from None
        if len(key) != KEY_BYTES:
            raise KekGone(f"expected {KEY_BYTES} bytes in {path.name}, got {len(key)}")
        return key


def _create(path: Path, data: bytes) -> None:
    """A whole file or none, and the first one counts: several hosts may share the folder. Raises: OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def get_keys(settings: Settings | None = None) -> KeyStore:
    """The deployment's keys."""
    return FileKeyStore((settings or get_settings()).kek_folder)
